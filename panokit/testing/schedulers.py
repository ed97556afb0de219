"""What a scheduler promises: levels that go down, a solver that lands where the model points, and runs that keep apart.

The model is Stable Diffusion's in a twentieth of its timesteps, because some solvers loop over them when they are made.
"""

import io
import math
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any, get_args

import torch
from torch import Tensor

from panokit.errors import SettingError
from panokit.scheduler import Level, Prediction, Scheduler, Solver, Training, x0_from
from panokit.testing.demands import ConformanceError, contents, demand, distance, unchanged
from panokit.testing.settings import pickles_and_reprs
from panokit.testing.worlds import OneImage

Make = Callable[[], Scheduler]

STEPS = 6


def checks(scheduler: Scheduler) -> tuple[Callable[[Make], None], ...]:
    """Those that apply to a scheduler, the most telling first."""
    return (
        levels_descend,
        x0_inverts,
        lands_on_the_one_image,
        leaves_arguments_alone,
        step_is_deterministic_given_the_generator,
        runs_do_not_share_memory,
        state_restores,
        pickles_and_reprs,
    )


def levels_descend(make: Make) -> None:
    """Noise levels are numbered, consistent, never rise from step to step, and end all but clean."""
    name = type(make()).__name__
    for prediction, solver in _solvers(make()):
        levels = solver.levels
        demand(
            [level.index for level in levels] == list(range(len(levels))),
            f"{name} numbers its levels {[level.index for level in levels]}; a level's index is its place in the list",
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
            f"{name}, asked for {STEPS} steps, has main levels of steps {[level.step for level in (*main, last)]}; expected 0 "
            f"to {STEPS}, the last one terminal: mark a solver's inner stages with main=False",
        )
        sigmas = [level.sigma for level in (*main, last)]
        demand(
            all(above >= below for above, below in pairwise(sigmas)) and sigmas[-1] < 0.2,
            f"the sigmas of {name} go {sigmas}; they must never rise from one main level to the next, and end below 0.2",
        )


def x0_inverts(make: Make) -> None:
    """`x0` is what the model's prediction means, and `pred` its inverse: pure, differentiable, for any leading axes."""
    name = type(make()).__name__
    for prediction, solver in _solvers(make()):
        for level in solver.levels[:-1]:
            x, x0 = _noise(5, 2, 4, 3), _noise(5, 2, 4, 3, seed=1).requires_grad_()
            pred = solver.pred(x0, x, level)
            at = f"{name} for a model that predicts {prediction}, at alpha {level.alpha:.3g} and sigma {level.sigma:.3g}"
            demand(
                distance(solver.x0(pred, x, level), x0_from(prediction, pred, x, level)) < 1e-5,
                f"{at}: `x0` is not what such a prediction means: use panokit.scheduler.x0_from(training.prediction, ...), or "
                "refuse the model in `begin` with a SettingError",
            )
            demand(
                distance(solver.x0(pred, x, level), x0) < 1e-5,
                f"{at}: `x0` of `pred` is not the x0 that went in: use panokit.scheduler.pred_from(training.prediction, ...)",
            )
            demand(
                solver.x0(pred, x, level).requires_grad,
                f"{at}: `x0` has no gradient, and guidances need one: stay with operations of torch, without no_grad or detach",
            )


def lands_on_the_one_image(make: Make) -> None:
    """In a world of one image, whose model knows it, a run ends on the image, whatever the model predicts."""
    name = type(make()).__name__
    for prediction, solver in _solvers(make()):
        world, random = OneImage(_canvas(seed=1)), torch.Generator().manual_seed(0)
        x = solver.start(_canvas())
        for level in solver.levels[:-1]:
            x = solver.step(world.predict(solver, x, level), x, level, random)
        end = solver.levels[-1]
        off = _rms(x - end.alpha * world.image) / _rms(world.image)
        demand(
            off < 1e-4 + 1.2 * end.sigma,
            f"{name}, led by a model that predicts {prediction} and knows the image, ends {off:.2g} away from it, where the "
            f"last level leaves noise of {end.sigma:.2g}: mind the coefficients of `step`, and where the last step lands",
        )


