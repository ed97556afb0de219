"""Stable Diffusion through diffusers and transformers: the denoiser, the codec, and how they are loaded."""

import json
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, final, get_args

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from panokit.backbones.diffusers.codec import VAECodec
from panokit.backbones.diffusers.configurations import read_configuration, require_fitting, require_values
from panokit.backbones.diffusers.execution import set_attention, set_checkpointing, set_compiled
from panokit.backbones.diffusers.networks import computing, require_window
from panokit.backbones.diffusers.own import scheduler_class, training_from
from panokit.backbones.diffusers.parts import explained, read_network
from panokit.backbones.diffusers.reading import Reading, excerpt, kinds_of
from panokit.backbones.diffusers.tokenizers import read_tokenizer
from panokit.backbones.diffusers.weights import find_weights, require_variant
from panokit.denoiser import Denoiser, Model
from panokit.errors import ModelError, PromptWarning
from panokit.family import read_json
from panokit.hints import fit
from panokit.rings import Ring, circular
from panokit.scene import Mixture, Mixtures, Scene
from panokit.scheduler import Level, Prediction, Training
from panokit.settings import Execution
from panokit.windows import Windows


@dataclass(frozen=True)
class Embeddings:
    """The embedded texts of a run.

    Attributes:
        texts: one row for each text of the scene.
        negatives: what to avoid, for each text; None without classifier-free guidance.
        mixtures: the scene, and which texts each window needs.
        repeated: the rows of `batch` where there is one text, by their number. They are the same at each step.
    """

    texts: Float[Tensor, "k length width"]
    negatives: Float[Tensor, "k length width"] | None
    mixtures: Mixtures
    repeated: dict[int, Tensor] = field(default_factory=dict)

    def batch(self, mixture: Mixture) -> Float[Tensor, "m2 length width"]:
        """The texts of the entries of a mixture, after what to avoid for each of them, if there is guidance."""
        rows = [self.texts] if self.negatives is None else [self.negatives, self.texts]
        if len(self.texts) > 1:
            return torch.cat([texts[mixture.texts] for texts in rows])
        count = len(mixture.rows)
        if count not in self.repeated:
            self.repeated[count] = torch.cat([texts.expand(count, -1, -1) for texts in rows])
        return self.repeated[count]


@dataclass(frozen=True)
class Condition:
    """The conditioning of some windows.

    Attributes:
        texts: the embedded texts of the windows, one for each entry of the mixture; with classifier-free guidance, after what
            to avoid for each entry.
        guided: whether there is classifier-free guidance.
        scale: strength of classifier-free guidance, one for all entries or `m 1 1 1`.
        mixture: which entries belong to a window, and their shares.
        end: the share of the steps after which classifier-free guidance is off.
        ring: the ring that the windows see; None for none.
    """

    texts: Float[Tensor, "m2 length width"]
    guided: bool
    scale: float | Float[Tensor, "m 1 1 1"]
    mixture: Mixture
    end: float
    ring: Ring | None


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
    rings = True  # its convolutions alone know places

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
        reading, rows = Reading(), None
        texts = self._embed(scene.texts, reading)
        if max(scene.guidance_scales) > 1:
            negatives = list(dict.fromkeys(scene.negatives))
            rows = self._embed(negatives, reading)
            which = [negatives.index(text) for text in scene.negatives]
            rows = rows[which] if len(rows) > 1 else rows.expand(len(which), -1, -1)
        reading.warn_of_cuts(scene)
        self._warn_of_unknown_words(scene)
        return Embeddings(texts, rows, Mixtures(scene))

    def _embed(self, texts: Sequence[str], reading: Reading) -> Tensor:
        """The embedded texts, with a note of what the tokenizer reads."""
        options: dict[str, Any] = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        tokens = reading.watched(self.tokenizer)(list(texts), max_length=self.tokenizer.model_max_length, **options)
        with computing("the text encoder"):
            return self.text_encoder(tokens.input_ids.to(self.text_encoder.device))[0]

    def _warn_of_unknown_words(self, scene: Scene) -> None:
        """Warn about each text that the model reads and knows no word of."""
        read = kinds_of(scene) if max(scene.guidance_scales) > 1 else {"prompt": scene.texts}
        for kind, text in [(kind, text) for kind, texts in read.items() for text in dict.fromkeys(texts)]:
            if self.known_words and text and self.known_words.isdisjoint(re.findall(r"[^\W\d_]+", text.lower())):
                some = ", ".join(sorted(self.known_words, key=lambda word: (len(word), word))[-24:])
                message = f"this model knows no word of the {kind} {excerpt(text)!r}; it knows, for instance: {some}"
                warnings.warn(message, PromptWarning, stacklevel=6)

    def condition(self, embeddings: Embeddings, windows: Windows, index: Sequence[int]) -> Condition:
        if windows.window != self.window:  # those of a denoiser around this one
            require_window(windows.window, self.unet.config)
        mixture = embeddings.mixtures.of(windows, index)
        guided, end = embeddings.negatives is not None, embeddings.mixtures.scene.guidance_end
        ring = Ring.of(windows) if self.rings else None
        return Condition(embeddings.batch(mixture), guided, self._scale(mixture), mixture, end, ring)

    def _scale(self, mixture: Mixture) -> float | Tensor:
        scales = [max(scale, 1.0) for scale in mixture.scales]
        if len({*scales}) == 1:
            return scales[0]
        return torch.tensor(scales, device=next(self.unet.parameters()).device).view(-1, 1, 1, 1)

    def __call__(self, x: Float[Tensor, "n c h w"], level: Level, condition: Condition) -> Float[Tensor, "n c h w"]:
        with circular(condition.ring):
            return self._mixed(x, level, condition)

    def _mixed(self, x: Tensor, level: Level, condition: Condition) -> Tensor:
        mixture = condition.mixture
        x = x if mixture.shares is None else x[mixture.rows]
        if not condition.guided or level.progress >= condition.end:
            return mixture.mix(self._predict(x, level, condition.texts[-len(x) :]))
        both = self._predict(torch.cat([x, x]), level, condition.texts)
        negative, positive = both.chunk(2)
        scale = condition.scale if isinstance(condition.scale, float) else condition.scale.to(positive)
        return mixture.mix(torch.lerp(negative, positive, scale))

    def _predict(self, x: Tensor, level: Level, text: Tensor) -> Tensor:
        dtype = next(self.unet.parameters()).dtype  # diffusers' own `dtype` goes through all modules each time
        with computing("the unet"):
            return self.unet(x.to(dtype), _times(len(x), level.t, x.device), text.to(dtype), return_dict=False)[0].to(x.dtype)


