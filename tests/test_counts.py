"""What a step costs: exact numbers of forward and backward passes through the denoiser."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from panokit import (
    Denoiser,
    DiffusersScheduler,
    Estimate,
    Grid,
    Guidance,
    Layout,
    Level,
    Model,
    Run,
    Runtime,
    Sampler,
    Scene,
    Step,
    Training,
    Windows,
)
from panokit.backbones.diffusers.model import UNetDenoiser
from panokit.layout import Overlap
from panokit.testing.toys import Pull, ToyDenoiser, ToyScheduler, toy_run
from panokit_multidiffusion import MultiDiffusion
from panokit_spotdiffusion import SpotDiffusion


def toy(run: Run) -> ToyDenoiser:
    assert isinstance(run.parts.denoiser, ToyDenoiser)
    return run.parts.denoiser


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
@pytest.mark.parametrize(("size", "wrap"), [((4, 4), False), ((4, 9), False), ((7, 9), False), ((6, 8), True)])
def test_a_step_denoises_every_window_once(size: tuple[int, int], wrap: bool, micro_batch: int) -> None:
    run = toy_run(size, wrap=wrap, micro_batch=micro_batch)
    for done in (1, 2, 3):
        run.step()
        assert sum(toy(run).forwards) == done * len(run.windows)
    assert len(toy(run).forwards) == 3 * -(-len(run.windows) // micro_batch)
    assert toy(run).backwards == []


@pytest.mark.parametrize(("scale", "rows_a_window"), [(7.5, 2), (1.0, 1)])
def test_rows_of_the_unet_are_windows_and_twice_that_with_a_negative_prompt(
    tiny: Model, scale: float, rows_a_window: int
) -> None:
    assert isinstance(tiny.denoiser, UNetDenoiser)
    rows: list[int] = []

    def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows.append(len(args[0]))

    sampler = Sampler(
        tiny,
        scheduler=DiffusersScheduler("ddim"),
        fuser=MultiDiffusion(),
        runtime=Runtime(accelerator="cpu", micro_batch=2),
    )
    hook = tiny.denoiser.unet.register_forward_pre_hook(count, with_kwargs=True)
    with hook:
        run = sampler.begin("a lake", height=16, width=34, steps=2, guidance_scale=scale)
        assert rows == []
        while not run.done:
            run.step()
    assert len(run.windows) == 4
    assert sum(rows) == 2 * 4 * rows_a_window
    assert max(rows) == 2 * rows_a_window


def test_the_usual_panorama_costs_45_windows_a_step() -> None:
    denoiser = ToyDenoiser((64, 64), channels=1)
    run = toy_run((128, 512), denoiser=denoiser, stride=32, steps=1)
    run.step()
    assert sum(denoiser.forwards) == 45


@pytest.mark.parametrize("count", [1, 2, 3])
def test_full_guidances_cost_two_forwards_and_one_backward_a_window_however_many_there_are(count: int) -> None:
    run = toy_run(guidances=[Pull("full", to=k) for k in range(count)], steps=1, micro_batch=3)
    run.step()
    assert sum(toy(run).forwards) == 2 * len(run.windows)
    assert sum(toy(run).backwards) == len(run.windows)


@pytest.mark.parametrize("count", [1, 2])
def test_identity_guidances_cost_no_pass_of_their_own(count: int) -> None:
    run = toy_run(guidances=[Pull("identity", to=k) for k in range(count)], steps=1, micro_batch=3)
    run.step()
    assert sum(toy(run).forwards) == len(run.windows)
    assert toy(run).backwards == []


def test_identity_beside_full_costs_what_full_costs() -> None:
    run = toy_run(guidances=[Pull("identity"), Pull("full")], steps=1)
    run.step()
    assert sum(toy(run).forwards) == 2 * len(run.windows)
    assert sum(toy(run).backwards) == len(run.windows)


def test_a_guidance_that_falls_asleep_costs_nothing_from_then_on() -> None:
    run = toy_run(guidances=[Pull("full", until=1)], steps=3)
    costs = []
    for _ in range(3):
        before = sum(toy(run).forwards), sum(toy(run).backwards)
        run.step()
        costs.append((sum(toy(run).forwards) - before[0], sum(toy(run).backwards) - before[1]))
    n = len(run.windows)
    assert costs == [(2 * n, n), (n, 0), (n, 0)]


@pytest.mark.parametrize("steps", [1, 3])
def test_inner_stages_of_a_solver_are_denoised_and_never_guided(steps: int) -> None:
    run = toy_run(scheduler=ToyScheduler(corrector=True), guidances=[Pull("full")], steps=steps)
    for _ in range(steps):
        run.step()
    assert run.done
    n, inner = len(run.windows), steps - 1
    assert sum(toy(run).forwards) == 2 * steps * n + inner * n
    assert sum(toy(run).backwards) == steps * n


@dataclass(frozen=True)
class Watched(Guidance):
    """Writes down what is asked of it."""

    jacobian: Literal["full", "identity"] = "full"
    weights: tuple[float, ...] = (1.0,)
    calls: list[str] = field(default_factory=list, repr=False, compare=False)

    def begin(self, grid: Grid, levels: Sequence[Level]) -> str:
        self.calls.append("begin")
        return "memory"

    def prepare(self, step: Step, memory: Any) -> str:
        self.calls.append(f"prepare {step.level.step} {memory}")
        return "context"

    def strength(self, level: Level) -> float:
        return self.weights[level.step]

    def energy(self, seen: Estimate, index: Sequence[int], context: Any) -> Tensor:
        self.calls.append(f"energy {seen.level.step} {list(index)} {context}")
        return seen.x0.flatten(1).sum(1)


@pytest.mark.parametrize("jacobian", ["full", "identity"])
def test_a_guidance_begins_once_prepares_once_a_step_and_sees_each_window_once(jacobian: Literal["full", "identity"]) -> None:
    watched = Watched(jacobian, weights=(1.0, 0.0, 0.5))
    run = toy_run((4, 8), guidances=[watched], steps=3, micro_batch=2)
    for _ in range(3):
        run.step()
    assert watched.calls == [
        "begin",
        "prepare 0 memory",
        "energy 0 [0] context",
        "energy 0 [1, 2] context",
        "prepare 2 memory",
        "energy 2 [0] context",
        "energy 2 [1, 2] context",
    ]


@dataclass(frozen=True)
class Asking(Guidance):
    """Looks at some windows and at a smaller canvas, as a real guidance does, and changes nothing."""

    def prepare(self, step: Step, memory: Any) -> None:
        step.look([0, 2])
        small = Grid((4, 6), (4, 4), (2, 2), (False, False))
        assert len(small) == 2
        step.estimate(step.canvas[:, :4, :6], small)

    def strength(self, level: Level) -> float:
        return 1.0

    def energy(self, seen: Estimate, index: Sequence[int], context: Any) -> Tensor:
        return torch.zeros(len(index))


def test_looking_and_estimating_cost_one_forward_for_each_window_asked_about() -> None:
    run = toy_run(guidances=[Asking()], steps=1)
    run.step()
    assert toy(run).forwards[:2] == [2, 2]
    assert sum(toy(run).forwards) == 2 + 2 + len(run.windows)  # a window whose energy has no gradient is not denoised again


# --- operations of torch outside the model ------------------------------------------------------------------


class Operations(TorchDispatchMode):
    """Counts the operations that torch computes."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


