"""The families of FLUX in miniature, whose networks see latents as a row of patches: FLUX.1, Chroma and FLUX.2."""

import warnings
from typing import Any

from diffusers import (
    ChromaPipeline,
    ChromaTransformer2DModel,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
)
from transformers import PixtralImageProcessor, PixtralProcessor

from panokit.testing.families import codecs, encoders
from panokit.testing.tokenizers import CHAT, clip_tokenizer, qwen_tokenizer, t5_tokenizer

_PATCHES: dict[str, Any] = {
    "in_channels": codecs.CHANNELS * 4,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
}
_FLUX: dict[str, Any] = {**_PATCHES, "joint_attention_dim": encoders.WIDTH, "axes_dims_rope": (4, 6, 6)}


def flux() -> DiffusionPipeline:
    """FLUX.1 [dev]: guidance is a number the network sees, and the schedule is shifted by the size."""
    return _flux(_shifted_by_size(), guidance=True)


def schnell() -> DiffusionPipeline:
    """FLUX.1 [schnell]: for a few steps, without guidance or shift."""
    return _flux(FlowMatchEulerDiscreteScheduler(shift=1.0), guidance=False)


def chroma() -> DiffusionPipeline:
    """Chroma: FLUX.1 without CLIP, and with classifier-free guidance and a mask for the prompt."""
    tokenizer = t5_tokenizer()
    with warnings.catch_warnings():  # diffusers makes Chroma's places with a class that it calls deprecated itself
        warnings.filterwarnings("ignore", "`FluxPosEmbed` is deprecated", FutureWarning)
        transformer = ChromaTransformer2DModel(
            approximator_num_channels=16, approximator_hidden_dim=16, approximator_layers=1, **_FLUX
        )
    return ChromaPipeline(
        scheduler=_shifted_by_size(),
        vae=codecs.flux_kl(),
        text_encoder=encoders.t5(tokenizer),
        tokenizer=tokenizer,
        transformer=transformer,
    )


def flux2() -> DiffusionPipeline:
    """FLUX.2 [dev]: Mistral's language model sees the prompt, and guidance is a number the network sees."""
    tokenizer = qwen_tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    return Flux2Pipeline(
        scheduler=_shifted_by_size(),
        vae=codecs.flux2_kl(),
        text_encoder=encoders.mistral3(tokenizer),
        tokenizer=PixtralProcessor(image_processor=PixtralImageProcessor(), tokenizer=tokenizer, chat_template=CHAT),
        transformer=_flux2_transformer(guidance=True),
    )


def klein() -> DiffusionPipeline:
    """FLUX.2 [klein] as trained first, not distilled: Qwen 3 sees the prompt, and guidance is classifier-free."""
    tokenizer = qwen_tokenizer()
    return Flux2KleinPipeline(
        scheduler=_shifted_by_size(),
        vae=codecs.flux2_kl(),
        text_encoder=encoders.qwen3_causal(tokenizer),
        tokenizer=tokenizer,
        transformer=_flux2_transformer(guidance=False),
        is_distilled=False,
    )


def _flux(scheduler: FlowMatchEulerDiscreteScheduler, *, guidance: bool) -> DiffusionPipeline:
    tokenizer, tokenizer_2 = clip_tokenizer(), t5_tokenizer()
    return FluxPipeline(
        scheduler=scheduler,
        vae=codecs.flux_kl(),
        text_encoder=encoders.clip(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=encoders.t5(tokenizer_2),
        tokenizer_2=tokenizer_2,
        transformer=FluxTransformer2DModel(pooled_projection_dim=encoders.WIDTH // 2, guidance_embeds=guidance, **_FLUX),
    )


def _flux2_transformer(*, guidance: bool) -> Flux2Transformer2DModel:
    return Flux2Transformer2DModel(
        joint_attention_dim=3 * encoders.WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance,
        **_PATCHES,
    )


def _shifted_by_size() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, shift=3.0, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
    )
