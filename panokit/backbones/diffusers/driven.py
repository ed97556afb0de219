"""A pipeline of diffusers that is called for one noise level at a time.

A pipeline's own `__call__` knows everything about its family: how texts become embeddings, how latents are packed, which
positions and times the network is told, how guidance is computed, in which sign a prediction leaves. So it is called as it is,
with two things replaced. Its scheduler has one noise level, and keeps the prediction that arrives at `step`. Its
`encode_prompt` returns what was remembered.
"""

import copy
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from threading import Lock
from types import SimpleNamespace
from typing import Any, final

import torch
from torch import Tensor, nn

from panokit.backbones.diffusers.codec import mode_of
from panokit.backbones.diffusers.drivable import skips
from panokit.backbones.diffusers.networks import computing, moves_itself, weights_kept
from panokit.backbones.diffusers.packing import SIDE
from panokit.backbones.diffusers.reading import Answers, Encoded, Reading, joined
from panokit.backbones.diffusers.solver import without_numpy_warnings
from panokit.errors import ModelError, PanokitError, SettingError, reason_of
from panokit.memory import is_out_of_memory
from panokit.runtime.offload import turns_on
from panokit.scheduler import Level

_TABLES = ("_prepare_latent_image_ids", "_prepare_latent_ids", "prepare_position_ids")
"""The methods of pipelines that make tables of positions."""
_HUSHED: ContextVar[bool] = ContextVar("hushed", default=False)
"""Whether a driven call is under way."""
_READING = Lock()
"""Held while texts are read. A tokenizer keeps how it cuts and pads, so two threads that share one disturb each other."""
_SILENT = nullcontext(SimpleNamespace(update=lambda n=1: None))
"""A progress bar that shows nothing."""


class _Stopped(Exception):
    """Ends a call of a pipeline."""


@final
class Driven:
    """A pipeline, driven one noise level at a time. It shares its networks with the pipeline, which stays as it is.

    Each call works on a copy of the pipeline's object, so calls of several runs, or threads, never touch.

    Args:
        pipe: a text-to-image pipeline of diffusers.
        networks: its networks, as they are to be called, by name.
        steady: whether it encodes pictures without noise, and each picture once.
    """

    def __init__(self, pipe: Any, networks: Mapping[str, nn.Module], *, steady: bool) -> None:
        self.pipe = _subclassed(pipe)
        vars(self.pipe).update(networks, **({"safety_checker": None} if hasattr(pipe, "safety_checker") else {}))
        self.scheduler: Any = pipe.scheduler
        self.steady = steady
        self.offloads = any(moves_itself(network) for network in networks.values())
        self._class: Any = type(pipe)
        self._call: Callable[..., Any] = inspect.unwrap(self._class.__call__)  # without its `no_grad`
        self.skips = skips(self._class)
        self.home = torch.device("cpu")
        _install_hush()

    @property
    def device(self) -> torch.device:
        """The device on which the pipeline computes."""
        return turns_on(self.pipe.components.values()) or self._class._execution_device.fget(self.pipe)

    @property
    def tells_places(self) -> bool:
        """Whether the pipeline makes a table of positions, into which the place of a window can be added."""
        return any(hasattr(self._class, name) for name in _TABLES)

    @property
    def unguided(self) -> float:
        """The strength of classifier-free guidance that turns it off: 1 for most pipelines, and 0 for some."""
        return float(not getattr(self._copy([], _guidance_scale=1.0), "do_classifier_free_guidance", False))

    def encode(self, reading: Reading, ip_images: Sequence[Any], **options: Any) -> Encoded:
        """Let the pipeline encode its texts and the pictures of an IP-Adapter, and stop it before its loop.

        Args:
            reading: notes what the tokenizers read.
            ip_images: the picture of an IP-Adapter for each text; empty if there is none.
            options: arguments of the pipeline's call.

        Returns:
            What the pipeline's own methods returned, with a row for each text.
        """
        tokenizers = {name: part for name, part in self.pipe.components.items() if name.startswith("tokenizer") and part}
        remembered = Encoded([], [])
        state = {name: reading.watched(tokenizer) for name, tokenizer in tokenizers.items()}
        one = _OneLevel(self.scheduler, Level(0, 999, 0.0, 1.0, 0, 1))
        with _READING:
            pipe = self._rehearse(options, **state, scheduler=one, remembered=remembered, ip_images=ip_images)
        reading.guides = getattr(pipe, "do_classifier_free_guidance", True)
        return remembered

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
        self._rehearse({**options, "num_inference_steps": steps}, scheduler=scheduler, answers=encoded.again())
        return scheduler

    def predict(
        self,
        level: Level,
        encoded: Encoded,
        image_latents: list[Tensor],
        origin: tuple[int, int] | None = None,
        guided: bool = True,
        **options: Any,
    ) -> Tensor:
        """The pipeline's guided prediction for noisy latents, in its own layout.

        Args:
            level: the noise level of the latents.
            encoded: what `encode` returned, with a row for each window.
            image_latents: what the pipeline encoded of pictures in an earlier call with the same ones, in order. An empty list
                is filled.
            origin: the place that the windows are told, in cells; None for none.
            guided: whether the options ask for classifier-free guidance.
            options: arguments of the pipeline's call; `latents` are among them.
        """
        if not self.skips:  # it would not reach a later step
            level = Level(0, level.t, level.alpha, level.sigma, 0, 1)
        one, device = _OneLevel(self.scheduler, level), options["latents"].device
        if self.offloads and device.type != self.home.type:
            raise SettingError(
                f"the networks of the pipeline are offloaded or quantised, so it computes on {self.home}, and the runtime on "
                f"{device}: move the pipeline there first, or choose Runtime(accelerator={self.home.type!r})"
            )
        pipe = self._copy(
            image_latents,
            scheduler=one,
            answers=encoded.again(guided),
            ahead=level.step,
            origin=origin,
            device_of_run=device,
        )
        with computing(self._class.__name__), weights_kept() if self.offloads else nullcontext():
            self._until_stopped(pipe, {**options, "num_inference_steps": level.steps})
        return one.prediction

    def _copy(self, image_latents: list[Tensor], **state: Any) -> Any:
        """The pipeline for one call, with other attributes."""
        pipe = object.__new__(type(self.pipe))
        vars(pipe).update(vars(self.pipe), **state)
        if self.steady:
            vars(pipe)["vae"] = _SteadyEncoder(self.pipe.vae, image_latents, first_alone=pipe.rehearses)
        return pipe

    def _rehearse(self, options: Mapping[str, Any], **state: Any) -> Any:
        """Call the pipeline until it begins its loop: the pipeline after this call."""
        self.home = self.device
        pipe = self._copy([], device_of_run=self.home, rehearses=True, **state)
        try:
            with without_numpy_warnings():
                self._until_stopped(pipe, options)
        except Exception as cause:  # a wrong argument, or a template that comes with a tokenizer, raises any
            if isinstance(cause, PanokitError) or is_out_of_memory(cause):
                raise
            reason = reason_of(cause).rstrip(".")
            raise SettingError(f"{self._class.__name__} refuses what it is called with: {reason}") from cause
        return pipe

    def _until_stopped(self, pipe: Any, options: Mapping[str, Any]) -> None:
        hush = _HUSHED.set(True)
        try:
            with _exact_times():
                self._call(pipe, **options, output_type="latent")
        except _Stopped:
            return
        finally:
            _HUSHED.reset(hush)
        raise ModelError(f"{self._class.__name__} neither shows its progress nor steps a scheduler: it cannot be driven")


