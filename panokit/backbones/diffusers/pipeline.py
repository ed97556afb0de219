"""Any text-to-image pipeline of diffusers, and some of films, as a denoiser."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image

from panokit.backbones.diffusers import control
from panokit.backbones.diffusers.arguments import Arguments
from panokit.backbones.diffusers.codec import VAECodec
from panokit.backbones.diffusers.drivable import ALONE, FILMS
from panokit.backbones.diffusers.driven import Driven
from panokit.backbones.diffusers.execution import set_attention, set_checkpointing, set_compiled
from panokit.backbones.diffusers.networks import (
    OTHERS,
    add_casts,
    cast_all,
    copied,
    dtype_of,
    knows_no_places,
    moves_itself,
    patch_of,
    require_stateless,
    require_window,
    shared,
)
from panokit.backbones.diffusers.own import own_solver, training_of
from panokit.backbones.diffusers.packing import SIDE, packed, packs, patched_noise, patchifies, unpacked
from panokit.backbones.diffusers.reading import Encoded, Reading
from panokit.backbones.diffusers.rotary import Rounding, turns_around
from panokit.denoiser import Denoiser
from panokit.errors import ModelError, SettingError
from panokit.grid import Grid
from panokit.rings import Ring, circular
from panokit.scene import Mixture, Mixtures, Scene
from panokit.scheduler import Level, Solver
from panokit.settings import Execution
from panokit.windows import Projected, Windows

Rings = Literal["all", "high", "windows"]
"""How a window is a ring: with which rotary frequencies rounded; or not, but windows that overlap go around."""
Positions = Literal["local", "offset"]
"""Whether a window is told that it is a whole picture, or its place on the canvas."""


@final
@dataclass(frozen=True)
class Embeddings:
    """What a pipeline made of a scene.

    Attributes:
        encoded: what it encoded for the texts of the scene.
        options: the other arguments of its call.
        control_image: the control picture; None if there is none.
        mixtures: the scene, and which texts each window needs.
        scales: the strengths of guidance of its texts.
        references: what the pipeline encoded of pictures that are the same for all windows, for each size of a batch and of its
            windows.
    """

    encoded: Encoded
    options: Mapping[str, Any]
    control_image: control.ControlImage | None
    mixtures: Mixtures
    scales: frozenset[float]
    references: dict[tuple[int, ...], list[Tensor]] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class Call:
    """One call of a pipeline, for some windows.

    Attributes:
        rows: the windows' rows among the entries of the mixture.
        encoded: what it encoded before, with a row for each window.
        options: the other arguments of the pipeline's call.
        kept: what the pipeline encoded of pictures for these windows before, without and with guidance; the first call fills
            it.
        guided: whether it guides.
        origin: the place that the windows are told, in cells; None for none.
    """

    rows: slice
    encoded: Encoded
    options: Mapping[str, Any]
    kept: tuple[list[Tensor], list[Tensor]]
    guided: bool
    origin: tuple[int, int] | None = None


@final
@dataclass(frozen=True)
class Condition:
    """The conditioning of some windows.

    Attributes:
        mixture: which texts belong to a window, and their shares.
        calls: the calls of the pipeline that denoise the entries of the mixture, in order.
        end: the share of the steps after which classifier-free guidance is off.
        ring: the ring that the windows see; None for none.
    """

    mixture: Mixture
    calls: Sequence[Call]
    end: float
    ring: Ring | None


@final
class PipelineDenoiser(Denoiser):
    """A pipeline of diffusers, which denoises windows through its own `__call__`, one noise level at a time.

    It shares the weights of the pipeline, and leaves the pipeline as it is.

    Args:
        pipe: a text-to-image pipeline, or one of `FILMS`. LoRAs and other adapters are loaded already.
        codec: encodes and decodes its latents.
        window: cells of a window along its height and width; None for the size that the pipeline makes by itself.
        positions: `local` tells the model that each window is a whole picture. `offset` tells it the window's place on the
            canvas; then windows are denoised one by one, for a pipeline takes one place a call.
        ring: how a window is a ring where the canvas is one and as long. See `Diffusers`.
        options: other arguments of the pipeline's call, the same at each step. `num_frames` is that of a window of a film; 1
            makes a model of pictures.

    Raises:
        ModelError: a network caches steps, or there are several ControlNets.
        SettingError: the pipeline tells its model no positions, the window does not fit its patches, or its frames do not fit
            those of the autoencoder.
    """

    choices = frozenset({"attention", "checkpointing", "compile"})
    scheduler = "own"

    def __init__(
        self,
        pipe: Any,
        codec: VAECodec,
        *,
        window: tuple[int, int] | None = None,
        positions: Positions = "local",
        ring: Rings = "all",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        options = options or {}
        self.channels, self.factor, self.positions = codec.channels, codec.factor, positions
        self._name = type(pipe).__name__
        self._networks: dict[str, Any] = {}
        for name, network in pipe.components.items():
            if isinstance(network, nn.Module) and name not in ("vae", "safety_checker"):
                require_stateless(f"{name} of {self._name}", network)
                self._networks[name] = shared(network)
                if not name.startswith(OTHERS):
                    add_casts(self._networks[name])
        self._movers = frozenset(name for name, network in self._networks.items() if moves_itself(network))
        self._control = control.argument_of(pipe)
        if self._control:
            self.fields = frozenset({control.FIELD})
            if len(getattr(getattr(pipe, "controlnet", None), "nets", ())) > 1:
                raise ModelError(f"{self._name} has several ControlNets, and panokit shows windows one picture: use one")
            if self._control in options:
                raise SettingError(f"{self._control} of {self._name} is a setting of the sampler's call, control_image")
        network = _network(pipe)
        self.multiple = SIDE if packs(pipe) else 1
        if ring != "windows":
            self.ringless = self._turn_around(patch_of(network.config, self.multiple), ring)
            self.rings = not self.ringless
        self._driven = Driven(pipe, {**self._networks, "vae": codec.vae}, steady=bool(self._control or "image" in options))
        self._arguments = Arguments(pipe, network.config, options)
        if not self._driven.skips:
            self._arguments.require_no_steps()
        self.steps, self.guidance_scale = self._arguments.steps, self._arguments.guidance_scale
        self.has_ip_adapter = _has_ip_adapter(network) and "ip_adapter_image_embeds" not in self._arguments.options
        self.window = window or self._arguments.window(self.factor)
        require_window(self.window, network.config, self.multiple)
        self.fps, self._time = FILMS.get(self._name, self.fps), codec.time
        if (frames := self._arguments.frames) != 1:
            self.window = _latent_frames(frames, codec.time), *self.window
        if positions == "offset" and not (self._driven.tells_places or self._arguments.takes_crops):
            raise SettingError(f"{self._name} cannot be told where a window lies: set positions to local")
        training = training_of(pipe.scheduler)
        flows = training.prediction == "flow_prediction"
        self.training = replace(training, own=self._own, sigmas=self._sigmas if flows else None)
        self._sample: tuple[Encoded, Mapping[str, Any]] | None = None  # one text, for rehearsals in which no text matters

    def modules(self) -> Iterable[nn.Module]:
        return [network for name, network in self._networks.items() if name not in self._movers]

    def configure(self, execution: Execution) -> None:
        for name, network in self._networks.items():
            if not name.startswith(OTHERS) and name not in self._movers:
                set_attention(network, execution.attention)
                set_checkpointing(network, execution.checkpointing)
                set_compiled(network, execution.compile)

    def __deepcopy__(self, memo: dict[int, Any]) -> "PipelineDenoiser":
        """A copy in another precision, or on another device. Networks that move themselves stay the same objects."""
        return copied(self, memo, [self._networks[name] for name in self._movers])

    def noise(self, size: tuple[int, ...], generator: torch.Generator) -> Float[Tensor, "*c_size"]:
        if patchifies(self._driven.pipe):
            return patched_noise(self.channels, size, generator)
        return super().noise(size, generator)

    def encode(self, scene: Scene) -> Embeddings:
        options, reading = self._arguments.of(scene), Reading()
        control_image = control.ControlImage(scene, self._driven.device) if scene.fields else None
        windows, numbers = self._one_window(), [0] * len(scene.texts)
        pictures = self._pictures(control_image, windows, numbers)
        ip_images = [to_pil_image(picture) for picture in scene.ip_adapter_images if picture is not None]
        if ip_images:
            options["ip_adapter_image"] = ip_images[0]
        # Some pipelines write into the lists that they are given.
        encoded = self._driven.encode(reading, ip_images, **copy.deepcopy(options), **pictures, **self._latents(len(numbers)))
        reading.warn_of_cuts(scene)
        self._arguments.warn(scene, reading)
        if encoded.texts:
            options = self._arguments.without_embeddings(options)
        wide = torch.promote_types(dtype_of(_network(self._driven.pipe)), torch.float32)
        encoded = Encoded(cast_all(encoded.texts, wide), cast_all(encoded.image_embeds, wide))
        first = {name: picture[:1] for name, picture in pictures.items()}
        self._sample = encoded.picked(len(scene.texts), [0]), {**self._arguments.blank(options, 1), **first}
        return Embeddings(encoded, options, control_image, Mixtures(scene), frozenset(scene.guidance_scales))

    def condition(self, embeddings: Embeddings, windows: Windows, index: Sequence[int]) -> Condition:
        if windows.window != self.window:  # those of a denoiser around this one
            require_window(windows.window[-2:], _network(self._driven.pipe).config, self.multiple)
        mixture = embeddings.mixtures.of(windows, index)
        entries = list(zip([index[row] for row in mixture.rows], mixture.texts, strict=True))
        alone = self.positions != "local" or self._name in ALONE
        calls, start = [], 0
        for scale, group in groupby(mixture.scales):  # a call has one strength of guidance
            end = start + len(list(group))
            step = 1 if alone else end - start
            calls += [self._call(embeddings, windows, entries, slice(k, k + step), scale) for k in range(start, end, step)]
            start = end
        ring = Ring.of(windows) if self.rings else None
        return Condition(mixture, calls, embeddings.mixtures.scene.guidance_end, ring)

    def __call__(self, x: Float[Tensor, "n *c_window"], level: Level, condition: Condition) -> Float[Tensor, "n *c_window"]:
        with circular(condition.ring):
            return self._mixed(x, level, condition)

    def _mixed(self, x: Tensor, level: Level, condition: Condition) -> Tensor:
        mixture = condition.mixture
        entries = x if mixture.shares is None else x[mixture.rows]
        preds = []
        off = self._arguments.unguided(self._driven.unguided) if level.progress >= condition.end else {}
        for call in condition.calls:
            guided = call.guided and not off
            some = entries[call.rows]
            latents = packed(self._driven.pipe, some)
            options = {**call.options, **off, "latents": latents}
            pred = self._driven.predict(level, call.encoded, call.kept[guided], call.origin, guided, **options)
            preds.append(unpacked(pred, some).to(x.dtype))
        return mixture.mix(preds[0] if len(preds) == 1 else torch.cat(preds))

    def _turn_around(self, patch: int, rounding: Rounding) -> str:
        """Have all networks that predict see a window as a ring. Returns why they cannot; an empty text if they can."""
        for name, network in self._networks.items():
            if name.startswith(OTHERS) or knows_no_places(network) or turns_around(network, patch, rounding):
                continue
            if name in self._movers:
                return f"hooks of the {name} move its weights"
            return f"the positions of {type(network).__name__} have ends"
        return ""

    def _call(
        self, embeddings: Embeddings, windows: Windows, entries: Sequence[tuple[int, int]], rows: slice, scale: float
    ) -> Call:
        """The call of the pipeline for some entries of a mixture: pairs of a window and a text, guided equally strongly."""
        numbers, texts = [number for number, _ in entries[rows]], [text for _, text in entries[rows]]
        pictures = self._pictures(embeddings.control_image, windows, numbers)
        options, origin = {**self._arguments.blank(embeddings.options, len(texts)), **pictures}, None
        if len(embeddings.scales) > 1:
            options |= self._arguments.guiding(scale)
        if self.positions == "offset":
            if isinstance(windows, Projected):
                raise SettingError(
                    "the model is told the places of windows on a plane, and this canvas is none: set its positions to local"
                )
            top, left = windows.cells(numbers)[0, :, 0, 0].tolist()
            origin = top, left
            options |= self._arguments.place(origin, windows.window, windows.size, self.factor)
        encoded = embeddings.encoded.picked(len(embeddings.mixtures.scene.texts), texts)
        options |= self._arguments.size(windows.window, self.factor, self._time)
        kept = self._kept(embeddings, windows, numbers, False), self._kept(embeddings, windows, numbers, True)
        return Call(rows, encoded, options, kept, len(embeddings.scales) == 1 or scale > self._driven.unguided, origin)

    def _kept(self, embeddings: Embeddings, windows: Windows, numbers: Sequence[int], guided: bool) -> list[Tensor]:
        """What the pipeline encoded of pictures in an earlier call for such windows: a list to fill if there was none."""
        if embeddings.control_image:
            return embeddings.control_image.latents(windows, numbers, guided)
        return embeddings.references.setdefault((guided, len(numbers), *windows.window), [])

    def _pictures(
        self, control_image: control.ControlImage | None, windows: Windows, numbers: Sequence[int]
    ) -> dict[str, Tensor]:
        """The argument of the pipeline's call that shows windows their part of the control picture."""
        if not self._control or not control_image:
            return {}
        return {self._control: control.as_taken(self._driven.pipe, control_image.crops(windows.refined(self.factor), numbers))}

    def _latents(self, n: int) -> dict[str, Any]:
        """Arguments of the pipeline's call for `n` empty windows."""
        empty = torch.zeros(n, self.channels, *self.window, device=self._driven.device)
        return {"latents": packed(self._driven.pipe, empty), **self._arguments.size(self.window, self.factor, self._time)}

    def _one_window(self) -> Grid:
        """The layout of a canvas that is one window."""
        return Grid(self.window, self.window, self.window, (False,) * len(self.window))

    def _own(self, steps: int, device: torch.device) -> Solver:
        """The pipeline's own scheduler, set for a picture of one window."""
        return own_solver(self._scheduled(steps), device, {"eta": self._arguments.default("eta", 0.0)})

    def _sigmas(self, steps: int) -> list[float]:
        """The noise at each step of a flow, as the pipeline sets it."""
        scheduler = self._scheduled(steps)
        sigmas = scheduler.sigmas[: len(scheduler.timesteps) : scheduler.order]
        times = scheduler.timesteps[:: scheduler.order] / scheduler.config.num_train_timesteps
        if not torch.allclose(times.to(sigmas), sigmas, rtol=0, atol=0.01):
            raise SettingError(
                f"{self._name} tells its network other times than those of the noise: use its own scheduler, own"
            )
        return sigmas.tolist()

    @torch.no_grad()
    def _scheduled(self, steps: int) -> Any:
        """A copy of the pipeline's scheduler, set by the pipeline for a picture of one window. Texts do not matter."""
        if self._sample is None:
            black = torch.zeros(3, *(cells * self.factor for cells in self.window[-2:]))
            image = black if self.has_ip_adapter else None
            self.encode(Scene("", "", self.guidance_scale, dict.fromkeys(self.fields, black), image))
        encoded, options = self._sample or (Encoded([], []), {})
        return self._driven.scheduled(steps, encoded, **{**options, **self._latents(1)})


def _latent_frames(frames: Any, time: int) -> int:
    """Latent frames of a film.

    Raises:
        SettingError: there is no such film.
    """
    if not isinstance(frames, int) or frames < 1 or (frames - 1) % time:
        near = max(0, round((frames - 1) / time)) * time + 1 if isinstance(frames, int) else 4 * time + 1
        raise SettingError(
            f"num_frames of the model came as {frames!r}: it must be 1, {time + 1}, {2 * time + 1}, ...; try {near}"
        )
    return (frames - 1) // time + 1


def _network(pipe: Any) -> Any:
    """The network that predicts."""
    for name in ("transformer", "unet", "transformer_2"):
        if getattr(pipe, name, None) is not None:
            return getattr(pipe, name)
    raise ModelError(f"{type(pipe).__name__} has neither a unet nor a transformer: use a pipeline that denoises latents")


def _has_ip_adapter(network: Any) -> bool:
    """Whether an IP-Adapter is loaded into a network."""
    projection = getattr(network, "encoder_hid_proj", None)
    return hasattr(projection, "image_projection_layers") or getattr(network, "image_proj", None) is not None
