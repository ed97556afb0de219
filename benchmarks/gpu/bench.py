"""What every check gets: the device, the models, the time that is left, and short ways to make runs."""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor

from gpu import models
from gpu.card import Card
from panokit import Model, Run, Runtime, Sampler, load_model
from panokit.settings import Precision

PROMPT = "a lake"
SEED = 7
SQUARE, ROW, PAPER = (2.0, 2.0), (1.0, 8.5), (2.0, 8.0)
"""Heights and widths of canvases in windows. Half a window apart they hold 9 windows, 16 in a row, and the 45 of the MSD paper
(1024 x 4096 pixels)."""


@final
@dataclass
class Bench:
    """Makes models and runs on one device.

    Attributes:
        card: the device.
        tiny: whether the models are those in miniature.
        until: the time on the monotonic clock at which the section must end.
    """

    card: Card
    tiny: bool
    until: float = field(default=float("inf"))

    @property
    def left(self) -> float:
        """Seconds that the section still has."""
        return self.until - time.monotonic()

    @cached_property
    def full_pipeline(self) -> Any:
        """diffusers' pipeline of Stable Diffusion 2.0 in float32."""
        return self.pipeline("sd2", torch.float32)

    @cached_property
    def full(self) -> Model:
        """The model of that pipeline, which shares its weights."""
        return self.loaded("sd2", self.full_pipeline)

    @cached_property
    def half(self) -> Model:
        """The same weights in half precision, in memory of their own."""
        return self.sampler(self.full).model

    @cached_property
    def half_pipeline(self) -> Any:
        """diffusers' pipeline of Stable Diffusion 2.0 in half precision."""
        return self.pipeline("sd2", self.dtype)

    def forget(self) -> None:
        """Free the models that are kept, and what they left."""
        for name in ("full_pipeline", "full", "half", "half_pipeline"):
            vars(self).pop(name, None)
        self.card.clear()

    @property
    def paper(self) -> tuple[float, float]:
        """The canvas of the MSD paper; in miniature one of 15 windows, which takes less time."""
        return (2.0, 3.0) if self.tiny else PAPER

    @property
    def dtype(self) -> torch.dtype:
        """The half precision of this card as a dtype."""
        return torch.bfloat16 if self.card.half == "bf16-true" else torch.float16

    def pipeline(self, name: str, dtype: torch.dtype) -> Any:
        """A pipeline of diffusers on the device."""
        return models.pipeline(name, self.card.device, dtype, tiny=self.tiny)

    def loaded(self, name: str, pipe: Any) -> Model:
        """A model as a user gets it: panokit is given a pipeline of diffusers, and shares its weights."""
        return load_model(pipe, window=models.window_of(name, tiny=self.tiny))

    def runtime(self, *, precision: Precision | None = None, micro_batch: int = 3, **options: Any) -> Runtime:
        """A runtime on the device, in half precision by default."""
        kind = self.card.device.type
        return Runtime(accelerator=kind, precision=precision or self.card.half, micro_batch=micro_batch, **options)

    def sampler(
        self,
        model: Model,
        *,
        scheduler: str = "ddim",
        guidances: Sequence[Any] = (),
        runtime: Runtime | None = None,
        **options: Any,
    ) -> Sampler:
        """A sampler whose fuser is the mean of windows, as in diffusers' pipeline for panoramas.

        Args:
            model: the model.
            scheduler: the scheduler's name.
            guidances: guidances, as `Sampler` takes them.
            runtime: the runtime; None for one with `options`.
            options: those of `Bench.runtime`.
        """
        fuser = {"plugin": "multidiffusion", "weights": "uniform"}
        runtime = runtime or self.runtime(**options)
        return Sampler(model, scheduler=scheduler, fuser=fuser, guidances=guidances, runtime=runtime)

    def begin(self, sampler: Sampler, shape: tuple[float, float], steps: int) -> Run:
        """Begin a run.

        Args:
            sampler: the sampler.
            shape: height and width in windows.
            steps: the number of steps.
        """
        side = sampler.model.denoiser.window[0] * sampler.model.factor
        height, width = (round(side * windows) for windows in shape)
        run: Run = sampler.begin(PROMPT, height=height, width=width, stride=side // 2, steps=steps, seed=SEED)
        return run

    def latents(self, model: Model, shape: tuple[float, float] = SQUARE, *, steps: int = 2, **options: Any) -> Tensor:
        """The latents of a finished run, on the CPU.

        Args:
            model: the model.
            shape: height and width in windows.
            steps: the number of steps.
            options: those of `sampler`.
        """
        return finished(self.begin(self.sampler(model, **options), shape, steps))


def finished(run: Run) -> Tensor:
    """Take a run to its end: its latents, on the CPU."""
    while not run.done:
        run.step()
    return run.canvas.cpu()


def relative(made: Tensor, expected: Tensor) -> float:
    """How far a tensor is from another one: the norm of the difference over that of the other."""
    made, expected = made.detach().double().cpu(), expected.detach().double().cpu()
    return float((made - expected).norm() / expected.norm())


@contextmanager
def warnings_kept() -> Iterator[Callable[[], list[str]]]:
    """Inside, warnings are kept, and not shown: a function that returns their texts."""
    with warnings.catch_warnings(record=True) as kept:
        warnings.simplefilter("always")
        yield lambda: [str(warning.message) for warning in kept]
