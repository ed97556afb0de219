"""Checks for denoisers: predictions are independent, differentiable, and come from frozen networks.

They run on the CPU in float32, with classifier-free guidance, on a strip of three windows.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from panokit.denoiser import Denoiser
from panokit.errors import PromptWarning
from panokit.grid import Grid
from panokit.runtime import Runtime
from panokit.scene import Prompt, Regions, Scene
from panokit.scheduler import Level
from panokit.testing.demands import contents, demand, distance, unchanged
from panokit.windows import Windows

Make = Callable[[], Denoiser]

LAKE, CITY = "a lake at night", "a city at noon"
HALVES = Regions((((0, 0, 0.5, 1), LAKE),), elsewhere=CITY)
ROUNDING = 1e-4
"""The largest relative difference that another batch size may make in float32."""


def checks(denoiser: Denoiser) -> tuple[Callable[[Make], None], ...]:
    """The checks for a denoiser. The ones whose failures explain others come first."""
    return (
        shape_and_dtype,
        frozen,
        differentiable,
        batch_split_invariance,
        condition_per_window,
        *((regions_are_mixed,) if len(denoiser.window) > 1 else ()),
        *((fields_are_cropped,) if denoiser.fields else ()),
        leaves_x_alone,
    )


def shape_and_dtype(make: Make) -> None:
    """A prediction has the shape, dtype and device of its windows."""
    world = _world(make())
    prediction = world.predict(world.x)
    for what in ("shape", "dtype", "device"):
        actual, expected = getattr(prediction, what), getattr(world.x, what)
        demand(
            actual == expected,
            f"{world.name} returned {what} {actual} for windows of {what} {expected}; a prediction has the {what} of its "
            "windows: convert it with `.to(x)`, and remove other outputs of the model",
        )


def frozen(make: Make) -> None:
    """After its modules are placed, no parameter needs a gradient, and a second call makes the same prediction."""
    world = _world(make())
    prediction = world.predict(world.x)
    demand(
        not prediction.requires_grad,
        f"a prediction of {world.name} has a graph, although its windows need no gradient: a network has trainable parameters. "
        "Return all networks in `modules`, so that the runtime freezes them",
    )
    demand(
        torch.equal(prediction, world.predict(world.x)),
        f"a second call of {world.name} makes another prediction: a network is in training mode, or draws noise. Return all "
        "networks in `modules`, so that the runtime sets them to eval mode",
    )


def differentiable(make: Make) -> None:
    """The gradient from the prediction to the windows is finite and not 0."""
    world = _world(make())
    x = world.x.clone().requires_grad_()
    prediction = world.predict(x)
    advice = "guidances need one: use only operations of torch, without no_grad, inference_mode or detach"
    demand(prediction.requires_grad, f"a prediction of {world.name} has no gradient, and {advice}")
    (gradient,) = torch.autograd.grad(prediction.sum(), x, materialize_grads=True)
    demand(
        bool(gradient.isfinite().all() and gradient.any()),
        f"the gradient of {world.name}'s prediction is {'0 everywhere' if not gradient.any() else 'not finite'}, and {advice}",
    )


def batch_split_invariance(make: Make) -> None:
    """Windows have the same prediction in a batch as alone, up to rounding."""
    world = _world(make())
    together = world.predict(world.x)
    alone = torch.cat([world.predict(world.x[i : i + 1], [i]) for i in range(len(world.windows))])
    demand(
        distance(together, alone) < ROUNDING,
        f"{world.name} predicts windows in a batch differently than alone (off by {distance(together, alone):.2g} of the "
        "largest magnitude): windows may not share anything along the batch, such as a mean or noise",
    )


def condition_per_window(make: Make) -> None:
    """The condition of some windows is their part of the condition of all windows, also with a prompt for each region."""
    denoiser = make()
    world = _world(denoiser, prompt=HALVES if len(denoiser.window) > 1 else LAKE)
    some = [2, 0]
    together = world.predict(world.x)[some]
    prediction = world.predict(world.x[some], some)
    demand(
        distance(prediction, together) < ROUNDING,
        f"{world.name} conditions the windows {some} differently alone than among all windows (off by "
        f"{distance(prediction, together):.2g} of the largest magnitude): `condition` must give window index[k] its own text, "
        "as Scene.mixture(maps, windows, index) does",
    )


def regions_are_mixed(make: Make) -> None:
    """In a window that two regions share, each cell has the prediction for the text of its region."""
    denoiser = make()
    mixed, lake, city = (_world(denoiser, prompt=prompt) for prompt in (HALVES, LAKE, CITY))
    left = torch.arange(mixed.windows.size[-1]) < mixed.windows.size[-1] // 2
    inside = mixed.windows.crop(left.expand(1, *mixed.windows.size))
    expected = torch.where(inside, lake.predict(lake.x), city.predict(city.x))
    off = distance(mixed.predict(mixed.x), expected)
    demand(
        off < ROUNDING,
        f"{mixed.name} predicts a window of two regions otherwise than each of their texts in its own cells (off by {off:.2g} "
        "of the largest magnitude): take the entries of Scene.mixture through the network, and join them by Mixture.mix",
    )


def fields_are_cropped(make: Make) -> None:
    """A window reads its own part of each field, wherever it lies, and a batch does not change that."""
    denoiser = make()
    high, wide = denoiser.window[-2:]
    waves = torch.sin(torch.arange(8 * wide) * (math.pi / (4 * wide)))  # smooth, also where a ring would join
    picture = (0.5 + 0.5 * waves).expand(3, 4 * high, -1)
    there, elsewhere = (
        _world(denoiser, fields=dict.fromkeys(denoiser.fields, shown)) for shown in (picture, picture.roll(4 * wide, -1))
    )
    some = [2, 0]
    together = there.predict(there.x)[some]
    demand(
        distance(there.predict(there.x[some], some), together) < ROUNDING,
        f"{there.name} gives the windows {some} other parts of a field alone than among all windows: crop it by "
        "Scene.crop(name, windows, index)",
    )
    # The canvas is two windows wide, so the moved field has under its first window what lay under the last one before.
    off = distance(elsewhere.predict(there.x[[2]], [0]), there.predict(there.x[[2]], [2]))
    felt = distance(elsewhere.predict(there.x[[2]], [2]), there.predict(there.x[[2]], [2]))
    demand(
        felt > 0.02 and off < felt / 4,
        f"{there.name} does not follow a field that is moved by a window (off by {off:.2g} of the largest magnitude): crop it "
        "by Scene.crop(name, windows, index), which knows where the windows lie",
    )


def leaves_x_alone(make: Make) -> None:
    """The denoiser does not write to its windows."""
    world = _world(make())
    before = contents(world.x)
    world.denoiser(world.x, world.level, world.condition(range(len(world.windows))))
    demand(
        unchanged(before, world.x),
        f"{world.name} wrote to its windows: use operations without a trailing underscore",
    )


@final
@dataclass(frozen=True)
class _World:
    """A placed denoiser, and windows for it."""

    denoiser: Denoiser
    windows: Windows
    level: Level
    embeddings: Any
    x: Tensor

    @property
    def name(self) -> str:
        return type(self.denoiser).__name__

    def condition(self, index: Sequence[int]) -> Any:
        return self.denoiser.condition(self.embeddings, self.windows, index)

    def predict(self, x: Tensor, index: Sequence[int] | None = None) -> Any:
        """The prediction for a copy of some windows; None as the index means all of them."""
        return self.denoiser(x.clone(), self.level, self.condition(range(len(self.windows)) if index is None else index))


def _world(denoiser: Denoiser, prompt: Prompt = "a lake", fields: Mapping[str, Tensor] | None = None) -> _World:
    runtime = Runtime(accelerator="cpu")
    for module in denoiser.modules():
        runtime.place(module)
    *others, last = denoiser.window
    axes = len(denoiser.window)
    stride = tuple(max(1, cells // 2) for cells in denoiser.window)
    windows = Grid((*others, 2 * last), denoiser.window, stride, (False,) * axes)
    training = denoiser.training
    alpha = 0.4 if training.prediction == "flow_prediction" else 0.8
    level = Level(0, training.timesteps // 2, alpha, 0.6, step=0, steps=1)
    x = torch.randn((len(windows), denoiser.channels, *denoiser.window), generator=torch.Generator().manual_seed(0))
    shades = torch.linspace(0, 1, 64).expand(3, 64, 64)
    fields = dict.fromkeys(denoiser.fields, shades) if fields is None else fields
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromptWarning)  # a model may read no negative prompt, or little of one
        embeddings = denoiser.encode(Scene(prompt, "fog", 7.5, fields, shades if denoiser.has_ip_adapter else None))
    return _World(denoiser, windows, level, embeddings, x)
