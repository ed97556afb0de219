"""Checks for schedulers: levels fall and are true, the solver ends at the image that the model knows, runs are independent.

The training noise is that of Stable Diffusion with a twentieth of its timesteps, because some solvers loop over timesteps.
"""

import io
import math
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any, get_args

import torch
from torch import Tensor

from panokit.errors import SettingError
from panokit.rehearsal import measure
from panokit.scheduler import Level, Prediction, Scheduler, Solver, Training, x0_from
from panokit.testing.demands import ConformanceError, contents, demand, distance, unchanged
from panokit.testing.settings import pickles_and_reprs
from panokit.testing.worlds import times_of

Make = Callable[[], Scheduler]

STEPS = 6


def checks(scheduler: Scheduler) -> tuple[Callable[[Make], None], ...]:
    """The checks for a scheduler. The ones whose failures explain others come first."""
    return (
        levels_descend,
        begins_with_noise,
        network_is_told_the_level,
        x0_inverts,
        leaves_arguments_alone,
        step_is_deterministic_given_the_generator,
        noise_is_what_levels_say,
        runs_do_not_share_memory,
        state_restores,
        pickles_and_reprs,
    )


def levels_descend(make: Make) -> None:
    """Levels are numbered in order, alpha and sigma satisfy their equation, and sigma falls at each step and ends near 0."""
    name = type(make()).__name__
    for prediction, solver in _solvers(make()):
        levels = solver.levels
        demand(
            [level.index for level in levels] == list(range(len(levels))),
            f"{name} numbers its levels {[level.index for level in levels]}; the index of a level is its place in the list",
        )
        for level in levels:
            total = level.alpha + level.sigma if prediction == "flow_prediction" else math.hypot(level.alpha, level.sigma)
            demand(
                type(level.alpha) is type(level.sigma) is float and abs(total - 1) < 1e-5,
                f"{name}, for a model that predicts {prediction}, has the level {level}; alpha and sigma must be Python floats "
                "with alpha² + sigma² = 1, or alpha = 1 - sigma for a flow: rescale in `start` and `step`",
            )
        *main, last = (level for level in levels if level.main)
        demand(
            last is levels[-1] and [level.step for level in (*main, last)] == [*range(STEPS), STEPS],
            f"{name} with {STEPS} steps has main levels of the steps {[level.step for level in (*main, last)]}; expected 0 to "
            f"{STEPS}, where the last one is terminal: mark the inner stages of a solver with main=False",
        )
        sigmas = [level.sigma for level in (*main, last)]
        demand(
            all(above > below for above, below in pairwise(sigmas)) and sigmas[-1] < 0.2,
            f"the sigmas of {name} are {sigmas}; they must fall from each main level to the next, and must end below 0.2",
        )


def begins_with_noise(make: Make) -> None:
    """The first canvas is noise, as much as at the first level, where hardly any signal is left: at most a quarter."""
    name = type(make()).__name__
    for prediction, solver in _solvers(make()):
        first, noise = solver.levels[0], _noise(4, 32, 32).float()
        demand(
            first.alpha <= 0.25,
            f"{name}, for a model that predicts {prediction}, begins with noise alone at alpha {first.alpha:.2f}, so pictures "
            "are grey: begin near the last timestep of training",
        )
        scale = _rms(solver.start(noise)) / _rms(noise)
        demand(
            first.sigma - 0.01 < scale < 1.01,
            f"the first canvas of {name} has noise of {scale:.3g}, and its first level has {first.sigma:.3g}: `start` must "
            "scale the noise to the level",
        )


def network_is_told_the_level(make: Make) -> None:
    """The time that the network is told is the one at which training had the noise of the level, or the nearest whole one."""
    name = type(make()).__name__
    for prediction, solver in _solvers(make()):
        for level in solver.levels[:-1]:
            times = times_of(_training(prediction), level.alpha, level.sigma)
            demand(
                min(abs(level.t - time) for time in times) < 0.6,
                f"{name} tells a network that predicts {prediction} the time {level.t:.4g} at sigma {level.sigma:.3g}, which "
                f"training had at {times[0]:.4g}: give the time of the level's noise in training, which need not be whole",
            )


def x0_inverts(make: Make) -> None:
    """`x0` converts a prediction into the clean estimate, and `pred` is its inverse. Both are differentiable, for any axes."""
    name = type(make()).__name__
    for prediction, solver in _solvers(make()):
        for level in solver.levels[:-1]:
            x, x0 = _noise(5, 2, 4, 3), _noise(5, 2, 4, 3, seed=1).requires_grad_()
            pred = solver.pred(x0, x, level)
            at = f"{name} for a model that predicts {prediction}, at alpha {level.alpha:.3g} and sigma {level.sigma:.3g}"
            demand(
                distance(solver.x0(pred, x, level), x0_from(prediction, pred, x, level)) < 1e-5,
                f"{at}: `x0` converts the prediction wrongly: use panokit.scheduler.x0_from(training.prediction, ...), or "
                "refuse the model in `begin` with a SettingError",
            )
            demand(
                distance(solver.x0(pred, x, level), x0) < 1e-5,
                f"{at}: `x0` of `pred` is another x0: use panokit.scheduler.pred_from(training.prediction, ...)",
            )
            demand(
                solver.x0(pred, x, level).requires_grad,
                f"{at}: `x0` has no gradient, and guidances need one: use only operations of torch, without no_grad or detach",
            )


