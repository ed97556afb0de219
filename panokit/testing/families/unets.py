"""Families around a UNet, in miniature: Stable Diffusion 1, 2 and XL, whose noise is that of a Markov chain."""

from typing import Any

from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from panokit.testing.families import codecs, encoders
from panokit.testing.tokenizers import clip_tokenizer

_BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_OFFSET: dict[str, Any] = {**_BETAS, "set_alpha_to_one": False, "steps_offset": 1}


def sd() -> DiffusionPipeline:
    """Stable Diffusion 1.5: windows of 8 cells, noise is predicted."""
    return _stable_diffusion(_unet(), PNDMScheduler(skip_prk_steps=True, **_OFFSET), pad="<|endoftext|>")


def sd2() -> DiffusionPipeline:
    """Stable Diffusion 2.1: windows of 8 cells, velocity is predicted."""
    scheduler = DDIMScheduler(prediction_type="v_prediction", clip_sample=False, **_OFFSET)
    return _stable_diffusion(_unet(use_linear_projection=True), scheduler, pad="!")


def sd2_zero_snr() -> DiffusionPipeline:
    """Stable Diffusion 2.1 as trained on pure noise too: the first step has no signal, and steps count from the last."""
    scheduler = DDIMScheduler(
        prediction_type="v_prediction",
        clip_sample=False,
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        **_OFFSET,
    )
    return _stable_diffusion(_unet(use_linear_projection=True), scheduler, pad="!")


def sdxl() -> DiffusionPipeline:
    """Stable Diffusion XL: windows of 16 cells, two text encoders, and numbers for the sizes and the crop of a picture."""
    tokenizer, tokenizer_2 = clip_tokenizer(), clip_tokenizer(pad="!")
    unet = _unet(
        sample_size=16,
        cross_attention_dim=encoders.WIDTH,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=encoders.WIDTH // 2 + 6 * 8,
    )
    return StableDiffusionXLPipeline(
        vae=codecs.kl(scaling_factor=0.13025),
        text_encoder=encoders.clip(tokenizer),
        text_encoder_2=encoders.clip(tokenizer_2, projection=True),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet,
        scheduler=EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1, **_BETAS),
        add_watermarker=False,
    )


def _unet(**config: Any) -> UNet2DConditionModel:
    """A UNet of two resolutions, the coarse of which sees the prompt."""
    common: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": codecs.CHANNELS,
        "out_channels": codecs.CHANNELS,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": encoders.WIDTH // 2,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**{**common, **config})


def _stable_diffusion(unet: UNet2DConditionModel, scheduler: Any, *, pad: str) -> DiffusionPipeline:
    tokenizer = clip_tokenizer(pad=pad)
    return StableDiffusionPipeline(
        vae=codecs.kl(),
        text_encoder=encoders.clip(tokenizer),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
