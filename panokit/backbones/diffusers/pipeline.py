"""Any text-to-image pipeline of diffusers as a denoiser."""

import copy
import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from panokit.backbones.diffusers.driven import Driven
from panokit.backbones.diffusers.execution import set_attention, set_checkpointing, set_compiled
from panokit.backbones.diffusers.networks import OTHERS, add_casts, cast_all, moves_itself, shared
from panokit.backbones.diffusers.own import own_solver, training_of
from panokit.denoiser import Denoiser
from panokit.errors import ModelError, SettingError
from panokit.scene import Mixture, Scene
from panokit.scheduler import Level, Solver
from panokit.settings import Execution
from panokit.windows import Windows


@final
@dataclass(frozen=True)
class Embeddings:
    """What a pipeline made of a scene.

    Attributes:
        texts: what its `encode_prompt` returned, call by call, with a row for each text of the scene.
        options: the other arguments of its call.
        scene: the scene itself, which decides the texts of each window.
        maps: the shares of the texts on each canvas, by its size, from when they are first asked for.
    """

    texts: list[Any]
    options: Mapping[str, Any]
    scene: Scene
    maps: dict[tuple[int, ...], Tensor | None] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class Condition:
    """The conditioning of some windows.

    Attributes:
        texts: what `encode_prompt` is to return, call by call, with a row for each entry of the mixture.
        options: the other arguments of the pipeline's call.
        mixture: which entries belong to a window, and their shares.
    """

    texts: list[Any]
    options: Mapping[str, Any]
    mixture: Mixture


