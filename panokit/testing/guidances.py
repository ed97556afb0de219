"""Checks for guidances: the two rules of the contract, reproducible runs, and an energy with a gradient.

They run in a toy world: a smooth model with four channels, a codec with factor 2, and a canvas of 16 x 24 cells. It has 15
windows of 8 x 8 cells with a stride of 4, so a canvas of half the size still holds windows. Comparisons of bits use float32,
like users' runs. Comparisons with a tolerance use float64.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from types import NoneType
from typing import Any, final

import torch
from torch import Tensor

from panokit.guidance import Estimate, Guidance, Known
from panokit.layout import Layout
from panokit.plain import walk
from panokit.run import CanvasStep, Run
from panokit.runtime import Runtime
from panokit.scheduler import Level, Training
from panokit.settings import Precision
from panokit.testing.demands import ConformanceError, contents, demand, distance, unchanged
from panokit.testing.ranks import VirtualRanks, same_on_ranks
from panokit.testing.settings import pickles_and_reprs
from panokit.testing.toys import Drift, ToyCodec, ToyDenoiser, ToyScheduler, toy_run

Make = Callable[[], Guidance]

STEPS = 8
"""Steps of a run. In one of them at least, a guidance must move windows or know the canvas."""
MICRO_BATCH = 5
"""Windows in a chunk. The 15 windows make three chunks, which two ranks cannot share evenly."""
SOME = [9, 0, 14, 4]
"""The numbers of some windows, not sorted."""


def checks(guidance: Guidance) -> tuple[Callable[[Make], None], ...]:
    """The checks for a guidance. The ones whose failures explain others come first."""
    weighted = is_dataclass(guidance) and any(field.name == "weight" for field in fields(guidance))
    moves = not _moves_nothing(guidance)
    return (
        wakes_up,
        *((shape_and_dtype,) if moves else ()),
        strength_is_finite_at_every_level,
        known_is_a_clean_canvas,
        *((windows_do_not_see_each_other, gradient_matches_energy, leaves_arguments_alone) if moves else ()),
        never_changes,
        same_for_any_number_of_ranks,
        runs_do_not_share_memory,
        memory_can_be_saved,
        follows_moving_windows,
        *((zero_weight_is_absent,) if weighted else ()),
        pickles_and_reprs,
    )


# --- the rules ----------------------------------------------------------------------------------------------


def wakes_up(make: Make) -> None:
    """In a run of eight steps the guidance moves windows or knows the canvas at least once, so that it can be checked."""
    guidance = make()
    if not _moves_nothing(guidance):
        _moment(guidance)
        return
    run = _run(guidance)
    while not run.done:
        if run.known() is not None:
            return
        run.step()
    raise ConformanceError(
        f"{guidance} is asleep and knows no canvas at all {STEPS} steps of a run, so nothing can be checked: choose settings "
        "with a strength above 0, or with which `known` returns a canvas"
    )


def shape_and_dtype(make: Make) -> None:
    """The energy is one number for each window, in the dtype and on the device of the windows."""
    now = _moment(make())
    for index in (SOME, [5]):
        seen, n = now.step.look(index), len(index)
        energy = now.guidance.energy(seen, index, now.context)
        what = f"shape {tuple(energy.shape)}" if isinstance(energy, Tensor) else f"a {type(energy).__name__}"
        demand(
            isinstance(energy, Tensor) and energy.shape == (n,),
            f"{now.name}.energy returned {what} for {n} windows; it must return one number for each window, ({n},): "
            "sum over all axes but the first",
        )
        demand(
            (energy.dtype, energy.device) == (seen.x0.dtype, seen.x0.device),
            f"{now.name}.energy returned {energy.dtype} on {energy.device} for windows in {seen.x0.dtype} on "
            f"{seen.x0.device}; expected the same for both: make constants with `.to(seen.x0)`",
        )


def strength_is_finite_at_every_level(make: Make) -> None:
    """The strength is a finite Python number at every main level, and always the same at the same level."""
    guidance = make()
    for level in _levels():
        at = f"{type(guidance).__name__}.strength at step {level.step} of {level.steps} (alpha {level.alpha:.3g})"
        try:
            strength, again = guidance.strength(level), guidance.strength(level)
        except ArithmeticError as cause:
            raise ConformanceError(f"{at} raised {cause!r}: handle levels with alpha 0, and runs of one step") from cause
        demand(
            isinstance(strength, float | int),
            f"{at} is a {type(strength).__name__}; it must be a Python float, so that nothing waits for the device: use math",
        )
        demand(math.isfinite(strength), f"{at} is {strength}; it must be finite: handle levels with alpha 0")
        demand(
            strength == again,
            f"{at} is {strength}, and {again} in a second call; it must depend only on the level and the settings",
        )


def known_is_a_clean_canvas(make: Make) -> None:
    """At every level `known` returns None, or what is known, like the run's own canvas. It does not write to that canvas."""
    run = _run(make())
    ((guidance, memory),) = run.guided
    name = f"{type(guidance).__name__}.known"
    while not run.done:
        canvas = contents(run.canvas)
        known: Any = guidance.known(run.view(0, "known"), memory)
        demand(unchanged(canvas, run.canvas), f"{name} wrote to step.canvas, which the run still needs: work on a copy")
        if known is not None:
            demand(
                isinstance(known, Known),
                f"{name} returned a {type(known).__name__}; it must return None, Known(x0) or Known(x0, where)",
            )
            x0, where = known.x0, known.where
            demand(
                isinstance(x0, Tensor)
                and (x0.shape, x0.dtype, x0.device) == (run.canvas.shape, run.canvas.dtype, run.canvas.device)
                and bool(x0.isfinite().all()),
                f"{name} returned an x0 that is {_described(x0)} at step {run.level.step} for a canvas that is "
                f"{_described(run.canvas)}; it must be the clean canvas, finite and `.to(step.canvas)`",
            )
            demand(
                where is None or (isinstance(where, Tensor) and (where.shape, where.dtype) == (run.windows.size, torch.bool)),
                f"{name} returned a where that is {_described(where)}; it must be None, or one truth value for each cell of "
                f"the canvas, torch.bool {run.windows.size}",
            )
        run.step()