def leaves_arguments_alone(make: Make) -> None:
    """`start`, `x0`, `pred` and `step` do not write to the tensors that they are given."""
    solver = _any(make())
    given = (_canvas(), _canvas(seed=1))
    before, level = contents(given), solver.levels[0]
    calls: dict[str, Callable[[], Tensor]] = {
        "start": lambda: solver.start(given[0]),
        "x0": lambda: solver.x0(*given, level),
        "pred": lambda: solver.pred(*given, level),
        "step": lambda: solver.step(*given, level, torch.Generator().manual_seed(0)),
    }
    for name, call in calls.items():
        call()
        demand(
            unchanged(before, given),
            f"{type(solver).__name__}.{name} wrote to a tensor that it was given: use operations without a trailing underscore",
        )


def step_is_deterministic_given_the_generator(make: Make) -> None:
    """The same generator gives the same canvas, whatever torch's own random state is."""
    found = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            found.append(_walked(make()))
    demand(
        torch.equal(*found),
        f"two runs of {type(make()).__name__} from equal generators end in other canvases: draw noise from the generator that "
        "`step` is given, torch.randn(x.shape, generator=generator).to(x)",
    )


def runs_do_not_share_memory(make: Make) -> None:
    """Two runs of one scheduler that take turns are each what they are alone."""
    shared = make()
    *_, together = zip(*(_begun(shared, seed) for seed in (0, 1)), strict=True)
    for seed, found in enumerate(together):
        demand(
            torch.equal(found, _walked(make(), seed)),
            f"of two runs that take turns with one {type(shared).__name__}, the one of seed {seed} is not what it is alone: "
            "`begin` must return a fresh solver, and what a run remembers must be on that",
        )


def state_restores(make: Make) -> None:
    """At any level the state goes into a file of tensors and numbers, and another solver goes on from it to the same bits."""
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
                f"a {name} restored at level {i} from a state {how} does not go on as the one it came from: `state` must hold "
                "copies of all that later steps depend on",
            )


# --- what they are checked with -----------------------------------------------------------------------------


def _solvers(scheduler: Scheduler) -> Iterator[tuple[Prediction, Solver]]:
    """A solver for every kind of model that the scheduler can drive."""
    refusals = []
    for prediction in get_args(Prediction):
        training = Training(prediction, timesteps=50, beta_start=0.017, beta_end=0.24)
        try:
            solver = scheduler.begin(STEPS, torch.device("cpu"), training)
        except SettingError as refusal:
            refusals.append(str(refusal))
        else:
            yield prediction, solver
    demand(
        len(refusals) < len(get_args(Prediction)),
        f"{scheduler} cannot begin {STEPS} steps for any kind of model ({'; '.join(refusals)}): make it with settings that can",
    )


def _any(scheduler: Scheduler) -> Solver:
    """For the first kind of model that it can drive."""
    return next(_solvers(scheduler))[1]


def _model(x: Tensor, level: Level) -> Tensor:
    """Something smooth and not linear in place and time."""
    return torch.tanh(0.6 * x + 0.3 * x.roll(1, -1)) + 0.1 * math.sin(level.t)


def _walk(solver: Solver, x: Tensor, random: torch.Generator, first: int = 0) -> Iterator[Tensor]:
    """The canvas at every level from `first` on, driven by the model."""
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
    except Exception as cause:  # the pickler and the unpickler object in ways of their own
        raise ConformanceError(
            f"{name}.state returned what a checkpoint cannot hold: tensors, numbers, texts, and lists and dicts of them can"
        ) from cause


def _canvas(seed: int = 0) -> Tensor:
    return _noise(4, 6, 5, seed=seed).float()


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())
