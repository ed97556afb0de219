"""Stable Diffusion through diffusers and transformers: the denoiser, the codec, and how they are loaded."""

import json
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final, get_args

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from panokit.backbones.diffusers.execution import set_attention, set_checkpointing, set_compiled
from panokit.backbones.diffusers.parts import explained, quiet, read_network
from panokit.backbones.diffusers.sources import folder_of
from panokit.backbones.diffusers.weights import find_weights
from panokit.denoiser import Codec, Denoiser, Model
from panokit.errors import ModelError, PromptWarning, SettingError
from panokit.family import Family
from panokit.scene import Mixture, Scene
from panokit.scheduler import Level, Prediction, Training
from panokit.settings import Execution
from panokit.windows import Windows


@dataclass(frozen=True)
class Embeddings:
    """The embedded texts of a run.

    Attributes:
        texts: one row for each text of the scene.
        negatives: what to avoid, for each text; None without classifier-free guidance.
        scene: the scene itself, which decides the texts of each window.
        maps: the shares of the texts on each canvas, by its size, from when they are first asked for.
    """

    texts: Float[Tensor, "k length width"]
    negatives: Float[Tensor, "k length width"] | None
    scene: Scene
    maps: dict[tuple[int, ...], Tensor | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Condition:
    """The conditioning of some windows.

    Attributes:
        text: the embedded texts of the windows, one for each entry of the mixture.
        negative: what to avoid, for each entry; None without classifier-free guidance.
        scale: strength of classifier-free guidance.
        mixture: which entries belong to a window, and their shares.
    """

    text: Float[Tensor, "m length width"]
    negative: Float[Tensor, "m length width"] | None
    scale: float
    mixture: Mixture


@final
class UNetDenoiser(Denoiser):
    r"""A text-conditioned UNet with classifier-free guidance.

    $$ \epsilon = \epsilon_- + g (\epsilon_+ - \epsilon_-) $$

    $\epsilon_+$ is the prediction for the prompt, $\epsilon_-$ the one for the negative prompt, and $g$ the guidance scale (Ho
    & Salimans 2022, eq. 6, in the parametrisation of Stable Diffusion: $g = 1$ is no guidance). Both go through the network in
    one batch. They are combined in the precision of the canvas.

    Args:
        unet: predicts from latents, a timestep and embedded texts.
        text_encoder: embeds texts.
        tokenizer: cuts texts into tokens.
        training: the noise that the UNet was trained with.
        known_words: all words that the model was trained on, for a warning about prompts without any; empty if unknown.
    """

    choices = frozenset({"attention", "checkpointing", "compile"})

    def __init__(
        self,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        training: Training,
        known_words: frozenset[str] = frozenset(),
    ) -> None:
        self.unet, self.text_encoder, self.tokenizer = unet, text_encoder, tokenizer
        self.training, self.known_words = training, known_words
        self.channels = unet.config.in_channels
        size = unet.config.sample_size
        self.window = (size, size) if isinstance(size, int) else tuple(size)

    def modules(self) -> Iterable[nn.Module]:
        return (self.unet, self.text_encoder)

    def configure(self, execution: Execution) -> None:
        set_attention(self.unet, execution.attention)
        set_checkpointing(self.unet, execution.checkpointing)
        set_compiled(self.unet, execution.compile)

    def encode(self, scene: Scene) -> Embeddings:
        for text in scene.texts:
            self._warn_of_unknown_words(text)
            self._warn_of_truncation(text)
        if scene.guidance_scale <= 1:
            return Embeddings(self._embed(scene.texts), None, scene)
        negatives = list(dict.fromkeys(scene.negatives))
        rows = self._embed(negatives)
        which = [negatives.index(text) for text in scene.negatives]
        return Embeddings(self._embed(scene.texts), rows[which] if len(rows) > 1 else rows.expand(len(which), -1, -1), scene)

    def _embed(self, texts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(
            list(texts),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return self.text_encoder(tokens.input_ids.to(self.text_encoder.device))[0]

    def _warn_of_unknown_words(self, text: str) -> None:
        if self.known_words and text and self.known_words.isdisjoint(re.findall(r"[^\W\d_]+", text.lower())):
            some = ", ".join(sorted(self.known_words, key=lambda word: (len(word), word))[-24:])
            message = f"this model knows no word of the prompt {text!r}; it knows, for instance: {some}"
            warnings.warn(message, PromptWarning, stacklevel=6)

    def _warn_of_truncation(self, text: str) -> None:
        tokens, limit = self.tokenizer(text, verbose=False).input_ids, self.tokenizer.model_max_length
        if len(tokens) > limit:
            cut = self.tokenizer.decode(tokens[limit - 1 : -1])
            message = f"the prompt has {len(tokens)} tokens and this model reads {limit}: {cut!r} at its end is cut off"
            warnings.warn(message, PromptWarning, stacklevel=6)

    def condition(self, embeddings: Embeddings, windows: Windows, index: Sequence[int]) -> Condition:
        scene, size = embeddings.scene, windows.size
        if size not in embeddings.maps:
            embeddings.maps[size] = scene.maps(size)
        mixture = scene.mixture(embeddings.maps[size], windows, index)
        negative = None if embeddings.negatives is None else _entries(embeddings.negatives, mixture)
        return Condition(_entries(embeddings.texts, mixture), negative, scene.guidance_scale, mixture)

    def __call__(self, x: Float[Tensor, "n c h w"], level: Level, condition: Condition) -> Float[Tensor, "n c h w"]:
        mixture = condition.mixture
        x = x if mixture.shares is None else x[mixture.rows]
        if condition.negative is None:
            return mixture.mix(self._predict(x, level, condition.text))
        both = self._predict(torch.cat([x, x]), level, torch.cat([condition.negative, condition.text]))
        negative, positive = both.chunk(2)
        return mixture.mix(torch.lerp(negative, positive, condition.scale))

    def _predict(self, x: Tensor, level: Level, text: Tensor) -> Tensor:
        t = torch.full((len(x),), level.t, device=x.device)
        dtype = next(self.unet.parameters()).dtype  # diffusers' own `dtype` goes through all modules each time
        return self.unet(x.to(dtype), t, text.to(dtype), return_dict=False)[0].to(x.dtype)


def _entries(texts: Tensor, mixture: Mixture) -> Tensor:
    """The embedded text of each entry of a mixture. One text is repeated without a copy."""
    return texts.expand(len(mixture.rows), -1, -1) if len(texts) == 1 else texts[mixture.texts]


@final
class VAECodec(Codec):
    """The codec of Stable Diffusion, diffusers' `AutoencoderKL`.

    Args:
        vae: the autoencoder; its configuration gives the factor and the scale of the latents.
    """

    choices = frozenset({"checkpointing"})

    def __init__(self, vae: AutoencoderKL) -> None:
        self.vae = vae
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)

    def modules(self) -> Iterable[nn.Module]:
        return (self.vae,)

    def configure(self, execution: Execution) -> None:
        set_checkpointing(self.vae, execution.checkpointing)

    def encode(self, images: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n c h w"]:
        latents = self.vae.encode((images * 2 - 1).to(self.vae.dtype)).latent_dist.mode()
        return latents.to(images.dtype) * self.vae.config.scaling_factor

    def decode(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 H W"]:
        images = self.vae.decode((latents / self.vae.config.scaling_factor).to(self.vae.dtype), return_dict=False)[0]
        return images.to(latents.dtype) / 2 + 0.5


@final
@dataclass(frozen=True)
class StableDiffusion(Family):
    """Stable Diffusion 1.x and 2.x, and models that are built like them. Weights are read as float32.

    Attributes:
        variant: reads weights of this variant, such as `fp16` for files `*.fp16.safetensors`; None for plain names, or for the
            only variant that there is.
        window: cells along a side of a window, a multiple of 8; None for the size that the model was trained at.

    Raises:
        SettingError: the window is below 8 cells, or no multiple of 8.
    """

    variant: str | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        if self.window is not None and (self.window < 8 or self.window % 8):
            near = max(8, round(self.window / 8) * 8)
            raise SettingError(f"window is {self.window}: it must be a multiple of 8 cells; the nearest is {near}")

    @classmethod
    def reads(cls, index: Mapping[str, Any]) -> bool:
        return "unet" in index and not {"transformer", "text_encoder_2", "text_encoder_3"} & index.keys()

    def load(self, source: str, name: str) -> Model:
        what = f"the model {source}"
        folder = folder_of(source, variant=self.variant)
        for needed in ("unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"):
            if not (folder / needed).is_file():
                raise ModelError(f"{what} has no {needed}: it must be in diffusers' format")
        if not (folder / "tokenizer").is_dir():
            raise ModelError(f"{what} has no tokenizer: it must be in diffusers' format")
        kinds = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
        weights = {part: find_weights(folder / part, self.variant, what) for part in kinds}
        if self.variant and not any(found.variant for found in weights.values()):
            raise ModelError(f"{what} has no {self.variant} weights but plain ones: leave the model's variant out")
        unet, vae, text_encoder = (read_network(kind, weights[part], torch.float32, what) for part, kind in kinds.items())
        with quiet(), explained(what, "check the tokenizer and the scheduler, or fetch them again"):
            tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
            config = DDIMScheduler.load_config(folder / "scheduler", local_files_only=True)
        reason = _unfit(unet.config, vae.config, text_encoder.config, config)
        if reason:
            raise ModelError(
                f"the model {source} is of a kind that panokit cannot drive, {reason}: use Stable Diffusion 1.x or 2.x"
            )
        known = folder / "tokenizer" / "known_words.json"
        words = frozenset(json.loads(known.read_text())) if known.is_file() else frozenset()
        denoiser = UNetDenoiser(unet, text_encoder, tokenizer, _training(config), words)
        if self.window is not None:
            denoiser.window = (self.window, self.window)
        return Model(denoiser, VAECodec(vae), name)


def _unfit(unet: Any, vae: Any, text_encoder: Any, scheduler: dict[str, Any]) -> str | None:
    """The reason why a model's configuration is not that of Stable Diffusion 1.x or 2.x; None if it is."""
    channels = (unet.in_channels, unet.out_channels, vae.latent_channels)
    prediction = scheduler.get("prediction_type", "epsilon")
    if len(set(channels)) > 1:
        return f"its UNet takes {channels[0]} channels and returns {channels[1]}, and its latents have {channels[2]}"
    if unet.addition_embed_type is not None or unet.class_embed_type is not None:
        return "its UNet needs more than a text"
    if unet.cross_attention_dim != text_encoder.hidden_size:
        return (
            f"its UNet reads texts of width {unet.cross_attention_dim}, and its text encoder writes {text_encoder.hidden_size}"
        )
    if unet.sample_size is None:
        return "its UNet's configuration lacks the size that it was trained at (sample_size)"
    if prediction not in get_args(Prediction):
        return f"it predicts {prediction!r}"
    kind = str(scheduler.get("_class_name", ""))
    if "FlowMatch" in kind or "EDM" in kind or scheduler.get("use_flow_sigmas"):
        return f"its scheduler, {kind or 'of flow matching'}, has other noise levels than betas make"
    if scheduler.get("trained_betas") is not None:
        return "its scheduler has a list of betas (trained_betas)"
    return None


def _training(config: dict[str, Any]) -> Training:
    """The training noise of a model, from the configuration of its diffusers scheduler."""
    return Training(
        prediction=config.get("prediction_type", "epsilon"),
        timesteps=config.get("num_train_timesteps", 1000),
        beta_start=config.get("beta_start", 0.0001),
        beta_end=config.get("beta_end", 0.02),
        beta_schedule=config.get("beta_schedule", "linear"),
        zero_snr=config.get("rescale_betas_zero_snr", False),
    )
