"""Families whose transformers look from the picture at the prompt, in miniature: PixArt-Sigma, Sana and Wan."""

from diffusers import (
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)

from panokit.testing.families import codecs, encoders
from panokit.testing.tokenizers import gemma_tokenizer, t5_tokenizer


def pixart_sigma() -> DiffusionPipeline:
    """PixArt-Sigma: windows of 16 cells. The network is a transformer, but predicts noise, and its variance too."""
    tokenizer = t5_tokenizer()
    transformer = PixArtTransformer2DModel(
        sample_size=16,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=codecs.CHANNELS,
        out_channels=codecs.CHANNELS * 2,
        cross_attention_dim=16,
        caption_channels=encoders.WIDTH,
        use_additional_conditions=False,
        interpolation_scale=2,
    )
    return PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=encoders.t5(tokenizer),
        vae=codecs.kl(scaling_factor=0.13025),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
    )


def sana() -> DiffusionPipeline:
    """Sana: windows of 16 cells, attention of linear cost, and no places but what convolutions see."""
    tokenizer = gemma_tokenizer()
    transformer = SanaTransformer2DModel(
        sample_size=16,
        patch_size=1,
        in_channels=codecs.CHANNELS,
        out_channels=codecs.CHANNELS,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=encoders.WIDTH,
    )
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=3.0,
        beta_start=0.0001,
        beta_end=0.02,
        beta_schedule="linear",
    )
    return SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=encoders.gemma(tokenizer),
        vae=codecs.dc(),
        transformer=transformer,
        scheduler=scheduler,
    )


def wan() -> DiffusionPipeline:
    """Wan 2.1, from text to video: latents have frames, a first one and one for each four more."""
    tokenizer = t5_tokenizer()
    transformer = WanTransformer3DModel(
        in_channels=codecs.CHANNELS,
        out_channels=codecs.CHANNELS,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=encoders.WIDTH,
        freq_dim=16,
        ffn_dim=16,
        cross_attn_norm=True,
        rope_max_seq_len=128,
    )
    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=encoders.umt5(tokenizer),
        vae=codecs.wan_kl(),
        transformer=transformer,
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )
