"""The autoencoders of text-to-image models in miniature. All have latents of four channels; most halve each side."""

from typing import Any

from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderKLFlux2, AutoencoderKLQwenImage, AutoencoderKLWan

CHANNELS = 4

_BLOCKS: dict[str, Any] = {"norm_num_groups": 4, "latent_channels": CHANNELS, "layers_per_block": 1}
_STATISTICS: dict[str, Any] = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 2.0, 0.8, 1.1]}


def kl(levels: int = 2, **config: Any) -> AutoencoderKL:
    """The autoencoder of Stable Diffusion and of many others.

    Args:
        levels: resolutions, each half of the one before.
        config: the rest of its configuration, such as the scale of its latents.
    """
    return AutoencoderKL(**_levels(levels), **_BLOCKS, sample_size=32, **config)


def flux_kl(levels: int = 2) -> AutoencoderKL:
    """The autoencoder of FLUX.1, which others have taken over: its latents are shifted and scaled.

    Args:
        levels: resolutions, each half of the one before.
    """
    return kl(levels, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False)


def flux2_kl() -> AutoencoderKLFlux2:
    """The autoencoder of FLUX.2, which normalises patches of its latents by statistics of a batch normalisation."""
    vae = AutoencoderKLFlux2(**_levels(2), **_BLOCKS, sample_size=32)
    vae.bn.running_mean.normal_(0, 0.3)
    vae.bn.running_var.uniform_(0.5, 2)
    return vae


def qwen_kl() -> AutoencoderKLQwenImage:
    """The autoencoder of Qwen-Image, a video's, for one frame: its latents have statistics for each channel."""
    return AutoencoderKLQwenImage(
        base_dim=4, z_dim=CHANNELS, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[True], **_STATISTICS
    )


def wan_kl() -> AutoencoderKLWan:
    """The autoencoder of Wan 2.1, for videos: a quarter of each side, and a quarter of the frames after the first."""
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=CHANNELS,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        scale_factor_spatial=4,
        scale_factor_temporal=4,
        **_STATISTICS,
    )


def dc(levels: int = 2, attention: int = 0) -> AutoencoderDC:
    """The deep compression autoencoder of Sana, which is no variational one: its latents have no posterior.

    Args:
        levels: resolutions, each half of the one before.
        attention: how many of them, from the coarsest, have linear attention.
    """
    plain = levels - attention
    sides: dict[str, Any] = {}
    for side in ("encoder", "decoder"):
        sides |= {
            f"{side}_block_types": ("ResBlock",) * plain + ("EfficientViTBlock",) * attention,
            f"{side}_block_out_channels": (8,) * levels,
            f"{side}_layers_per_block": (1,) * levels,
            f"{side}_qkv_multiscales": ((),) * plain + ((5,),) * attention,
        }
    return AutoencoderDC(latent_channels=CHANNELS, attention_head_dim=2, scaling_factor=0.41407, **sides)


def _levels(levels: int) -> dict[str, Any]:
    return {
        "block_out_channels": (8,) * levels,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
    }