def _described(value: object) -> str:
    """The dtype, shape and device of a tensor, in words."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    finite = "" if bool(value.isfinite().all()) else " with NaN or infinity"
    return f"a {value.dtype} {tuple(value.shape)} on {value.device}{finite}"


def windows_do_not_see_each_other(make: Make) -> None:
    """Energies and gradients of windows are the same in a chunk as alone."""
    now = _moment(make())
    together = now.slopes(now.step.look(SOME), SOME)
    alone = [torch.cat(parts) for parts in zip(*(now.slopes(now.step.look([i]), [i]) for i in SOME), strict=True)]
    for what, actual, expected in zip(("energy", "gradient at x", "gradient at x0"), together, alone, strict=True):
        demand(
            distance(actual, expected) < 1e-5,
            f"the {what} of {now.name} differs between the windows {SOME} in one chunk and each of them alone: reduce over all "
            "axes but the first, choose a window's part of the context by `index`, and make what windows share in `prepare`",
        )


def gradient_matches_energy(make: Make) -> None:
    """The gradients of autograd, at x and at x0, are the slopes of the energy along any direction."""
    now = _moment(make())
    seen = now.step.look(SOME)
    _, *gradients = now.slopes(seen, SOME)
    direction = torch.randn(seen.x.shape, generator=torch.Generator().manual_seed(0)).to(seen.x)
    moved: dict[str, Callable[[float], Estimate]] = {
        "x": lambda h: replace(seen, x=seen.x + h * direction),
        "x0": lambda h: replace(seen, x0=seen.x0 + h * direction),
    }
    for (name, at), gradient in zip(moved.items(), gradients, strict=True):
        expected = (gradient * direction).flatten(1).sum(1)
        tried: list[tuple[float, list[float]]] = []
        for h in (10.0**-k for k in range(6, 1, -1)):  # rounding hides small differences if a network is in float32
            slope = (now.energy(at(h), SOME) - now.energy(at(-h), SOME)) / (2 * h)
            tried.append((distance(slope, expected), slope.tolist()))
            if tried[-1][0] < 1e-3:
                break
        off, slopes = min(tried)
        demand(
            off < 1e-3,
            f"along a direction of seen.{name} the energy of {now.name} has the slopes {slopes}, but its gradient gives "
            f"{expected.tolist()}: between seen.{name} and the energy use only differentiable operations of torch, without "
            "detach, no_grad, numpy or rounding",
        )


def leaves_arguments_alone(make: Make) -> None:
    """`prepare` does not write to the canvas, and `energy` does not write to its arguments."""
    run = _awake(make())
    ((guidance, _),) = run.guided
    name, canvas = type(guidance).__name__, contents(run.canvas)
    now = _prepared(run)
    demand(unchanged(canvas, run.canvas), f"{name}.prepare wrote to step.canvas, which the run still needs: work on a copy")
    seen = now.step.look(SOME)
    tensors, context = contents([seen.x, seen.x0]), contents(now.context)
    guidance.energy(seen, SOME, now.context)
    demand(
        unchanged(tensors, [seen.x, seen.x0]),
        f"{name}.energy wrote to seen.x or seen.x0, which the run still needs: use operations without a trailing underscore",
    )
    demand(
        unchanged(context, now.context),
        f"{name}.energy wrote to its context, but a rank sees only some of the windows: write to it in `prepare`",
    )


def never_changes(make: Make) -> None:
    """A run does not change the settings of the guidance."""
    guidance = make()
    settings = contents(_settings(guidance))
    _finished(_run(guidance))
    demand(
        unchanged(settings, _settings(guidance)),
        f"a run changed the settings of the {type(guidance).__name__}: keep what it remembers in the memory that `begin` "
        "returns",
    )


def same_for_any_number_of_ranks(make: Make) -> None:
    """A run has the same bits on one, two and three ranks, and on every rank."""

    def canvas(runtime: Runtime) -> Tensor:
        return _finished(_run(make(), runtime=runtime))

    same_on_ranks(
        canvas,
        MICRO_BATCH,
        ": `prepare` must return the same on every rank, "
        "noise must come from step.noise, and nothing may depend on the windows that `energy` has seen",
    )


def runs_do_not_share_memory(make: Make) -> None:
    """Two runs of one guidance, step by step in turns, make the same canvases as alone."""
    shared = make()
    runs = [_run(shared, seed=seed) for seed in (0, 1)]
    while not all(run.done for run in runs):
        for run in runs:
            run.step()
    for run in runs:
        demand(
            torch.equal(run.canvas, _finished(_run(make(), seed=run.seed))),
            f"when two runs take turns with one {type(shared).__name__}, the run with seed {run.seed} makes another canvas "
            "than alone: keep what a run remembers in the memory that `begin` returns, never on the guidance, its class or its "
            "module, and take noise from step.noise",
        )


def memory_can_be_saved(make: Make) -> None:
    """The memory contains only tensors and plain values, and a restored run continues with the same bits."""
    run = _run(make())
    name, memory = type(run.guided[0][0]).__name__, run.guided[0][1]
    for _ in range(STEPS // 2):
        run.step()
    for strange in _strange(memory):
        raise ConformanceError(
            f"the memory of {name} contains a {type(strange).__name__}, which a checkpoint cannot hold: `begin` must return "
            "None, or nested dicts and lists of tensors, numbers and text"
        )
    state, expected = run.state(), _finished(run)
    resumed = _run(make())
    resumed.restore(state)
    demand(
        torch.equal(_finished(resumed), expected),
        f"a run with {name} that is restored half way makes another canvas than a run without a break: `prepare` must keep "
        "all that it remembers in the memory that `begin` returned",
    )


def follows_moving_windows(make: Make) -> None:
    """In a layout that moves its windows at each level, a run is finite, and the same on one and on two ranks."""

    def canvas(runtime: Runtime) -> Tensor:
        return _finished(_run(make(), runtime=runtime, layout=Drift(2)))

    (expected,) = VirtualRanks(1, MICRO_BATCH).run(canvas)
    name = type(make()).__name__
    demand(bool(expected.isfinite().all()), f"a run with {name} makes NaN or infinity where windows move: ask step.windows")
    for rank, actual in enumerate(VirtualRanks(2, MICRO_BATCH).run(canvas)):
        demand(
            torch.equal(actual, expected),
            f"rank {rank} of 2 has another canvas than a single rank where windows move at each level: take the place and the "
            "number of windows from step.windows, at each step anew, and never from the windows that `begin` got",
        )


def zero_weight_is_absent(make: Make) -> None:
    """With weight 0 the guidance is asleep at every level, and the run has the same bits as without it."""
    guidance: Any = make()
    name, absent = type(guidance).__name__, replace(guidance, weight=0.0)
    for level in _levels():
        demand(
            absent.strength(level) == 0,
            f"{name} with weight 0 has strength {absent.strength(level)} at step {level.step} of {level.steps}: multiply the "
            "strength by the weight, not the energy, so that a weight of 0 costs nothing",
        )
    demand(
        torch.equal(_finished(_run(absent)), _finished(_run())),
        f"a run with {name} of weight 0 makes another canvas than a run without it: `begin` may not change its arguments",
    )


# --- the toy world ------------------------------------------------------------------------------------------


def _run(*guidances: Guidance, runtime: Runtime | None = None, layout: Layout | None = None, seed: int = 0) -> Run:
    return toy_run(
        (16, 24),
        denoiser=ToyDenoiser((8, 8), channels=4, prediction="v_prediction"),
        codec=ToyCodec(),
        layout=layout,
        guidances=guidances,
        stride=4,
        steps=STEPS,
        runtime=runtime or Runtime(accelerator="cpu", micro_batch=MICRO_BATCH),
        seed=seed,
    )


def _finished(run: Run) -> Tensor:
    while not run.done:
        run.step()
    return run.canvas


@final
@dataclass(frozen=True)
class _Moment:
    """A prepared guidance, at the first level at which it is awake."""

    guidance: Guidance
    step: CanvasStep
    context: Any

    @property
    def name(self) -> str:
        return type(self.guidance).__name__

    @torch.no_grad()
    def energy(self, seen: Estimate, index: Sequence[int]) -> Tensor:
        return self.guidance.energy(replace(seen, x=seen.x.clone(), x0=seen.x0.clone()), index, self.context)

    def slopes(self, seen: Estimate, index: Sequence[int]) -> tuple[Tensor, ...]:
        """The energy, and its gradients at x and x0. Like the run, it takes them at leaves."""
        x, x0 = seen.x.clone().requires_grad_(), seen.x0.clone().requires_grad_()
        energy = self.guidance.energy(replace(seen, x=x, x0=x0), index, self.context)
        if not energy.requires_grad:
            return energy, torch.zeros_like(x), torch.zeros_like(x0)
        gradients = torch.autograd.grad(energy.sum(), (x, x0), allow_unused=True, materialize_grads=True)
        return energy.detach(), *gradients


def _moves_nothing(guidance: Guidance) -> bool:
    """Whether the guidance defines `known` and is asleep at all steps of a run."""
    if type(guidance).known is Guidance.known:
        return False
    try:
        return all(guidance.strength(level) == 0 for level in _run().solver.levels if level.main)
    except Exception:  # plugins raise errors of any type; the check of the strength reports this one
        return False


def _moment(guidance: Guidance) -> _Moment:
    return _prepared(_awake(guidance, precision="64-true"))


def _awake(guidance: Guidance, precision: Precision = "32-true") -> Run:
    """A run at the first level at which the guidance is awake."""
    run = _run(guidance, runtime=Runtime(accelerator="cpu", precision=precision, micro_batch=MICRO_BATCH))
    while not run.done:
        known = guidance.known(run.view(0, "known"), run.guided[0][1])
        if guidance.strength(run.level) != 0 and not (isinstance(known, Known) and known.where is None):
            return run
        run.step()
    raise ConformanceError(
        f"{guidance} is asleep at all {STEPS} steps of a run, so nothing can be checked: choose settings with a strength "
        "above 0"
    )


@torch.no_grad()
def _prepared(run: Run) -> _Moment:
    ((guidance, memory),) = run.guided
    step = run.view(0, "prepare")
    return _Moment(guidance, step, guidance.prepare(step, memory))


def _settings(guidance: Guidance) -> object:
    return guidance if is_dataclass(guidance) else vars(guidance)


def _levels() -> list[Level]:
    """The levels of runs with 1, 4 and 50 steps, of diffusion and of flow matching, whose first level has no signal."""
    levels: list[Level] = []
    for steps in (1, 4, 50):
        levels += ToyScheduler().begin(steps, torch.device("cpu"), Training()).levels[:-1]
        levels += [Level(k, 1000 * (1 - k / steps), k / steps, 1 - k / steps, k, steps) for k in range(steps)]
    return levels


def _strange(memory: object) -> Iterator[object]:
    """The parts of a memory that a checkpoint cannot hold."""
    for node in walk(memory):
        kept = (Tensor, int, float, str, NoneType)
        if isinstance(node.value, Mapping):
            yield from (key for key in node.value if not isinstance(key, kept))
        elif not isinstance(node.value, (*kept, list, tuple)):
            yield node.value
