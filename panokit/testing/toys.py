"""Small exact parts for tests: a denoiser that counts its work, a codec, a scheduler, a fuser, a guidance, and a run of them.

Each is a formula of a few lines. So a test can compute the expected result by itself, in float64 to the last digits.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from panokit.denoiser import Codec, Denoiser
from panokit.fuser import Fuser, WeightedFuser
from panokit.grid import Grid, Lattice
from panokit.guidance import Estimate, Guidance, Jacobian
from panokit.layout import Layout, Overlap
from panokit.passes import Parts
from panokit.run import Run
from panokit.runtime import Runtime
from panokit.scene import Prompt, Scene
from panokit.scheduler import Level, Prediction, Scheduler, Solver, Training, pred_from, x0_from
from panokit.testing.worlds import times_of
from panokit.windows import Factor, Projected, Windows, divided, per_axis


@final
class ToyDenoiser(Denoiser):
    r"""A smooth non-linear function of a window. Every cell depends on its neighbours, its place and the prompt.

    Attributes:
        forwards: number of windows of each call.
        backwards: number of windows of each backward pass.
    """

    def __init__(self, window: tuple[int, ...] = (4, 4), channels: int = 2, prediction: Prediction = "epsilon") -> None:
        self.window, self.channels, self.training = window, channels, Training(prediction)
        self.forwards: list[int] = []
        self.backwards: list[int] = []

    def modules(self) -> Iterable[nn.Module]:
        return ()

    def encode(self, scene: Scene) -> Any:
        numbers = [sum(map(ord, text)) % 97 / 97 for text in scene.texts]
        return numbers[0] if len(numbers) == 1 else (numbers, scene)

    def condition(self, embeddings: Any, windows: Windows, index: Sequence[int]) -> Any:
        if isinstance(embeddings, float):
            return embeddings
        numbers, scene = embeddings
        mixture = scene.mixture(scene.maps(windows), windows, index)
        return mixture, torch.tensor([numbers[k] for k in mixture.texts]).view(-1, 1, *(1,) * len(windows.window))

    def __call__(self, x: Float[Tensor, "n *c_window"], level: Level, condition: Any) -> Float[Tensor, "n *c_window"]:
        if not isinstance(condition, float):
            mixture, numbers = condition
            return mixture.mix(self._predict(x[mixture.rows], level, numbers.to(x)))
        return self._predict(x, level, condition)

    def _predict(self, x: Tensor, level: Level, condition: Any) -> Tensor:
        self.forwards.append(len(x))
        felt = x * torch.linspace(0.5, 1.5, x[0].numel(), dtype=x.dtype).view(x.shape[1:])
        for axis in range(1, x.ndim):
            felt = felt + 0.5 * felt.roll(1, axis)
        prediction = torch.tanh(felt + condition) * (0.5 + level.sigma)
        if prediction.requires_grad:
            prediction.register_hook(lambda gradient: self.backwards.append(len(gradient)))
        return prediction


@final
class ToyCodec(Codec):
    r"""Converts latents with four channels to pictures of twice the size. A cell is a patch of 2 x 2 pixels in three colours.

    The twelve numbers of a patch are $\tfrac12 + \tfrac12 \tanh(M z)$, where the columns of $M$ are the first four cosines.
    They are orthogonal, so `encode` inverts `decode`. For any other picture it returns the latents of the nearest $M z$.
    """

    factor = 2

    def modules(self) -> Iterable[nn.Module]:
        return ()

    def encode(self, images: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n 4 h w"]:
        patches = torch.atanh((2 * images - 1).clamp(-0.9999, 0.9999))
        columns = _cosines(images)
        inverse = columns / columns.square().sum(0)
        return torch.einsum("ok,nohw->nkhw", inverse, nn.functional.pixel_unshuffle(patches, 2))

    def decode(self, latents: Float[Tensor, "n 4 h w"]) -> Float[Tensor, "n 3 H W"]:
        patches = torch.einsum("ok,nkhw->nohw", _cosines(latents), latents)
        return 0.5 + 0.5 * torch.tanh(nn.functional.pixel_shuffle(patches, 2))


@final
class RepeatingCodec(Codec):
    """Repeats three of four channels of a cell over 8 x 8 pixels. It looks at no other cell, and costs nothing."""

    factor = 8

    def modules(self) -> Iterable[nn.Module]:
        return ()

    def encode(self, images: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n 4 h w"]:
        return nn.functional.pad(4 * nn.functional.avg_pool2d(images, 8) - 2, (0, 0, 0, 0, 0, 1))

    def decode(self, latents: Float[Tensor, "n 4 h w"]) -> Float[Tensor, "n 3 H W"]:
        return nn.functional.interpolate(latents[:, :3] / 4 + 0.5, scale_factor=8)


def _cosines(like: Tensor) -> Tensor:
    """Twelve rows and four columns, of the type of `like`."""
    rows, columns = torch.arange(12).to(like), torch.arange(4).to(like)
    return 0.3 * torch.cos(torch.outer(rows + 0.5, columns) * (math.pi / 12))


@final
@dataclass(frozen=True)
class ToyScheduler(Scheduler):
    r"""Song et al. 2021, eq. 12, on a quarter circle: $\alpha = \cos\theta$, $\sigma = \sin\theta$; $1 - \sigma$ for a flow.

    Attributes:
        eta: amount of new noise in a step; 0 is deterministic.
        corrector: whether every step but the last has a second stage, at its lower noise level, like Heun's method.
    """

    eta: float = 0.0
    corrector: bool = False

    def begin(self, steps: int, device: torch.device, training: Training) -> "ToySolver":
        return ToySolver(self, steps, training)


@final
class ToySolver(Solver):
    """The solver of `ToyScheduler`. It remembers the stage before, for the mean of the corrector."""

    def __init__(self, settings: ToyScheduler, steps: int, training: Training) -> None:
        self.settings, self.prediction = settings, training.prediction
        angles = [1.5 * (1 - k / steps) for k in range(steps + 1)]
        stages = [(k, k, True) for k in range(steps)]
        if settings.corrector:
            stages = [stage for k in range(steps) for stage in ((k, k, True), (k + 1, k, False))][:-1]
        sigmas = [math.sin(angle) for angle in angles]
        alphas = (
            [1 - sigma for sigma in sigmas] if self.prediction == "flow_prediction" else [math.cos(angle) for angle in angles]
        )
        times = [*(times_of(training, *at)[0] for at in zip(alphas[:-1], sigmas[:-1], strict=True)), 0.0]
        self.levels = [
            Level(index, times[at], alphas[at], sigmas[at], step, steps, main)
            for index, (at, step, main) in enumerate((*stages, (steps, steps, True)))
        ]
        self.kept: tuple[Tensor, Tensor] | None = None

    def start(self, noise: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return self.levels[0].sigma * noise

    def x0(self, pred: Float[Tensor, "*shape"], x: Float[Tensor, "*shape"], level: Level) -> Float[Tensor, "*shape"]:
        return x0_from(self.prediction, pred, x, level)

    def pred(self, x0: Float[Tensor, "*shape"], x: Float[Tensor, "*shape"], level: Level) -> Float[Tensor, "*shape"]:
        return pred_from(self.prediction, x0, x, level)

    def step(
        self, pred: Float[Tensor, "*shape"], x: Float[Tensor, "*shape"], level: Level, generator: torch.Generator
    ) -> Float[Tensor, "*shape"]:
        x0 = self.x0(pred, x, level)
        if level.main:
            self.kept = (x0, x)
            return self._down(x0, x, level, self.levels[level.index + 1], generator)
        assert self.kept is not None  # the corrector's stage follows a main one
        before, start = self.kept
        return self._down((before + x0) / 2, start, self.levels[level.index - 1], level, generator)

    def _down(self, x0: Tensor, x: Tensor, level: Level, below: Level, generator: torch.Generator) -> Tensor:
        eps = (x - level.alpha * x0) / level.sigma
        ratio = max(0.0, 1 - (level.alpha / below.alpha) ** 2)
        fresh = self.settings.eta * below.sigma * min(1.0, math.sqrt(ratio) / level.sigma)
        noise = torch.randn(x.shape, generator=generator).to(x) if fresh else torch.zeros_like(x)
        return below.alpha * x0 + math.sqrt(below.sigma**2 - fresh**2) * eps + fresh * noise

    def state(self) -> Mapping[str, Any]:
        return {"kept": self.kept}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.kept = state["kept"]


@final
@dataclass(frozen=True)
class Mean(WeightedFuser):
    """The plain mean. With `tilt`, the weight of a cell grows with its distance from the first cell of the window."""

    tilt: float = 0.0

    def weight(self, windows: Windows, level: Level) -> Float[Tensor, "1 *window"]:
        return 1 + self.tilt * torch.arange(math.prod(windows.window), dtype=torch.float64).view(1, *windows.window)


@final
@dataclass(frozen=True)
class Drift(Layout):
    """Windows at regular places that move at each level, by the seed plus the level, in steps of `unit` cells.

    Attributes:
        unit: cells of one step. The factor of a cross-scale guidance must divide it.
    """

    unit: int = 1

    def begin(
        self, size: tuple[int, ...], window: tuple[int, ...], stride: tuple[int, ...] | None, wrap: tuple[bool, ...], seed: int
    ) -> "Drifting":
        return Drifting(size, window, stride or window, wrap, seed=seed, unit=self.unit)


@final
@dataclass(frozen=True)
class Drifting(Lattice):
    """The windows of `Drift`."""

    seed: int = 0
    unit: int = 1

    def at(self, level: Level) -> "Drifting":
        return replace(self, shift=tuple((self.seed + level.index) * self.unit % stride for stride in self.stride))

    def coarsened(self, factor: Factor) -> "Drifting":
        (unit,) = divided((self.unit,), max(per_axis(factor, self.size)), "the unit of a drift")
        return replace(super().coarsened(factor), unit=unit)

    def refined(self, factor: Factor) -> "Drifting":
        return replace(super().refined(factor), unit=self.unit * max(per_axis(factor, self.size)))


@final
@dataclass(frozen=True)
class Pull(Guidance):
    r"""Pulls each window to its own number, $E_i = \sum (x_0 - i / 10 - c)^2 + \tfrac12 \sum x\, x_0$.

    If it moves the noisy window alone, $E_i = \sum (x - i / 10 - c)^2$.

    Attributes:
        jacobian: whether the gradient goes through the denoiser; see `Guidance.jacobian`.
        weight: the strength at every level at which it is awake.
        to: $c$.
        until: the first step at which it is asleep.
    """

    jacobian: Jacobian = "full"
    weight: int | float = 0.05
    to: int | float = 1
    until: int | float = math.inf

    def strength(self, level: Level) -> float:
        return self.weight if level.step < self.until else 0.0

    def energy(self, seen: Estimate, index: Sequence[int], context: Any) -> Float[Tensor, " n"]:
        target = torch.tensor(index, dtype=seen.x.dtype).view(-1, *(1,) * (seen.x.ndim - 1)) / 10 + self.to
        if self.jacobian == "none":
            return ((seen.x - target) ** 2).flatten(1).sum(1)
        return ((seen.x0 - target) ** 2 + seen.x * seen.x0 / 2).flatten(1).sum(1)


def toy_run(
    size: tuple[int, ...] = (6, 9),
    *,
    denoiser: Denoiser | None = None,
    codec: Codec | None = None,
    scheduler: Scheduler | None = None,
    layout: Layout | None = None,
    fuser: Fuser | None = None,
    guidances: Sequence[Guidance] = (),
    stride: int | None = 2,
    wrap: bool = False,
    steps: int = 3,
    prompt: Prompt = "toy",
    micro_batch: int = 8,
    runtime: Runtime | None = None,
    seed: int = 0,
) -> Run:
    """Begin a run on a canvas with any number of axes. By default it is in float64, with windows of 4 cells along each axis."""
    runtime = runtime or Runtime(accelerator="cpu", precision="64-true", micro_batch=micro_batch)
    denoiser = denoiser or ToyDenoiser((4,) * len(size))
    axes = len(size)
    begin = partial((scheduler or ToyScheduler()).begin, steps, runtime.device, denoiser.training)
    parts = Parts(denoiser, codec, begin, fuser or Mean(), runtime, denoiser.encode(Scene(prompt)))
    windows = (layout or Overlap()).begin(
        size, denoiser.window, None if stride is None else (stride,) * axes, (wrap,) * axes, seed
    )
    return Run(parts, guidances=guidances, windows=windows, seed=seed)


@final
@dataclass(frozen=True)
class Unrolled(Projected):
    """Windows of a plane whose cells lie in one row: a canvas of one axis, with the picture of the plane.

    So whatever a run makes on it can be compared with the run on the plane.

    Attributes:
        plane: the windows of the plane.
    """

    projection: ClassVar[str] = "plane"
    plane: Grid
    size: tuple[int, ...] = field(init=False, repr=False, compare=False)
    window: tuple[int, ...] = field(init=False, repr=False, compare=False)
    wrap: tuple[bool, ...] = field(init=False, repr=False, compare=False)
    picture: tuple[int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        height, width = self.plane.size
        values = {"size": (height * width,), "window": self.plane.window, "wrap": (False,), "picture": (height, width)}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.plane)

    def crop(self, canvas: Shaped[Tensor, "*c_size"], index: Sequence[int] | None = None) -> Shaped[Tensor, "n *c_window"]:
        return self.plane.crop(canvas.unflatten(-1, self.plane.size), index)

    def put(self, canvas: Tensor, i: int, window: Tensor, weight: Tensor | None = None) -> None:
        self.plane.put(canvas.unflatten(-1, self.plane.size), i, window, weight)

    def cells(self, index: Sequence[int] | None = None) -> Shaped[Tensor, "n a *window"]:
        row, column = (self.plane.cells(index) % torch.tensor(self.plane.size).view(1, 2, 1, 1)).unbind(1)
        return (row * self.plane.size[1] + column)[:, None]

    def on(self, size: tuple[int, ...]) -> "Unrolled":
        scale = math.sqrt(size[0] / self.size[0])
        return replace(self, plane=self.plane.on(tuple(round(cells * scale) for cells in self.plane.size)))

    def scaled(self, factor: Factor) -> "Unrolled":
        return replace(self, plane=replace(self.plane, size=self.plane.scaled(factor).size))

    def coarsened(self, factor: Factor) -> "Unrolled":
        return replace(self, plane=self.plane.coarsened(factor))

    def refined(self, factor: Factor) -> "Unrolled":
        return replace(self, plane=self.plane.refined(factor))

    def shrunk(self, canvas: Tensor, factor: Factor) -> tuple[Tensor, int | Tensor]:
        small, count = self.plane.shrunk(canvas.unflatten(-1, self.plane.size), factor)
        return small.flatten(-2), count

    def places(self) -> Float[Tensor, "2 *size"]:
        rows, columns = ((torch.arange(cells, dtype=torch.float64) + 0.5) / cells for cells in self.plane.size)
        return torch.stack(torch.meshgrid(rows, columns, indexing="ij")).flatten(1)

    def project(self, views: Float[Tensor, "n c h w"], size: tuple[int, int]) -> Float[Tensor, "c H W"]:
        fine = self.plane.refined(size[0] // self.plane.size[0])
        picture, count = (views.new_zeros(channels, *fine.size) for channels in (views.shape[1], 1))
        for i, view in enumerate(nn.functional.interpolate(views, size=fine.window)):
            fine.put(picture, i, view)
            fine.put(count, i, torch.ones_like(view[:1]))
        return picture / count

    def views(self, picture: Float[Tensor, "c H W"], factor: int) -> Float[Tensor, "n c h w"]:
        fine = self.plane.refined(factor)
        return fine.crop(nn.functional.interpolate(picture[None], size=fine.size, mode="area")[0])


@final
@dataclass(frozen=True)
class Unroll(Layout):
    """The default layout, with the cells of the canvas in one row."""

    def begin(
        self, size: tuple[int, ...], window: tuple[int, ...], stride: tuple[int, ...] | None, wrap: tuple[bool, ...], seed: int
    ) -> Unrolled:
        return Unrolled(Overlap().begin(size, window, stride, wrap, seed))


@final
class Colours(nn.Module):
    """Simple features of uint8 pictures `n 3 H W`: their mean colours, in [0, 1]."""

    num_features = 3

    def forward(self, pictures: Tensor) -> Tensor:
        """The means, `n 3`."""
        return pictures.float().mean((2, 3)) / 255
