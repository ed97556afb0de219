"""A pipeline of diffusers that is called for one noise level at a time.

A pipeline's own `__call__` knows everything about its family: how texts become embeddings, how latents are packed, which
positions and times the network is told, how guidance is computed, in which sign a prediction leaves. So it is called as it is,
with two things replaced. Its scheduler has one noise level, and keeps the prediction that arrives at `step`. Its
`encode_prompt` returns what was remembered.
"""

import copy
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, final

import torch
from torch import Tensor

from panokit.backbones.diffusers.scheduler import quiet
from panokit.errors import ModelError, SettingError
from panokit.scheduler import Level

_SILENT = nullcontext(SimpleNamespace(update=lambda n=1: None))
"""A progress bar that shows nothing."""


class _Stopped(Exception):
    """Ends a call of a pipeline."""


@final
class Driven:
    """A pipeline, driven one noise level at a time. It shares its networks with the pipeline, which stays as it is.

    Args:
        pipe: a text-to-image pipeline of diffusers.
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe = _subclassed(pipe)
        self.scheduler: Any = pipe.scheduler
        self._class: Any = type(pipe)
        self._call: Callable[..., Any] = inspect.unwrap(self._class.__call__)  # without its `no_grad`
        self._skips = "interrupt" in self._call.__code__.co_names

    def encode(self, **options: Any) -> list[Any]:
        """Let the pipeline encode its texts, and stop it before its loop.

        Args:
            options: arguments of the pipeline's call.

        Returns:
            What its `encode_prompt` returned, call by call.
        """
        return self._ready(_OneLevel(self.scheduler, Level(0, 999, 0.0, 1.0, 0, 1)), options)

    def scheduled(self, steps: int, texts: list[Any], **options: Any) -> Any:
        """Let the pipeline set its own scheduler.

        Args:
            steps: the number of steps.
            texts: what `encode` returned.
            options: arguments of the pipeline's call.

        Returns:
            A copy of the scheduler, set for so many steps.
        """
        scheduler = copy.deepcopy(self.scheduler)
        with quiet():
            self._ready(scheduler, {**options, "num_inference_steps": steps}, texts)
        return scheduler

    def predict(self, level: Level, texts: list[Any], **options: Any) -> Tensor:
        """The pipeline's guided prediction for noisy latents, in its own layout.

        Args:
            level: the noise level of the latents.
            texts: what `encode` returned, one row for each window.
            options: arguments of the pipeline's call; `latents` are among them.
        """
        if not self._skips:  # it would not reach a later step
            level = Level(0, level.t, level.alpha, level.sigma, 0, 1)
        one = _OneLevel(self.scheduler, level)
        self.pipe.answers, self.pipe.ahead = iter(texts), level.step
        with self._set(scheduler=one):
            self._until_stopped({**options, "num_inference_steps": level.steps, "output_type": "latent"})
        return one.prediction

    def _ready(self, scheduler: Any, options: Mapping[str, Any], texts: list[Any] | None = None) -> list[Any]:
        """Call the pipeline until it begins its loop: what its `encode_prompt` returned."""
        self.pipe.answers, self.pipe.remembered = None if texts is None else iter(texts), []
        self.pipe.device_of_run = self._class._execution_device.fget(self.pipe)
        self.pipe.rehearses = True
        try:
            with self._set(scheduler=scheduler):
                self._until_stopped({**options, "output_type": "latent"})
        except ValueError as cause:  # pipelines check their arguments
            reason = " ".join(str(cause).split()).rstrip(".")
            raise SettingError(f"{self._class.__name__} refuses what it is called with: {reason}") from cause
        finally:
            self.pipe.rehearses = False
        return self.pipe.remembered

    def _until_stopped(self, options: Mapping[str, Any]) -> None:
        try:
            with _hushed(), _exact_times():
                self._call(self.pipe, **options)
        except _Stopped:
            return
        raise ModelError(f"{self._class.__name__} neither shows its progress nor steps a scheduler: it cannot be driven")

    @contextmanager
    def _set(self, **parts: Any) -> Iterator[None]:
        """Inside, the pipeline has other parts. diffusers would note them in its configuration, so they are set past it."""
        for name, part in parts.items():
            object.__setattr__(self.pipe, name, part)
        yield


def _subclassed(pipe: Any) -> Any:
    """The same pipeline with the same parts, as an object of a class whose calls can be stopped and answered."""

    class DrivenPipeline(type(pipe)):  # type: ignore[misc]
        answers: Iterator[Any] | None = None
        remembered: list[Any]
        rehearses = False
        ahead = 0
        device_of_run: Any = None

        @property
        def _execution_device(self) -> Any:
            return self.device_of_run  # diffusers' own walks through all modules, at each call

        @property
        def interrupt(self) -> bool:
            """The pipeline goes on to its next step where this is true: so what depends on the number of a step is right."""
            self.ahead -= 1
            return self.ahead >= 0

        def progress_bar(self, *args: Any, **kwargs: Any) -> Any:
            if self.rehearses:
                raise _Stopped
            return _SILENT

        def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
            if self.answers is not None:
                return next(self.answers)
            self.remembered.append(super().encode_prompt(*args, **kwargs))
            return self.remembered[-1]

        def __setattr__(self, name: str, value: Any) -> None:
            object.__setattr__(self, name, value)  # diffusers' own looks each name up in its configuration

    driven = copy.copy(pipe)
    driven.__class__ = DrivenPipeline
    return driven


@contextmanager
def _exact_times() -> Iterator[None]:
    """Inside, new tensors have 32 bits or more. Where networks have half of them, times would be rounded like their weights."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.promote_types(default, torch.float32))
    try:
        yield
    finally:
        torch.set_default_dtype(default)


@contextmanager
def _hushed() -> Iterator[None]:
    """Inside, diffusers logs errors alone. It would repeat its advice at each call, which here means for each window.

    Nor does torch warn that the norms of a network in mixed precision are computed in two steps.
    """
    handlers = logging.getLogger("diffusers").handlers
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Mismatch dtype between input and weight", UserWarning)
            yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)


@final
class _OneLevel:
    """Stands in for a scheduler: it has one noise level, for all steps, and ends the pipeline's call at the first `step`."""

    order, init_noise_sigma = 1, 1.0

    def __init__(self, scheduler: Any, level: Level) -> None:
        self._scheduler, self._level = scheduler, level
        self.prediction: Any = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self._scheduler, name)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
    ) -> None:
        steps = self._level.steps
        self.timesteps = torch.full((steps,), self._level.t, device=device)
        self.sigmas = torch.full((steps + 1,), self._level.sigma)
        self.num_inference_steps = steps

    def set_begin_index(self, begin_index: int = 0) -> None:
        pass

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        return sample

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **options: Any) -> None:
        self.prediction = model_output
        raise _Stopped