def _subclassed(pipe: Any) -> Any:
    """The same pipeline with the same parts, as an object of a class whose calls can be stopped and answered."""
    base: Any = type(pipe)

    class DrivenPipeline(base):
        answers: Answers | None = None
        remembered: Encoded
        ip_images: Sequence[Any] = ()
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
            self,
            ip_adapter_image: Any = None,
            ip_adapter_image_embeds: Any = None,
            device: Any = None,
            num_images_per_prompt: int = 1,
            *more: Any,
            **named: Any,
        ) -> Any:
            """Encode the picture of each text, one by one. A second call is for the pictures to avoid, the same for all."""
            if self.answers is not None:
                return next(self.answers.image_embeds)
            first = not self.remembered.image_embeds
            pictures = self.ip_images if first and self.ip_images else [ip_adapter_image] * num_images_per_prompt
            prepare = super().prepare_ip_adapter_image_embeds
            rows = [prepare(picture, ip_adapter_image_embeds, device, 1, *more, **named) for picture in pictures]
            self.remembered.image_embeds.append(rows)
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
            object.__setattr__(self, name, value)  # diffusers' own image_embeds each name up in its configuration

    driven = copy.copy(pipe)
    driven.__class__ = DrivenPipeline
    return driven


@contextmanager
def _exact_times() -> Iterator[None]:
    """Inside, new tensors have 32 bits or more. Where networks have half of them, times would be rounded like their weights."""
    default = torch.get_default_dtype()
    exact = torch.promote_types(default, torch.float32)
    if exact == default:
        yield
        return
    torch.set_default_dtype(exact)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


class _Hush(logging.Filter):
    """Lets libraries log errors alone inside a driven call. They would repeat their advice for each window."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or not _HUSHED.get()


_HUSH = _Hush()


def _install_hush() -> None:
    for name in ("diffusers", "transformers"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(_HUSH)  # a second time changes nothing


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

    def __init__(self, vae: Any, known: list[Tensor], *, first_alone: bool) -> None:
        self._vae, self._known, self._first_alone = vae, known, first_alone
        self._next = 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self._vae, name)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Any:
        if self._next == len(self._known):
            some = pixels[:1] if self._first_alone else pixels  # of a rehearsal nothing but the shape is used
            z = mode_of(self._vae, some)
            self._known.append(z.expand(len(pixels), *z.shape[1:]) if self._first_alone else z)
        z = self._known[self._next]
        self._next += 1
        posterior = SimpleNamespace(sample=lambda generator=None: z, mode=lambda: z)
        return SimpleNamespace(latent_dist=posterior)
