"""What a guidance promises: two rules, runs that come out the same, and an energy with a gradient.

The checks run it in a toy world: a smooth model of four channels, a codec of factor 2, and a canvas of 16 x 24 cells, covered
by 15 windows of 8 x 8 cells, 4 apart, so that the canvas at half its size still holds windows. What is compared bit for bit is
computed in float32, as users compute; what is compared by a tolerance, in float64.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from types import NoneType
from typing import Any, final

import torch
from torch import Tensor

from panokit.guidance import Estimate, Guidance
from panokit.plain import walk
from panokit.run import CanvasStep, Run
from panokit.runtime import Runtime
from panokit.scheduler import Level, Training
from panokit.settings import Precision
from panokit.testing.demands import ConformanceError, contents, demand, distance, unchanged
from panokit.testing.ranks import VirtualRanks
from panokit.testing.settings import pickles_and_reprs
from panokit.testing.toys import ToyCodec, ToyDenoiser, ToyScheduler, toy_run

Make = Callable[[], Guidance]

STEPS = 8
"""Of the runs: a guidance must move windows in one of them, or know the canvas, to be checked."""
MICRO_BATCH = 5
"""Three chunks of the 15 windows, which two ranks share unevenly."""
SOME = [9, 0, 14, 4]
"""A few windows, out of order."""


def checks(guidance: Guidance) -> tuple[Callable[[Make], None], ...]:
    """Those that apply to a guidance, the most telling first."""
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
        *((zero_weight_is_absent,) if weighted else ()),
        pickles_and_reprs,
    )


# --- the rules ----------------------------------------------------------------------------------------------


def wakes_up(make: Make) -> None:
    """In a run of eight steps the guidance moves windows or knows the canvas, or there is nothing to check."""
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
        f"{guidance} is asleep and knows nothing at all {STEPS} steps of a run, so there is nothing to check: "
        "make it with settings under which its strength is not 0, or `known` returns a canvas"
    )


def shape_and_dtype(make: Make) -> None:
    """The energy is one number a window, of the windows' own dtype and on their device."""
    now = _moment(make())
    for index in (SOME, [5]):
        seen, n = now.step.look(index), len(index)
        energy = now.guidance.energy(seen, index, now.context)
        what = f"shape {tuple(energy.shape)}" if isinstance(energy, Tensor) else f"a {type(energy).__name__}"
        demand(
            isinstance(energy, Tensor) and energy.shape == (n,),
            f"{now.name}.energy returned {what} for {n} windows; it must return one number a window, ({n},): "
            "sum over all axes but the first",
        )
        demand(
            (energy.dtype, energy.device) == (seen.x0.dtype, seen.x0.device),
            f"{now.name}.energy returned {energy.dtype} on {energy.device} for windows of {seen.x0.dtype} on "
            f"{seen.x0.device}; it must follow its windows: make constants with `.to(seen.x0)`",
        )


def strength_is_finite_at_every_level(make: Make) -> None:
    """The strength is a finite Python number at every level that a step starts from, the same whenever it is asked for."""
    guidance = make()
    for level in _levels():
        at = f"{type(guidance).__name__}.strength at step {level.step} of {level.steps} (alpha {level.alpha:.3g})"
        try:
            strength, again = guidance.strength(level), guidance.strength(level)
        except ArithmeticError as cause:
            raise ConformanceError(f"{at} raised {cause!r}: mind levels whose alpha is 0, and runs of one step") from cause
        demand(
            isinstance(strength, float | int),
            f"{at} is a {type(strength).__name__}; it must be a Python float, which costs no synchronisation: use math",
        )
        demand(math.isfinite(strength), f"{at} is {strength}; it must be finite: mind levels whose alpha is 0")
        demand(
            strength == again,
            f"{at} is {strength}, and {again} when asked again; it must depend on the level and the settings alone",
        )


def known_is_a_clean_canvas(make: Make) -> None:
    """At every level `known` returns None, or a finite canvas like the run's own, which it leaves alone."""
    run = _run(make())
    ((guidance, memory),) = run.guided
    name = f"{type(guidance).__name__}.known"
    while not run.done:
        canvas = contents(run.canvas)
        found: Any = guidance.known(run.view(0, "known"), memory)
        demand(unchanged(canvas, run.canvas), f"{name} wrote to step.canvas, which the run goes on with: work on a copy")
        if found is not None:
            demand(
                isinstance(found, Tensor)
                and (found.shape, found.dtype, found.device) == (run.canvas.shape, run.canvas.dtype, run.canvas.device)
                and bool(found.isfinite().all()),
                f"{name} returned {_told(found)} at step {run.level.step} for a canvas that is {_told(run.canvas)}; it must "
                "return None, or the clean canvas, finite and `.to(step.canvas)`",
            )
        run.step()


