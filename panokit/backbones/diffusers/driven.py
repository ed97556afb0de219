"""A pipeline of diffusers that is called for one noise level at a time.

A pipeline's own `__call__` knows everything about its family: how texts become embeddings, how latents are packed, which
positions and times the network is told, how guidance is computed, in which sign a prediction leaves. So it is called as it is,
with two things replaced. Its scheduler has one noise level, and keeps the prediction that arrives at `step`. Its
`encode_prompt` returns what was remembered.
"""

import copy
import inspect
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, final

import torch
from torch import Tensor

from panokit.backbones.diffusers.packing import SIDE
from panokit.backbones.diffusers.reading import Answers, Encoded, Reading, joined
from panokit.backbones.diffusers.scheduler import quiet
from panokit.errors import ModelError, SettingError
from panokit.runtime.offload import turns_on
from panokit.scheduler import Level

_TABLES = ("_prepare_latent_image_ids", "_prepare_latent_ids", "prepare_position_ids")
"""The methods of pipelines that make tables of positions."""
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
        self.skips = skips(self._class)
        self._encoder: _SteadyEncoder | None = None

    @property
    def device(self) -> torch.device:
        """The device on which the pipeline computes."""
        return turns_on(self.pipe.components.values()) or self._class._execution_device.fget(self.pipe)

    @property
    def tells_places(self) -> bool:
        """Whether the pipeline makes a table of positions, into which the place of a window can be added."""
        return any(hasattr(self._class, name) for name in _TABLES)

    def encode_steadily(self) -> None:
        """Have the pipeline encode pictures without noise, and each picture once."""
        self._encoder = self.pipe.vae = _SteadyEncoder(self.pipe.vae)

    def encode(self, reading: Reading, looks: Sequence[Any], **options: Any) -> Encoded:
        """Let the pipeline encode its texts and the pictures of an IP-Adapter, and stop it before its loop.

        Args:
            reading: notes which texts the tokenizers cut.
            looks: the picture of an IP-Adapter for each text; empty if there is none.
            options: arguments of the pipeline's call.

        Returns:
            What the pipeline's own methods returned, with a row for each text.
        """
        tokenizers = {name: part for name, part in self.pipe.components.items() if name.startswith("tokenizer") and part}
        try:
            for name, tokenizer in tokenizers.items():
                setattr(self.pipe, name, reading.watched(tokenizer))
            return self._ready(_OneLevel(self.scheduler, Level(0, 999, 0.0, 1.0, 0, 1)), options, None, looks)
        finally:
            for name, tokenizer in tokenizers.items():
                setattr(self.pipe, name, tokenizer)

    def scheduled(self, steps: int, encoded: Encoded, **options: Any) -> Any:
        """Let the pipeline set its own scheduler.

        Args:
            steps: the number of steps.
            encoded: what `encode` returned, for one text.
            options: arguments of the pipeline's call.

        Returns:
            A copy of the scheduler, set for so many steps.
        """
        scheduler = copy.deepcopy(self.scheduler)
        self._ready(scheduler, {**options, "num_inference_steps": steps}, encoded)
        return scheduler

    def predict(
        self, level: Level, encoded: Encoded, seen: list[Tensor], origin: tuple[int, int] | None = None, **options: Any
    ) -> Tensor:
        """The pipeline's guided prediction for noisy latents, in its own layout.

        Args:
            level: the noise level of the latents.
            encoded: what `encode` returned, with a row for each window.
            seen: the pictures that the pipeline encoded in an earlier call with the same pictures, in order. An empty list is
                filled.
            origin: the place that the windows are told, in cells; None for none.
            options: arguments of the pipeline's call; `latents` are among them.
        """
        if not self.skips:  # it would not reach a later step
            level = Level(0, level.t, level.alpha, level.sigma, 0, 1)
        one = _OneLevel(self.scheduler, level)
        self.pipe.answers, self.pipe.ahead, self.pipe.origin = encoded.again(), level.step, origin
        self.pipe.device_of_run, self.pipe.scheduler = options["latents"].device, one
        if self._encoder:
            self._encoder.begin(seen)
        self._until_stopped({**options, "num_inference_steps": level.steps, "output_type": "latent"})
        return one.prediction

    def _ready(self, scheduler: Any, options: Mapping[str, Any], encoded: Encoded | None, looks: Sequence[Any] = ()) -> Encoded:
        """Call the pipeline until it begins its loop: what it encoded on the way."""
        self.pipe.answers, self.pipe.remembered = encoded.again() if encoded else None, Encoded([], [])
        self.pipe.device_of_run, self.pipe.scheduler, self.pipe.looks = self.device, scheduler, looks
        self.pipe.rehearses = True
        if self._encoder:
            self._encoder.begin([])
        try:
            with quiet():
                self._until_stopped({**options, "output_type": "latent"})
        except (ValueError, TypeError, AttributeError, LookupError) as cause:  # of a wrong argument any of these can come
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


