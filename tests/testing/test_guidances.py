"""The checks of guidances: a sound one passes them all, and each is the first to fail on one that breaks its rule."""

import itertools
import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor

from panokit import Codec, Estimate, Grid, Guidance, Known, Level, Step, Windows
from panokit.testing import Check, checks, conforms, guidances, run_checks
from panokit.testing.toys import Pull


@conforms(Pull)
def test_a_guidance_through_the_denoiser(check: Check) -> None:
    check()


@conforms(lambda: Pull("identity", weight=0.3, until=3))
def test_a_guidance_of_the_clean_estimate(check: Check) -> None:
    check()


@dataclass(frozen=True)
class Following(Guidance):
    """Uses all that a guidance may: memory, noise, looks, a coarse canvas, and the codec; and keeps every rule."""

    jacobian: Literal["full", "identity"] = "full"
    weight: float = 0.1

    def begin(self, grid: Grid, levels: Sequence[Level]) -> dict[str, Any]:
        return {"colour": torch.zeros(3, dtype=torch.float64), "seen": [], "note": None}

    def prepare(self, step: Step, memory: dict[str, Any]) -> tuple[Codec, Tensor, Tensor, Grid]:
        assert step.codec is not None
        colour = step.codec.decode(step.look([len(step.windows) // 2]).x0).mean((0, 2, 3))
        memory["seen"].append(step.level.index)
        memory["colour"] += (colour - memory["colour"]) / len(memory["seen"])
        coarse = step.canvas[:, ::2, ::2] + 0.1 * step.noise((step.windows.size[0] // 2, step.windows.size[1] // 2))
        low = step.estimate(coarse, step.windows.scaled(2)).x0
        return step.codec, memory["colour"].clone(), low, step.windows.coarsened(2)

    def strength(self, level: Level) -> float:
        return self.weight * 0.9**level.step

    def energy(self, seen: Estimate, index: Sequence[int], context: tuple[Codec, Tensor, Tensor, Grid]) -> Tensor:
        codec, colour, low, grid = context
        apart = torch.nn.functional.avg_pool2d(seen.prev, 2) - grid.crop(low, index)
        stain = codec.decode(seen.x0).mean((2, 3)) - colour
        return apart.square().flatten(1).sum(1) + stain.square().sum(1)


@pytest.mark.parametrize("jacobian", ["full", "identity"])
def test_a_guidance_that_uses_everything(jacobian: Literal["full", "identity"]) -> None:
    assert [outcome for outcome in run_checks(lambda: Following(jacobian)) if outcome.problem] == []


# --- guidances that break one rule each ---------------------------------------------------------------------


@dataclass(frozen=True)
class Steady(Guidance):
    """Sound, for others to differ from."""

    def strength(self, level: Level) -> float:
        return 0.05

    def energy(self, seen: Estimate, index: Sequence[int], context: Any) -> Tensor:
        return seen.x0.square().flatten(1).sum(1)


@dataclass(frozen=True)
class Sleeping(Steady):
    def strength(self, level: Level) -> float:
        return 0.0


@dataclass(frozen=True)
class KnowsAnything(Sleeping):
    """Sound: it moves no window, and knows the canvas for some steps."""

    def known(self, step: Step, memory: Any) -> Known | None:
        return Known(0.5 * step.canvas) if step.level.step in (2, 3) else None


@dataclass(frozen=True)
class KnowsTooLate(Sleeping):
    def known(self, step: Step, memory: Any) -> Known | None:
        return Known(0.5 * step.canvas) if step.level.step == guidances.STEPS else None


@dataclass(frozen=True)
class KnowsInDouble(Steady):
    def known(self, step: Step, memory: Any) -> Known | None:
        return Known(step.canvas.double()) if step.level.step < 2 else None


@dataclass(frozen=True)
class KnowsNothing(Steady):
    def known(self, step: Step, memory: Any) -> Known | None:
        return Known(step.canvas / 0) if step.level.step == 2 else None


@dataclass(frozen=True)
class KnowsBare(Steady):
    def known(self, step: Step, memory: Any) -> Any:
        return step.canvas


@dataclass(frozen=True)
class KnowsInNumbers(Steady):
    def known(self, step: Step, memory: Any) -> Known | None:
        return Known(step.canvas, torch.ones(step.windows.size))


@dataclass(frozen=True)
class KnowsAPart(Steady):
    """Sound: it knows the left half, and moves windows all the same."""

    def known(self, step: Step, memory: Any) -> Known | None:
        where = torch.zeros(step.windows.size, dtype=torch.bool)
        where[:, : step.windows.size[1] // 2] = True
        return Known(0 * step.canvas, where)


@conforms(KnowsAPart)
def test_a_guidance_that_knows_a_part(check: Check) -> None:
    check()


@dataclass(frozen=True)
class KnowsByWriting(Steady):
    def known(self, step: Step, memory: Any) -> Known | None:
        step.canvas[:, 0] = 0.0
        return None


@dataclass(frozen=True)
class OneForAll(Steady):
    def energy(self, seen: Estimate, index: Sequence[int], context: Any) -> Tensor:
        return seen.x0.square().sum()


@dataclass(frozen=True)
class NoTensor(Steady):
    def energy(self, seen: Estimate, index: Sequence[int], context: Any) -> Any:
        return [float(window.square().sum()) for window in seen.x0]


@dataclass(frozen=True)
class InFloat32(Steady):
    def energy(self, seen: Estimate, index: Sequence[int], context: Any) -> Tensor:
        return super().energy(seen, index, context).float()


@dataclass(frozen=True)
class TensorStrength(Steady):
    def strength(self, level: Level) -> Any:
        return torch.tensor(0.05)


@dataclass(frozen=True)
class SignalToNoise(Steady):
    def strength(self, level: Level) -> float:
        return 0.05 * level.sigma / level.alpha


@dataclass(frozen=True)
class Overflowing(Steady):
    def strength(self, level: Level) -> float:
        return 1 / level.alpha if level.alpha else math.inf


@dataclass(frozen=True)
class Dice(Steady):
    def strength(self, level: Level) -> float:
        return random.random()


@dataclass(frozen=True)
class BatchMean(Steady):
    def energy(self, seen: Estimate, index: Sequence[int], context: Any) -> Tensor:
        return (seen.x0 - seen.x0.mean(0)).square().flatten(1).sum(1)


@dataclass(frozen=True)
class ByPosition(Steady):
    """Takes what belongs to window number k for the k-th that it is given."""

    def prepare(self, step: Step, memory: Any) -> Tensor:
        return step.windows.crop(step.canvas)

    def energy(self, seen: Estimate, index: Sequence[int], context: Tensor) -> Tensor:
        return (seen.x0 - context[: len(index)]).square().flatten(1).sum(1)


@dataclass(frozen=True)
class LeakingGradient(Steady):
    """Energies are each window's own, gradients are not."""

    def energy(self, seen: Estimate, index: Sequence[int], context: Any) -> Tensor:
        mean = seen.x0.mean(0).square().sum()
        return super().energy(seen, index, context) + mean - mean.detach()


@dataclass(frozen=True)
class Detached(Steady):
    def energy(self, seen: Estimate, index: Sequence[int], context: Any) -> Tensor:
        return (seen.x0.detach() * seen.x).flatten(1).sum(1)


@dataclass(frozen=True)
class Untracked(Steady):
    def energy(self, seen: Estimate, index: Sequence[int], context: Any) -> Tensor:
        return torch.as_tensor((seen.x0.detach().numpy() ** 2).reshape(len(index), -1).sum(1))


@dataclass(frozen=True)
class WritesToX0(Steady):
    def energy(self, seen: Estimate, index: Sequence[int], context: Any) -> Tensor:
        energy = seen.x0.flatten(1).sum(1)
        seen.x0.data.clamp_(-1, 1)
        return energy


@dataclass(frozen=True)
class WritesToCanvas(Steady):
    def prepare(self, step: Step, memory: Any) -> None:
        step.canvas.mul_(0.99)


@dataclass(frozen=True)
class WritesToContext(Steady):
    def prepare(self, step: Step, memory: Any) -> dict[str, Tensor]:
        return {"seen": torch.zeros(())}

    def energy(self, seen: Estimate, index: Sequence[int], context: dict[str, Tensor]) -> Tensor:
        context["seen"] += len(index)
        return super().energy(seen, index, context)


@dataclass(frozen=True)
class WritesToItself(Steady):
    log: list[int] = field(default_factory=list)

    def prepare(self, step: Step, memory: Any) -> None:
        self.log.append(step.level.index)


@dataclass(frozen=True)
class OwnNoise(Steady):
    def prepare(self, step: Step, memory: Any) -> Tensor:
        return torch.randn(step.canvas.shape[0], 1, 1).to(step.canvas)

    def energy(self, seen: Estimate, index: Sequence[int], context: Tensor) -> Tensor:
        return (seen.x0 - context).square().flatten(1).sum(1)


@dataclass(frozen=True)
class CountsItsWindows(Steady):
    """Prepares what depends on which windows this rank was given."""

    def prepare(self, step: Step, memory: Any) -> float:
        return len(vars(self).get("_seen", ())) / 100

    def energy(self, seen: Estimate, index: Sequence[int], context: float) -> Tensor:
        object.__setattr__(self, "_seen", {*vars(self).get("_seen", ()), *index})
        return (seen.x0 - context).square().flatten(1).sum(1)


@dataclass(frozen=True)
class EstimatesOnOneRank(Steady):
    """What would leave processes waiting for each other."""

    turns: ClassVar = itertools.cycle([True, False])

    def prepare(self, step: Step, memory: Any) -> None:
        if next(self.turns):
            step.estimate(step.canvas, Grid(step.windows.size, step.windows.window, step.windows.window, step.windows.wrap))


@dataclass(frozen=True)
class KeepsTheFirst(Steady):
    """The second of two runs is led by the first."""

    def prepare(self, step: Step, memory: Any) -> Tensor:
        if "_anchor" not in vars(self):
            object.__setattr__(self, "_anchor", step.look([3]).x0)
        return vars(self)["_anchor"]

    def energy(self, seen: Estimate, index: Sequence[int], context: Tensor) -> Tensor:
        return (seen.x0 - context).square().flatten(1).sum(1)


@dataclass(frozen=True)
class KeepsTheLast(Steady):
    """The first of two runs goes on with what the second began."""

    def begin(self, grid: Grid, levels: Sequence[Level]) -> None:
        object.__setattr__(self, "_steps", 0)

    def prepare(self, step: Step, memory: None) -> int:
        object.__setattr__(self, "_steps", vars(self)["_steps"] + 1)
        return vars(self)["_steps"]

    def energy(self, seen: Estimate, index: Sequence[int], context: int) -> Tensor:
        return (seen.x0 - context).square().flatten(1).sum(1)


class Notes:
    """What no checkpoint knows."""


@dataclass(frozen=True)
class StrangeMemory(Steady):
    def begin(self, grid: Grid, levels: Sequence[Level]) -> dict[str, list[Notes]]:
        return {"notes": [Notes()]}


_BESIDE: dict[int, tuple[Any, int]] = {}


@dataclass(frozen=True)
class MemoryBeside(Steady):
    """Counts steps for each run apart, and outside its memory."""

    def begin(self, grid: Grid, levels: Sequence[Level]) -> dict[str, Any]:
        return {}

    def prepare(self, step: Step, memory: dict[str, Any]) -> int:
        _, steps = _BESIDE.get(id(memory), (memory, 0))
        _BESIDE[id(memory)] = memory, steps + 1  # held on to, so that its id is no other's
        return steps

    def energy(self, seen: Estimate, index: Sequence[int], context: int) -> Tensor:
        return (seen.x0 - context).square().flatten(1).sum(1)


@dataclass(frozen=True)
class RemembersWindows(Steady):
    """Has a number for each window that there is when the run begins."""

    def begin(self, windows: Windows, levels: Sequence[Level]) -> Tensor:
        return torch.zeros(len(windows), dtype=torch.float64)

    def prepare(self, step: Step, memory: Tensor) -> Tensor:
        return memory

    def energy(self, seen: Estimate, index: Sequence[int], context: Tensor) -> Tensor:
        return super().energy(seen, index, None) + context[list(index)].to(seen.x0)


@dataclass(frozen=True)
class WeighsTheEnergy(Steady):
    weight: float = 2.0

    def energy(self, seen: Estimate, index: Sequence[int], context: Any) -> Tensor:
        return self.weight * super().energy(seen, index, context)


@dataclass(frozen=True)
class ChangesTheLevels(Steady):
    """Of weight 0 it is asleep, and has changed what the run stands on before."""

    weight: float = 2.0

    def begin(self, grid: Grid, levels: Any) -> None:
        levels[1] = replace(levels[1], sigma=0.9)

    def strength(self, level: Level) -> float:
        return 0.05 * self.weight


@dataclass(frozen=True)
class HoldsAFunction(Steady):
    by: Callable[[float], float] = field(default=lambda x: 2 * x)


def double(x: float) -> float:
    return 2 * x


@dataclass(frozen=True)
class ShowsAnAddress(Steady):
    by: Callable[[float], float] = double


class NoValue(Steady):
    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = None


@dataclass(frozen=True)
class HidesItsClass(Steady):
    def __repr__(self) -> str:
        return "a guidance"


@dataclass(frozen=True)
class HidesASetting(Steady):
    spread: float = 0.25

    def __repr__(self) -> str:
        return "HidesASetting()"


@pytest.mark.usefixtures("unannotated")  # as those run who break a rule; it takes half the time
@pytest.mark.parametrize(
    ("broken", "check", "advice"),
    [
        (Sleeping, guidances.wakes_up, r"Sleeping\(\) is asleep at all 8 steps.*: choose settings with a strength above 0"),
        (
            KnowsTooLate,
            guidances.wakes_up,
            r"KnowsTooLate\(\) is asleep and knows no canvas at all 8 steps.*`known` returns a canvas",
        ),
        (
            OneForAll,
            guidances.shape_and_dtype,
            r"returned shape \(\) for 4 windows.* one number for each window.*sum over all axes",
        ),
        (
            NoTensor,
            guidances.shape_and_dtype,
            r"returned a list for 4 windows; it must return one number for each window, \(4,\)",
        ),
        (InFloat32, guidances.shape_and_dtype, r"returned torch.float32 .* windows in torch.float64.*make constants with"),
        (TensorStrength, guidances.strength_is_finite_at_every_level, "strength at step 0 .* is a Tensor; .*use math"),
        (SignalToNoise, guidances.strength_is_finite_at_every_level, "raised ZeroDivisionError.*handle levels with alpha 0"),
        (Overflowing, guidances.strength_is_finite_at_every_level, r"\(alpha 0\) is inf; it must be finite: handle levels"),
        (
            Dice,
            guidances.strength_is_finite_at_every_level,
            "in a second call; it must depend only on the level and the settings",
        ),
        (
            KnowsInDouble,
            guidances.known_is_a_clean_canvas,
            r"returned an x0 that is a torch.float64 \(4, 16, 24\) on cpu at step 0 .*float32",
        ),
        (KnowsNothing, guidances.known_is_a_clean_canvas, "on cpu with NaN or infinity at step 2 .*the clean canvas, finite"),
        (KnowsBare, guidances.known_is_a_clean_canvas, "returned a Tensor; it must return None, Known"),
        (KnowsInNumbers, guidances.known_is_a_clean_canvas, "returned a where that is a torch.float32 .*one truth value"),
        (KnowsByWriting, guidances.known_is_a_clean_canvas, "known wrote to step.canvas.*: work on a copy"),
        (BatchMean, guidances.windows_do_not_see_each_other, "the energy of BatchMean differs.*reduce over all axes but"),
        (ByPosition, guidances.windows_do_not_see_each_other, "the energy of ByPosition.*part of the context by `index`"),
        (LeakingGradient, guidances.windows_do_not_see_each_other, "the gradient at x0 of LeakingGradient differs"),
        (Detached, guidances.gradient_matches_energy, r"direction of seen.x0 the energy of Detached .*without detach"),
        (Untracked, guidances.gradient_matches_energy, r"its gradient gives \[0.0, .*use only differentiable operations"),
        (WritesToX0, guidances.leaves_arguments_alone, "wrote to seen.x or seen.x0.*without a trailing underscore"),
        (WritesToCanvas, guidances.leaves_arguments_alone, "prepare wrote to step.canvas.*: work on a copy"),
        (WritesToContext, guidances.leaves_arguments_alone, "energy wrote to its context.*: write to it in `prepare`"),
        (WritesToItself, guidances.never_changes, "changed the settings of the WritesToItself.*memory that `begin`"),
        (OwnNoise, guidances.same_for_any_number_of_ranks, "rank . of 2 has another canvas.*noise must come from step.noise"),
        (CountsItsWindows, guidances.same_for_any_number_of_ranks, "depend on the windows that `energy` has seen"),
        (
            EstimatesOnOneRank,
            guidances.same_for_any_number_of_ranks,
            "waits for windows.*make the same calls of step.estimate on every rank",
        ),
        (
            KeepsTheFirst,
            guidances.runs_do_not_share_memory,
            "the run with seed 1 makes another.*memory that `begin` returns, never on",
        ),
        (
            KeepsTheLast,
            guidances.runs_do_not_share_memory,
            "the run with seed 0 makes another.*memory that `begin` returns, never on",
        ),
        (
            StrangeMemory,
            guidances.memory_can_be_saved,
            "contains a Notes, which a checkpoint cannot hold: `begin` must return None, or",
        ),
        (
            MemoryBeside,
            guidances.memory_can_be_saved,
            "restored half way.*must keep all that it remembers in the memory that `begin`",
        ),
        (RemembersWindows, guidances.follows_moving_windows, "IndexError: .* is out of bounds"),
        (WeighsTheEnergy, guidances.zero_weight_is_absent, "with weight 0 has strength 0.05.*multiply the strength by"),
        (
            ChangesTheLevels,
            guidances.zero_weight_is_absent,
            "of weight 0 makes another canvas than a run without it: `begin` may not change",
        ),
        (HoldsAFunction, guidances.pickles_and_reprs, "cannot be pickled.*top level of a module, no lambdas"),
        (ShowsAnAddress, guidances.pickles_and_reprs, "has a memory address.*define __repr__ for the objects in it"),
        (NoValue, guidances.pickles_and_reprs, r"not equal to its own copy by pickle: make it a @dataclass\(frozen=True\)"),
        (HidesItsClass, guidances.pickles_and_reprs, "the repr a guidance does not name its class: it must show HidesItsClass"),
        (HidesASetting, guidances.pickles_and_reprs, "does not show that spread is 0.25: use the repr of @dataclass"),
    ],
    ids=lambda value: getattr(value, "__name__", "says"),
)
def test_the_check_of_a_rule_is_the_first_to_fail_where_the_rule_is_broken(
    broken: Callable[[], Guidance], check: Callable[..., None], advice: str
) -> None:
    name, problem = next(outcome for outcome in run_checks(broken) if outcome.problem)
    assert name == check.__name__
    assert re.search(advice, problem), problem
    assert "\n" not in problem


def test_every_check_is_tried_by_a_broken_guidance() -> None:
    mark = test_the_check_of_a_rule_is_the_first_to_fail_where_the_rule_is_broken.pytestmark[0]
    tried = {check.__name__ for _, check, _ in mark.args[1]}
    assert tried == {check.name for check in checks(Pull)}


def test_a_guidance_that_only_knows_is_not_asked_about_its_energy() -> None:
    assert [outcome for outcome in run_checks(KnowsAnything) if outcome.problem] == []
    assert {check.name for check in checks(Steady)} - {check.name for check in checks(KnowsAnything)} == {
        "shape_and_dtype",
        "windows_do_not_see_each_other",
        "gradient_matches_energy",
        "leaves_arguments_alone",
    }


@dataclass(frozen=True)
class KnowsAndRaises(KnowsAnything):
    def strength(self, level: Level) -> float:
        raise ValueError("no strength")


def test_a_guidance_whose_strength_raises_is_reported_and_not_raised() -> None:
    _, problem = next(outcome for outcome in run_checks(KnowsAndRaises) if outcome.problem)
    assert problem.startswith("ValueError: no strength")


def test_a_guidance_without_a_weight_is_not_asked_about_one() -> None:
    assert {check.name for check in checks(Pull)} - {check.name for check in checks(Steady)} == {"zero_weight_is_absent"}