def _told(found: object) -> str:
    """What a tensor is, in words."""
    if not isinstance(found, Tensor):
        return f"a {type(found).__name__}"
    finite = "" if bool(found.isfinite().all()) else " with NaN or infinity"
    return f"a {found.dtype} {tuple(found.shape)} on {found.device}{finite}"


def windows_do_not_see_each_other(make: Make) -> None:
    """Energies and gradients of several windows are those of each window alone."""
    now = _moment(make())
    together = now.slopes(now.step.look(SOME), SOME)
    alone = [torch.cat(parts) for parts in zip(*(now.slopes(now.step.look([i]), [i]) for i in SOME), strict=True)]
    for what, found, expected in zip(("energy", "gradient at x", "gradient at x0"), together, alone, strict=True):
        demand(
            distance(found, expected) < 1e-5,
            f"the {what} of {now.name} is another for the windows {SOME} together than for each alone: reduce over all axes "
            "but the first, take per-window parts of the context by `index`, and make what windows share in `prepare`",
        )


def gradient_matches_energy(make: Make) -> None:
    """The gradient that autograd finds, at x and at x0, is the slope of the energy along any direction."""
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
        for h in (10.0**-k for k in range(6, 1, -1)):  # the small ones drown in rounding where a network is in float32
            slope = (now.energy(at(h), SOME) - now.energy(at(-h), SOME)) / (2 * h)
            tried.append((distance(slope, expected), slope.tolist()))
            if tried[-1][0] < 1e-3:
                break
        off, found = min(tried)
        demand(
            off < 1e-3,
            f"along a direction of seen.{name} the energy of {now.name} rises by {found} a window, and its gradient says "
            f"{expected.tolist()}: between seen.{name} and the energy stay with differentiable operations of torch, "
            "without detach, no_grad, numpy or rounding",
        )


def leaves_arguments_alone(make: Make) -> None:
    """`prepare` does not write to the canvas, and `energy` to nothing at all."""
    run = _awake(make())
    ((guidance, _),) = run.guided
    name, canvas = type(guidance).__name__, contents(run.canvas)
    now = _prepared(run)
    demand(unchanged(canvas, run.canvas), f"{name}.prepare wrote to step.canvas, which the run goes on with: work on a copy")
    seen = now.step.look(SOME)
    tensors, context = contents([seen.x, seen.x0]), contents(now.context)
    guidance.energy(seen, SOME, now.context)
    demand(
        unchanged(tensors, [seen.x, seen.x0]),
        f"{name}.energy wrote to seen.x or seen.x0, which are not its own: use operations without a trailing underscore",
    )
    demand(
        unchanged(context, now.context),
        f"{name}.energy wrote to its context, where every rank would write of its own windows alone: make it in `prepare`",
    )


def never_changes(make: Make) -> None:
    """A run leaves the guidance's settings as they are."""
    guidance = make()
    settings = contents(_settings(guidance))
    _finished(_run(guidance))
    demand(
        unchanged(settings, _settings(guidance)),
        f"a run changed the settings of the {type(guidance).__name__}: what it remembers belongs into the memory that `begin` "
        "returns",
    )


def same_for_any_number_of_ranks(make: Make) -> None:
    """On one, two and three ranks a run has the same bits, on every rank."""

    def canvas(runtime: Runtime) -> Tensor:
        return _finished(_run(make(), runtime=runtime))

    (expected,) = VirtualRanks(1, MICRO_BATCH).run(canvas)
    for size in (2, 3):
        for rank, found in enumerate(VirtualRanks(size, MICRO_BATCH).run(canvas)):
            demand(
                torch.equal(found, expected),
                f"rank {rank} of {size} has another canvas than a single rank: `prepare` must be the same on every rank, with "
                "noise from step.noise and none of torch's own, and nothing may depend on which windows `energy` has seen",
            )


def runs_do_not_share_memory(make: Make) -> None:
    """Two runs of one guidance that take turns are each what they are alone."""
    shared = make()
    runs = [_run(shared, seed=seed) for seed in (0, 1)]
    while not all(run.done for run in runs):
        for run in runs:
            run.step()
    for run in runs:
        demand(
            torch.equal(run.canvas, _finished(_run(make(), seed=run.seed))),
            f"of two runs that take turns with one {type(shared).__name__}, that of seed {run.seed} is not what it is alone: "
            "keep what a run remembers in the memory that `begin` returns, never on the guidance, its class or its module, "
            "and take noise from step.noise",
        )