def skips(pipeline: type) -> bool:
    """Whether a pipeline's call goes on to its next step where it is interrupted, so that it can be entered at any step.

    Some have no such place, and one ends there. Some keep at their first step what the others need.

    Args:
        pipeline: a class of diffusers.
    """
    call: Any = inspect.unwrap(pipeline.__call__)
    if "kv_cache" in call.__code__.co_varnames:
        return False
    return bool(re.search(r"if self\.interrupt:\s+continue", inspect.getsource(call)))


def _subclassed(pipe: Any) -> Any:
    """The same pipeline with the same parts, as an object of a class whose calls can be stopped and answered."""

    class DrivenPipeline(type(pipe)):  # type: ignore[misc]
        answers: Answers | None = None
        remembered: Encoded
        looks: Sequence[Any] = ()
        rehearses = False
        ahead = 0
        origin: tuple[int, int] | None = None
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
                return next(self.answers.texts)
            self.remembered.texts.append(super().encode_prompt(*args, **kwargs))
            return self.remembered.texts[-1]

        def prepare_extra_step_kwargs(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            return {}  # diffusers' own reads the signature of the scheduler's step, at each call

        def prepare_ip_adapter_image_embeds(
            self, ip_adapter_image: Any, ip_adapter_image_embeds: Any, device: Any, num_images_per_prompt: int, *more: Any
        ) -> Any:
            """Encode the picture of each text, one by one. A second call is for the pictures to avoid, the same for all."""
            if self.answers is not None:
                return next(self.answers.looks)
            first = not self.remembered.looks
            pictures = self.looks if first and self.looks else [ip_adapter_image] * num_images_per_prompt
            prepare = super().prepare_ip_adapter_image_embeds
            rows = [prepare(picture, ip_adapter_image_embeds, device, 1, *more) for picture in pictures]
            self.remembered.looks.append(rows)
            return joined(rows)

        def _prepare_latent_image_ids(self, *args: Any, **kwargs: Any) -> Tensor:
            return self._moved(super()._prepare_latent_image_ids(*args, **kwargs))

        def _prepare_latent_ids(self, *args: Any, **kwargs: Any) -> Tensor:
            return self._moved(super()._prepare_latent_ids(*args, **kwargs))

        def prepare_position_ids(self, text_seq_len: int, *args: Any, **kwargs: Any) -> Tensor:
            ids = super().prepare_position_ids(text_seq_len, *args, **kwargs)
            return torch.cat([ids[:text_seq_len], self._moved(ids[text_seq_len:])])

        def _moved(self, ids: Tensor) -> Tensor:
            """A table of positions (frame, row, column, ...) of patches, moved to the place of the window."""
            if self.origin is None:
                return ids
            shift = torch.zeros(ids.shape[-1], dtype=ids.dtype, device=ids.device)
            shift[1], shift[2] = (cells / SIDE for cells in self.origin)
            return ids + shift

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
    """Inside, libraries log errors alone. They would repeat their advice at each call, which here means for each window."""
    handlers = [handler for name in ("diffusers", "transformers") for handler in logging.getLogger(name).handlers]
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(logging.ERROR)
    try:
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
        **options: Any,
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


@final
class _SteadyEncoder:
    """Stands in for an autoencoder: it encodes to the mode, and each picture once.

    With noise, a picture that shows what to paint would be another one at each step and on each rank.
    """

    def __init__(self, vae: Any) -> None:
        self._vae = vae
        self.begin([])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self._vae, name)

    def begin(self, known: list[Tensor]) -> None:
        """Begin a call of the pipeline, with what the same call encoded before."""
        self._known, self._next = known, 0

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Any:
        if self._next == len(self._known):
            dtype = next(self._vae.parameters()).dtype
            code = self._vae.encode(pixels.to(dtype), return_dict=False)[0]
            self._known.append(code if isinstance(code, Tensor) else code.mode())
        z = self._known[self._next]
        self._next += 1
        posterior = SimpleNamespace(sample=lambda generator=None: z, mode=lambda: z)
        return SimpleNamespace(latent_dist=posterior)