class Same(Denoiser):
    """A network that returns its input."""

    window, channels, training = (64, 64), 4, Training()

    def modules(self) -> list[Any]:
        return []

    def encode(self, scene: Scene) -> None:
        return None

    def condition(self, embeddings: Any, windows: Windows, index: Sequence[int]) -> None:
        return None

    def __call__(self, x: Tensor, level: Level, condition: Any) -> Tensor:
        return x


@dataclass(frozen=True)
class Shifting(Layout):
    """The windows of SpotDiffusion as close as overlapping ones, on a ring or not."""

    ring: bool

    def begin(self, size: Any, window: Any, stride: Any, wrap: Any, seed: int) -> Windows:
        return SpotDiffusion().begin(size, window, stride, (False, self.ring), seed)


@pytest.mark.parametrize(
    ("layout", "micro_batch", "most"),
    [
        (Overlap(), 1, 6.1),  # as many as before there were other layouts
        (Overlap(), 8, 5.3),
        (Shifting(False), 1, 20),
        (Shifting(False), 8, 20),
        (Shifting(True), 1, 20),
        (Shifting(True), 8, 20),
    ],
    ids=str,
)
def test_a_window_step_takes_few_operations_outside_the_model(layout: Layout, micro_batch: int, most: float) -> None:
    run = toy_run(
        (64, 256),
        denoiser=Same(),
        scheduler=DiffusersScheduler("ddim"),
        layout=layout,
        fuser=MultiDiffusion(),
        stride=8,
        steps=6,
        runtime=Runtime(accelerator="cpu", micro_batch=micro_batch),
    )
    run.step()  # the first one makes what later ones use again
    window_steps = 0
    with Operations() as operations:
        while not run.done:
            window_steps += len(run.windows.at(run.level))
            run.step()
    assert operations.count / window_steps <= most