def memory_can_be_saved(make: Make) -> None:
    """The memory is made of tensors and numbers, and a run restored half way goes on to the same bits."""
    run = _run(make())
    name, memory = type(run.guided[0][0]).__name__, run.guided[0][1]
    for _ in range(STEPS // 2):
        run.step()
    for strange in _strange(memory):
        raise ConformanceError(
            f"the memory of {name} holds a {type(strange).__name__}, which a checkpoint cannot: `begin` must return None, or "
            "nested dicts and lists of tensors, numbers and texts"
        )
    state, expected = run.state(), _finished(run)
    resumed = _run(make())
    resumed.restore(state)
    demand(
        torch.equal(_finished(resumed), expected),
        f"a run with {name} that is restored half way does not go on as the unbroken one: all that `prepare` remembers must "
        "be written into the memory that `begin` returned",
    )


def zero_weight_is_absent(make: Make) -> None:
    """With weight 0 the guidance is asleep at every level, and the run has the bits of one without it."""
    guidance: Any = make()
    name, absent = type(guidance).__name__, replace(guidance, weight=0.0)
    for level in _levels():
        demand(
            absent.strength(level) == 0,
            f"{name} with weight 0 has strength {absent.strength(level)} at step {level.step} of {level.steps}: multiply the "
            "strength by the weight rather than the energy, so that 0 costs nothing",
        )
    demand(
        torch.equal(_finished(_run(absent)), _finished(_run())),
        f"a run with {name} of weight 0 is not the run without it: `begin` must leave its arguments alone",
    )


# --- the world they are checked in --------------------------------------------------------------------------


def _run(*guidances: Guidance, runtime: Runtime | None = None, seed: int = 0) -> Run:
    return toy_run(
        (16, 24),
        denoiser=ToyDenoiser((8, 8), channels=4, prediction="v_prediction"),
        codec=ToyCodec(),
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
    """A guidance at the first level that it is awake at, prepared."""

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
        """The energy, and its gradients at x and x0, taken at leaves as the run takes them."""
        x, x0 = seen.x.clone().requires_grad_(), seen.x0.clone().requires_grad_()
        energy = self.guidance.energy(replace(seen, x=x, x0=x0), index, self.context)
        if not energy.requires_grad:
            return energy, torch.zeros_like(x), torch.zeros_like(x0)
        gradients = torch.autograd.grad(energy.sum(), (x, x0), allow_unused=True, materialize_grads=True)
        return energy.detach(), *gradients


def _moves_nothing(guidance: Guidance) -> bool:
    """Whether the guidance is one that may know the canvas, and is asleep at all steps of a run."""
    if type(guidance).known is Guidance.known:
        return False
    try:
        return all(guidance.strength(level) == 0 for level in _run().solver.levels if level.main)
    except Exception:  # whatever a plugin does: the check of its strength reports it
        return False


def _moment(guidance: Guidance) -> _Moment:
    return _prepared(_awake(guidance, precision="64-true"))


def _awake(guidance: Guidance, precision: Precision = "32-true") -> Run:
    """A run at the first level that the guidance is awake at."""
    run = _run(guidance, runtime=Runtime(accelerator="cpu", precision=precision, micro_batch=MICRO_BATCH))
    while not run.done:
        if guidance.strength(run.level) != 0 and run.known() is None:
            return run
        run.step()
    raise ConformanceError(
        f"{guidance} is asleep at all {STEPS} steps of a run, so there is nothing to check: "
        "make it with settings under which its strength is not 0"
    )


@torch.no_grad()
def _prepared(run: Run) -> _Moment:
    ((guidance, memory),) = run.guided
    step = run.view(0, "prepare")
    return _Moment(guidance, step, guidance.prepare(step, memory))


def _settings(guidance: Guidance) -> object:
    return guidance if is_dataclass(guidance) else vars(guidance)


def _levels() -> list[Level]:
    """Those of runs of 1, 4 and 50 steps, of diffusion and of flow matching, whose first level holds no signal at all."""
    levels: list[Level] = []
    for steps in (1, 4, 50):
        levels += ToyScheduler().begin(steps, torch.device("cpu"), Training()).levels[:-1]
        levels += [Level(k, 1000 * (1 - k / steps), k / steps, 1 - k / steps, k, steps) for k in range(steps)]
    return levels


def _strange(memory: object) -> Iterator[object]:
    """What a checkpoint cannot hold."""
    for node in walk(memory):
        kept = (Tensor, int, float, str, NoneType)
        if isinstance(node.value, Mapping):
            yield from (key for key in node.value if not isinstance(key, kept))
        elif not isinstance(node.value, (*kept, list, tuple)):
            yield node.value