@lru_cache(maxsize=8, typed=True)
def _times(count: int, t: int | float, device: torch.device) -> Tensor:
    """The time of each window in a batch. All batches of a step have the same."""
    return torch.full((count,), t, device=device)


def is_stable_diffusion(index: Mapping[str, Any]) -> bool:
    """Whether a model's index lists the parts of Stable Diffusion 1.x or 2.x."""
    return "unet" in index and not {"transformer", "text_encoder_2", "text_encoder_3", "controlnet"} & index.keys()


def load_stable_diffusion(
    folder: Path, name: str, variant: str | None, window: tuple[int, int] | None, rings: bool
) -> Model | None:
    """Load Stable Diffusion 1.x or 2.x, in float32.

    Args:
        folder: the folder of the model.
        name: what the user calls the model.
        variant: reads weights of this variant; None for plain names, or for the only variant that there is.
        window: cells of a window along each axis; None for the size that the model was trained at.
        rings: whether it sees a window as a ring where the canvas is one and as long.

    Returns:
        The model; None if it is of another kind after all.

    Raises:
        ModelError: a part is missing or broken, or its weights are pickled.
    """
    what = f"the model {folder}"
    for needed in ("unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"):
        if not (folder / needed).is_file():
            raise ModelError(f"{what} has no {needed}: it must be in diffusers' format")
    if not (folder / "tokenizer").is_dir():
        raise ModelError(f"{what} has no tokenizer: it must be in diffusers' format")
    kinds = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    configs = {part: read_configuration(folder / part, kind, what) for part, kind in kinds.items()}
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    require_values(scheduler, scheduler_class(scheduler), f"scheduler/scheduler_config.json of {what}")
    require_fitting({"unet": {"_class_name": "UNet2DConditionModel"} | configs["unet"], **configs}, what)
    if not _fits(configs, scheduler):
        return None
    training = training_from(scheduler)
    read_configuration(folder / "tokenizer", CLIPTokenizer, what)
    tokenizer = read_tokenizer(CLIPTokenizer, folder / "tokenizer", configs["text_encoder"], what)
    words = _known_words(folder / "tokenizer" / "known_words.json")
    weights = {part: find_weights(folder / part, variant, what) for part in kinds}
    require_variant(weights.values(), variant, what)
    unet, vae, text_encoder = (read_network(kind, weights[part], torch.float32, what) for part, kind in kinds.items())
    denoiser = UNetDenoiser(unet, text_encoder, tokenizer, training, words)
    denoiser.rings = rings
    if window is not None:
        require_window(window, unet.config)
        denoiser.window = window
    return Model(denoiser, VAECodec(vae), name)


def _known_words(file: Path) -> frozenset[str]:
    """The words that a model was trained on, if it says so."""
    with explained(f"{file.parent.name}/{file.name}", "it must be a list of words"):
        return frozenset(fit(json.loads(file.read_text(encoding="utf-8")), list[str])) if file.is_file() else frozenset()


def _fits(configs: Mapping[str, Mapping[str, Any]], scheduler: Mapping[str, Any]) -> bool:
    """Whether networks and scheduler have the configurations of Stable Diffusion 1.x or 2.x."""
    unet, vae = configs["unet"], configs["vae"]
    channels = {unet.get("in_channels", 4), unet.get("out_channels", 4), vae.get("latent_channels", 4)}
    more = [
        unet.get(name) for name in ("addition_embed_type", "class_embed_type", "time_cond_proj_dim", "encoder_hid_dim_type")
    ]
    name = str(scheduler.get("_class_name", ""))
    flows = "FlowMatch" in name or scheduler.get("use_flow_sigmas") or scheduler.get("prediction_type") == "flow_prediction"
    betas = not (flows or "EDM" in name or scheduler.get("trained_betas"))
    return (
        len(channels) == 1
        and not any(more)
        and unet.get("cross_attention_dim") == configs["text_encoder"].get("hidden_size", 512)
        and unet.get("sample_size") is not None
        and scheduler.get("prediction_type", "epsilon") in get_args(Prediction)
        and betas
    )