def leaves_arguments_alone(make: Make) -> None:
    """`start`, `x0`, `pred` and `step` do not write to their arguments."""
    solver = _any(make())
    tensors = (_canvas(), _canvas(seed=1))
    before, level = contents(tensors), solver.levels[0]
    calls: dict[str, Callable[[], Tensor]] = {
        "start": lambda: solver.start(tensors[0]),
        "x0": lambda: solver.x0(*tensors, level),
        "pred": lambda: solver.pred(*tensors, level),
        "step": lambda: solver.step(*tensors, level, torch.Generator().manual_seed(0)),
    }
    for name, call in calls.items():
        call()
        demand(
            unchanged(before, tensors),
            f"{type(solver).__name__}.{name} wrote to one of its arguments: use operations without a trailing underscore",
        )


def step_is_deterministic_given_the_generator(make: Make) -> None:
    """The same generator gives the same canvas, with any state of torch's own random numbers."""
    canvases = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            canvases.append(_walked(make()))
    demand(
        torch.equal(*canvases),
        f"two runs of {type(make()).__name__} with equal generators end with different canvases: draw noise from the argument "
        "of `step`, torch.randn(x.shape, generator=generator).to(x)",
    )


def noise_is_what_levels_say(make: Make) -> None:
    """In a world of one image, every canvas is this image with the noise of its level, for every type of prediction."""
    name = type(make()).__name__
    for prediction, solver in _solvers(make()):
        for measured in measure(solver):
            level = measured.level
            demand(
                measured.right,
                f"{name}, for a model that predicts {prediction} and knows the image, is {measured.off:.2g} away from it at "
                f"level {level.index}, with noise of {measured.noise:.3g} where sigma is {level.sigma:.3g}: check the "
                "coefficients of `step`, and the level that it lands on",
            )


def runs_do_not_share_memory(make: Make) -> None:
    """Two runs of one scheduler, step by step in turns, make the same canvases as alone."""
    shared = make()
    *_, together = zip(*(_begun(shared, seed) for seed in (0, 1)), strict=True)
    for seed, canvas in enumerate(together):
        demand(
            torch.equal(canvas, _walked(make(), seed)),
            f"when two runs take turns with one {type(shared).__name__}, the run with seed {seed} makes another canvas than "
            "alone: `begin` must return a new solver, and a run may remember things only on its solver",
        )


def state_restores(make: Make) -> None:
    """At any level a file can hold the state, and another solver continues from it with the same bits."""
    solver, random, saved = _any(make()), torch.Generator().manual_seed(0), []
    name = type(solver).__name__
    x = solver.start(_canvas())
    for level in solver.levels[:-1]:
        saved.append((x, random.get_state(), solver.state(), _through_a_file(solver.state(), name)))
        x = solver.step(_model(x, level), x, level, random)
    for i, (canvas, drawn, *states) in enumerate(saved):
        for how, state in zip(("kept in memory", "read from a file"), states, strict=True):
            resumed = _any(make())
            resumed.restore(state)
            *_, again = _walk(resumed, canvas, torch.Generator().set_state(drawn), first=i)
            demand(
                torch.equal(again, x),
                f"a {name} that is restored at level {i} from a state {how} makes another canvas than the original: `state` "
                "must return copies of all that later steps depend on",
            )


# --- models and canvases ------------------------------------------------------------------------------------


def _solvers(scheduler: Scheduler) -> Iterator[tuple[Prediction, Solver]]:
    """A solver for every type of prediction that the scheduler accepts."""
    refusals = []
    for prediction in get_args(Prediction):
        try:
            solver = scheduler.begin(STEPS, torch.device("cpu"), _training(prediction))
        except SettingError as refusal:
            refusals.append(str(refusal))
        else:
            yield prediction, solver
    demand(
        len(refusals) < len(get_args(Prediction)),
        f"{scheduler} cannot begin {STEPS} steps for any type of prediction ({'; '.join(refusals)}): choose other settings",
    )


def _training(prediction: Prediction) -> Training:
    return Training(prediction, timesteps=50, beta_start=0.017, beta_end=0.24)


def _any(scheduler: Scheduler) -> Solver:
    """The solver for the first type of prediction that the scheduler accepts."""
    return next(_solvers(scheduler))[1]


def _model(x: Tensor, level: Level) -> Tensor:
    """A smooth function that stands for a model. It is not linear in the canvas, and depends on the timestep."""
    return torch.tanh(0.6 * x + 0.3 * x.roll(1, -1)) + 0.1 * math.sin(level.t)


def _walk(solver: Solver, x: Tensor, random: torch.Generator, first: int = 0) -> Iterator[Tensor]:
    """The canvas at every level from `first` on, with the predictions of `_model`."""
    yield x
    for level in solver.levels[first:-1]:
        x = solver.step(_model(x, level), x, level, random)
        yield x


def _walked(scheduler: Scheduler, seed: int = 0) -> Tensor:
    """The last canvas of a run."""
    *_, x = _begun(scheduler, seed)
    return x


def _begun(scheduler: Scheduler, seed: int = 0) -> Iterator[Tensor]:
    """A run, canvas by canvas."""
    solver = _any(scheduler)
    return _walk(solver, solver.start(_canvas(seed)), torch.Generator().manual_seed(seed))


def _through_a_file(state: Mapping[str, Any], name: str) -> Any:
    try:
        torch.save(state, file := io.BytesIO())
        file.seek(0)
        return torch.load(file, weights_only=True)
    except Exception as cause:  # pickle raises errors of many types
        raise ConformanceError(
            f"{name}.state returned something that a checkpoint cannot hold: return tensors, numbers, text, and lists and "
            "dicts of them"
        ) from cause


def _canvas(seed: int = 0) -> Tensor:
    return _noise(4, 6, 5, seed=seed).float()


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())
