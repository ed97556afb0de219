"""Families whose transformers see prompt and picture as one row, in miniature: SD 3, Qwen-Image, Krea 2, Z-Image, Lumina."""

from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Krea2Pipeline,
    Krea2Transformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)

from panokit.testing.families import codecs, encoders
from panokit.testing.tokenizers import clip_tokenizer, gemma_tokenizer, qwen_tokenizer, t5_tokenizer


def sd3() -> DiffusionPipeline:
    """Stable Diffusion 3: windows of 16 cells, three text encoders, and a table of places that ends at 24 cells' patches."""
    tokenizer, tokenizer_2, tokenizer_3 = clip_tokenizer(pad="<|endoftext|>"), clip_tokenizer(pad="!"), t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=codecs.CHANNELS,
        out_channels=codecs.CHANNELS,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=encoders.WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=encoders.WIDTH,
        pos_embed_max_size=24,
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=codecs.kl(scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=encoders.clip(tokenizer, projection=True),
        tokenizer=tokenizer,
        text_encoder_2=encoders.clip(tokenizer_2, projection=True),
        tokenizer_2=tokenizer_2,
        text_encoder_3=encoders.t5(tokenizer_3),
        tokenizer_3=tokenizer_3,
    )


def qwen_image() -> DiffusionPipeline:
    """Qwen-Image: patches of latents in a row, shifted by the size, with the schedule stretched to end at 0.02."""
    tokenizer = qwen_tokenizer()
    transformer = QwenImageTransformer2DModel(
        in_channels=codecs.CHANNELS * 4,
        out_channels=codecs.CHANNELS,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=encoders.WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
    )
    return QwenImagePipeline(
        scheduler=scheduler,
        vae=codecs.qwen_kl(),
        text_encoder=encoders.qwen2_vl(tokenizer),
        tokenizer=tokenizer,
        transformer=transformer,
    )


def krea2() -> DiffusionPipeline:
    """Krea 2: several layers of Qwen 3 VL see the prompt, and the latents are Qwen-Image's."""
    tokenizer = qwen_tokenizer()
    layers = (1, 2)
    transformer = Krea2Transformer2DModel(
        in_channels=codecs.CHANNELS * 4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=encoders.WIDTH,
        num_text_layers=len(layers),
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )
    return Krea2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, max_image_seq_len=6400),
        vae=codecs.qwen_kl(),
        text_encoder=encoders.qwen3_vl(tokenizer),
        tokenizer=tokenizer,
        transformer=transformer,
        text_encoder_select_layers=layers,
    )


def z_image() -> DiffusionPipeline:
    """Z-Image: Qwen 3 sees the prompt, and latents and prompts are lists."""
    tokenizer = qwen_tokenizer()
    transformer = ZImageTransformer2DModel(
        in_channels=codecs.CHANNELS,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=encoders.WIDTH,
        axes_dims=[4, 6, 6],
        axes_lens=[1024, 512, 512],
    )
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=codecs.flux_kl(),
        text_encoder=encoders.qwen3(tokenizer),
        tokenizer=tokenizer,
        transformer=transformer,
    )


def lumina2() -> DiffusionPipeline:
    """Lumina-Image 2.0: windows of 16 cells. Its pipeline takes every autoencoder for one of an eighth of each side."""
    tokenizer = gemma_tokenizer()
    transformer = Lumina2Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=codecs.CHANNELS,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(512, 64, 64),
        cap_feat_dim=encoders.WIDTH,
    )
    return Lumina2Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=codecs.flux_kl(levels=4),
        text_encoder=encoders.gemma(tokenizer),
        tokenizer=tokenizer,
    )