@final
class PipelineDenoiser(Denoiser):
    """A pipeline of diffusers, which denoises windows through its own `__call__`, one noise level at a time.

    It shares the weights of the pipeline, and leaves the pipeline as it is.

    Args:
        pipe: a text-to-image pipeline. LoRAs and other adapters are loaded already.
        channels: channels of its latents.
        factor: pixels along a side of a latent cell.
        window: cells of a window along each axis; None for the size that the pipeline makes by itself.
        options: other arguments of the pipeline's call, the same at each step.

    Raises:
        ModelError: the pipeline cannot be driven. The message says what it lacks.
        SettingError: the pipeline packs cells into patches, which do not fill the window.
    """

    choices = frozenset({"attention", "checkpointing", "compile"})
    scheduler = "own"

    def __init__(
        self,
        pipe: Any,
        channels: int,
        factor: int,
        window: tuple[int, int] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        require_drivable(type(pipe))
        self.channels, self.factor = channels, factor
        self._takes = dict(inspect.signature(type(pipe).__call__).parameters)  # a sampler may copy it
        self._driven = Driven(pipe)
        networks = {name: shared(part) for name, part in pipe.components.items() if isinstance(part, nn.Module)}
        for name, network in networks.items():
            setattr(self._driven.pipe, name, network)
            if not name.startswith(OTHERS):
                add_casts(network)
        self._networks = networks
        self._config: Any = _network(pipe).config
        self.multiple = 2 if hasattr(pipe, "_pack_latents") or hasattr(pipe, "_patchify_latents") else 1
        self.window = window or self._own_window(pipe)
        if any(cells % self.multiple for cells in self.window):
            raise SettingError(
                f"a window of {self.window[0]} cells does not work with {type(pipe).__name__}: give an even number"
            )
        self._guidance = self._guidance_argument()
        self.steps = self._default("num_inference_steps", 50)
        self.guidance_scale = float(self._default(self._guidance, 1.0))
        fixed = {"use_resolution_binning": False, "num_frames": 1}
        self._options = {name: value for name, value in fixed.items() if name in self._takes} | dict(options or {})
        training = training_of(pipe.scheduler)
        flows = training.prediction == "flow_prediction"
        self.training = replace(training, own=self._own, sigmas=self._sigmas if flows else None)
        self._first: tuple[list[Any], Mapping[str, Any]] | None = None  # texts and options that a schedule can be asked with

    def modules(self) -> Iterable[nn.Module]:
        return [network for name, network in self._networks.items() if name != "vae" and not moves_itself(network)]

    def configure(self, execution: Execution) -> None:
        for name, network in self._networks.items():
            if not name.startswith(OTHERS):
                set_attention(network, execution.attention)
                set_checkpointing(network, execution.checkpointing)
                set_compiled(network, execution.compile)

    def noise(self, size: tuple[int, ...], generator: torch.Generator) -> Float[Tensor, "*c_size"]:
        if not hasattr(self._driven.pipe, "_patchify_latents"):
            return super().noise(size, generator)
        high, wide = size  # such pipelines draw noise for patches
        patches = torch.randn((self.channels * 4, high // 2, wide // 2), generator=generator)
        return rearrange(patches, "(c p q) h w -> c (h p) (w q)", p=2, q=2)

    def encode(self, scene: Scene) -> Embeddings:
        options: dict[str, Any] = {**self._options, self._guidance: scene.guidance_scale, "prompt": list(scene.texts)}
        if any(scene.negatives):
            options["negative_prompt"] = list(scene.negatives)
        sizes = self._sizes(torch.zeros(len(scene.texts), self.channels, *self.window))
        texts = self._driven.encode(**copy.deepcopy(options), **sizes)  # some pipelines write into the lists they are given
        texts = cast_all(texts, torch.float32)
        self._first = _rows(texts, len(scene.texts), [0]), _blank(options, 1)
        return Embeddings(texts, options, scene)

    def condition(self, embeddings: Embeddings, windows: Windows, index: Sequence[int]) -> Condition:
        scene, size = embeddings.scene, windows.size
        if size not in embeddings.maps:
            embeddings.maps[size] = scene.maps(size)
        mixture = scene.mixture(embeddings.maps[size], windows, index)
        texts = _rows(embeddings.texts, len(scene.texts), mixture.texts)
        return Condition(texts, _blank(embeddings.options, len(mixture.texts)), mixture)

    def __call__(self, x: Float[Tensor, "n c h w"], level: Level, condition: Condition) -> Float[Tensor, "n c h w"]:
        mixture = condition.mixture
        entries = x if mixture.shares is None else x[mixture.rows]
        pred = self._driven.predict(level, condition.texts, **condition.options, **self._sizes(entries))
        return mixture.mix(_unpacked(pred, entries).to(x.dtype))

    def _sizes(self, x: Tensor) -> dict[str, Any]:
        """The arguments of the pipeline's call that say which latents it denoises."""
        height, width = (cells * self.factor for cells in x.shape[-2:])
        return {
            "height": height,
            "width": width,
            "latents": _packed(self._driven.pipe, x[:, :, None] if "num_frames" in self._takes else x),
        }

    def _own(self, steps: int, device: torch.device) -> Solver:
        """The pipeline's own scheduler, set for a picture of one window."""
        eta = {"eta": self._options.get("eta", self._takes["eta"].default)} if "eta" in self._takes else {}
        return own_solver(self._scheduled(steps), device, eta)

    def _sigmas(self, steps: int) -> list[float]:
        """The noise at each step of a flow, as the pipeline sets it."""
        scheduler = self._scheduled(steps)
        return scheduler.sigmas[: len(scheduler.timesteps) : scheduler.order].tolist()

    @torch.no_grad()
    def _scheduled(self, steps: int) -> Any:
        """A copy of the pipeline's scheduler, set by the pipeline for a picture of one window."""
        if self._first is None:
            self.encode(Scene("", "", self.guidance_scale))
        texts, options = self._first or ([], {})
        return self._driven.scheduled(steps, texts, **options, **self._sizes(torch.zeros(1, self.channels, *self.window)))

    def _guidance_argument(self) -> str:
        """The argument of the pipeline's call that sets the strength of guidance."""
        true = "true_cfg_scale" in self._takes and not self._config.get("guidance_embeds")
        return "true_cfg_scale" if true else "guidance_scale"

    def _default(self, name: str, otherwise: Any) -> Any:
        """The default of an argument of the pipeline's call."""
        value = self._takes[name].default if name in self._takes else None
        return otherwise if value is None or value is inspect.Parameter.empty else value

    def _own_window(self, pipe: Any) -> tuple[int, int]:
        """Cells of the picture that the pipeline makes by itself."""
        if isinstance(self._default("height", None), int):
            return self._default("height", 0) // self.factor, self._default("width", 0) // self.factor
        size = self._config.get("sample_size") or getattr(pipe, "default_sample_size", 1024 // self.factor)
        return (size, size) if isinstance(size, int) else (size[0], size[1])


def require_drivable(pipeline: type) -> None:
    """Check that a pipeline's class has all that driving it needs.

    Args:
        pipeline: a class of diffusers.

    Raises:
        ModelError: it lacks something. The message says what.
    """
    call: Any = pipeline.__call__
    takes, inner = inspect.signature(call).parameters, getattr(call, "__wrapped__", None)
    names = inner.__code__.co_names if inner else ()
    missing = [f"an argument {name}" for name in ("prompt", "latents", "height", "width") if name not in takes]
    missing += [f"a call of {name}" for name in ("encode_prompt", "progress_bar", "scheduler") if name not in names]
    if missing:
        raise ModelError(
            f"{pipeline.__name__} cannot be driven one noise level at a time, for its __call__ lacks {', '.join(missing)}: "
            "use a pipeline that makes pictures from texts and takes latents"
        )


def _network(pipe: Any) -> Any:
    """The network that predicts."""
    for name in ("transformer", "unet", "transformer_2"):
        if getattr(pipe, name, None) is not None:
            return getattr(pipe, name)
    raise ModelError(f"{type(pipe).__name__} has neither a unet nor a transformer: use a pipeline that denoises latents")


def _blank(options: Mapping[str, Any], n: int) -> dict[str, Any]:
    """Arguments for a call with `n` texts that are encoded already."""
    return {**options, **{name: [""] * n for name in ("prompt", "negative_prompt") if name in options}}


def _rows(value: Any, k: int, texts: Sequence[int]) -> Any:
    """Pick the rows of some texts out of what was encoded for `k` texts."""
    if isinstance(value, Tensor):
        if not value.ndim or value.shape[0] != k:
            return value
        return value.expand(len(texts), *value.shape[1:]) if k == 1 else value[list(texts)]
    if isinstance(value, tuple):
        return tuple(_rows(part, k, texts) for part in value)
    if isinstance(value, list):
        return (
            [value[text] for text in texts]
            if len(value) == k and isinstance(value[0], Tensor)
            else [_rows(part, k, texts) for part in value]
        )
    return value


def _packed(pipe: Any, x: Tensor) -> Tensor:
    """Latents as the pipeline takes them."""
    if hasattr(pipe, "_patchify_latents"):
        return pipe._patchify_latents(x)
    if not hasattr(pipe, "_pack_latents"):
        return x
    n, c, *_, height, width = x.shape
    known = {"batch_size": n, "num_channels_latents": c, "height": height, "width": width, "patch_size": 2}
    takes = inspect.signature(pipe._pack_latents).parameters
    return pipe._pack_latents(x, **{name: value for name, value in known.items() if name in takes})


def _unpacked(pred: Tensor, x: Tensor) -> Tensor:
    """A prediction in the layout of the canvas: from tokens, which are patches of cells, or from a film of one frame."""
    if pred.ndim == 3:
        side = math.isqrt(pred.shape[2] // x.shape[1])
        return rearrange(pred, "n (h w) (c p q) -> n c (h p) (w q)", h=x.shape[2] // side, p=side, q=side)
    return pred[:, :, 0] if pred.ndim == 5 else pred
