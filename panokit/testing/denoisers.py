"""What a denoiser promises: windows that are predicted alike in any company, with a gradient, from frozen networks.

It is checked on the CPU in float32, with classifier-free guidance, on a strip of three windows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from panokit.denoiser import Denoiser, Prompt, Regions
from panokit.grid import Grid
from panokit.runtime import Runtime
from panokit.scheduler import Level
from panokit.testing.demands import contents, demand, distance, unchanged

Make = Callable[[], Denoiser]

ROUNDING = 1e-4
"""What a network in float32 may differ by when its batch is another."""


def checks(denoiser: Denoiser) -> tuple[Callable[[Make], None], ...]:
    """Those that apply to a denoiser, the most telling first."""
    return (
        shape_and_dtype,
        frozen,
        differentiable,
        batch_split_invariance,
        condition_per_window,
        leaves_x_alone,
    )


def shape_and_dtype(make: Make) -> None:
    """A prediction has the shape, the type and the device of its windows."""
    world = _world(make())
    found = world.predict(world.x)
    for what in ("shape", "dtype", "device"):
        got, expected = getattr(found, what), getattr(world.x, what)
        demand(
            got == expected,
            f"{world.name} returned {what} {got} for windows of {what} {expected}; a prediction is like its windows: convert "
            "it with `.to(x)`, and cut off what a model predicts besides",
        )


def frozen(make: Make) -> None:
    """Once its modules are placed, nothing in it wants a gradient, and it predicts the same again."""
    world = _world(make())
    found = world.predict(world.x)
    demand(
        not found.requires_grad,
        f"a prediction of {world.name} has a graph though its windows ask for none: a network has trainable parameters, so "
        "name all of them in `modules`, which the runtime freezes",
    )
    demand(
        torch.equal(found, world.predict(world.x)),
        f"{world.name} predicts otherwise when asked again: a network is in training mode, so name all of them in `modules`, "
        "which the runtime puts into eval mode, and draw no noise",
    )


def differentiable(make: Make) -> None:
    """A gradient flows from the prediction to the windows, finite and not 0."""
    world = _world(make())
    x = world.x.clone().requires_grad_()
    found = world.predict(x)
    advice = "guidances go through it: stay with operations of torch, without no_grad, inference_mode or detach"
    demand(found.requires_grad, f"a prediction of {world.name} has no gradient, and {advice}")
    (gradient,) = torch.autograd.grad(found.sum(), x, materialize_grads=True)
    demand(
        bool(gradient.isfinite().all() and gradient.any()),
        f"the gradient of {world.name}'s prediction is {'0 everywhere' if not gradient.any() else 'not finite'}, and {advice}",
    )


def batch_split_invariance(make: Make) -> None:
    """Windows are predicted together as each of them alone, to rounding."""
    world = _world(make())
    together = world.predict(world.x)
    alone = torch.cat([world.predict(world.x[i : i + 1], [i]) for i in range(len(world.grid))])
    demand(
        distance(together, alone) < ROUNDING,
        f"{world.name} predicts windows together otherwise than each alone (off by {distance(together, alone):.2g} of the "
        "largest magnitude): nothing may be shared along the batch, neither a mean nor noise",
    )


def condition_per_window(make: Make) -> None:
    """The condition of some windows is their part of the condition of all, also with a prompt per region."""
    halves = Regions((((0, 0, 0.5, 1), "a lake at night"),), elsewhere="a city at noon")
    denoiser = make()
    world = _world(denoiser, prompt=halves if len(denoiser.window) == 2 else "a lake at night")
    some = [2, 0]
    together = world.predict(world.x)[some]
    found = world.predict(world.x[some], some)
    demand(
        distance(found, together) < ROUNDING,
        f"{world.name} conditions the windows {some} otherwise than among all (off by {distance(found, together):.2g} of the "
        "largest magnitude): `condition` must give window number index[k] its own text, as Regions.assign(grid, index) does",
    )


def leaves_x_alone(make: Make) -> None:
    """The windows are not written to."""
    world = _world(make())
    before = contents(world.x)
    world.denoiser(world.x, world.level, world.condition(range(len(world.grid))))
    demand(
        unchanged(before, world.x),
        f"{world.name} wrote to the windows that it was given: use operations without a trailing underscore",
    )


@final
@dataclass(frozen=True)
class _World:
    """A denoiser, placed, and windows for it."""

    denoiser: Denoiser
    grid: Grid
    level: Level
    embeddings: Any
    x: Tensor

    @property
    def name(self) -> str:
        return type(self.denoiser).__name__

    def condition(self, index: Sequence[int]) -> Any:
        return self.denoiser.condition(self.embeddings, self.grid, index)

    def predict(self, x: Tensor, index: Sequence[int] | None = None) -> Any:
        """Its prediction for a copy of windows, all of them unless given."""
        return self.denoiser(x.clone(), self.level, self.condition(range(len(self.grid)) if index is None else index))


def _world(denoiser: Denoiser, prompt: Prompt = "a lake") -> _World:
    runtime = Runtime(accelerator="cpu")
    for module in denoiser.modules():
        runtime.place(module)
    *others, last = denoiser.window
    axes = len(denoiser.window)
    stride = tuple(max(1, cells // 2) for cells in denoiser.window)
    grid = Grid((*others, 2 * last), denoiser.window, stride, (False,) * axes)
    training = denoiser.training
    alpha = 0.4 if training.prediction == "flow_prediction" else 0.8
    level = Level(0, training.timesteps // 2, alpha, 0.6, step=0, steps=1)
    x = torch.randn((len(grid), denoiser.channels, *denoiser.window), generator=torch.Generator().manual_seed(0))
    return _World(denoiser, grid, level, denoiser.encode(prompt, "fog", 7.5), x)
