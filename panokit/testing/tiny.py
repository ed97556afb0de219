"""Stable Diffusion in miniature: all of its networks, with few blocks and random weights, made in a second."""

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from panokit.backbones.diffusers.model import UNetDenoiser, VAECodec
from panokit.denoiser import Model
from panokit.scheduler import Prediction, Training
from panokit.testing.tokenizers import clip_tokenizer


def tiny_model(
    prediction: Prediction = "epsilon", *, window: int = 8, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Model:
    """A text-to-image model of random weights: windows of 8 x 8 latents, 4 channels, codec factor 2.

    Args:
        prediction: how the output of the UNet is read. Its weights are random, so any type fits.
        window: cells of a window along each axis, a multiple of 2.
        dtype: dtype of the weights.
        seed: seed of the random weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = clip_tokenizer()
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=8,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=tokenizer.model_max_length,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        unet = UNet2DConditionModel(
            sample_size=window,
            in_channels=4,
            out_channels=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            mid_block_type=None,
            up_block_types=("UpBlock2D", "UpBlock2D"),
            cross_attention_dim=8,
            attention_head_dim=4,
            norm_num_groups=4,
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            latent_channels=4,
            sample_size=window * 2,
        )
        for part in (text_encoder, unet):
            _enliven(part)
    parts: tuple[nn.Module, ...] = (unet, text_encoder, vae)
    for part in parts:
        nn.Module.to(part, dtype).eval().requires_grad_(False)
    return Model(UNetDenoiser(unet, text_encoder, tokenizer, Training(prediction)), VAECodec(vae), "tiny")


def _enliven(module: nn.Module) -> None:
    """Enlarge the weights, so that the prediction depends visibly on the prompt and on the place."""
    for weight in module.parameters():
        if weight.ndim > 1:
            weight.data.mul_(1.5)
