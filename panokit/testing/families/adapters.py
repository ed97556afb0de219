"""Files that change a model in miniature: a LoRA, an IP-Adapter and a word learned by textual inversion, all random."""

from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from panokit.testing.families.pipelines import denoiser


def save_tiny_lora(pipeline: DiffusionPipeline, folder: Path, *, seed: int = 0, rank: int = 2) -> Path:
    """Save a LoRA for the attention of a pipeline's network, for `pipeline.load_lora_weights(folder)`.

    Args:
        pipeline: of any family but PixArt-Sigma, whose pipeline takes none. It is not changed.
        folder: where its file is written.
        seed: seed of its random weights, none of which is zero.
        rank: rank of each change.
    """
    generator = torch.Generator().manual_seed(seed)
    layers: dict[str, Tensor] = {}
    for name, layer in denoiser(pipeline).named_modules():
        if isinstance(layer, nn.Linear) and name.endswith((".to_q", ".to_k", ".to_v")):
            down = torch.randn(rank, layer.in_features, generator=generator)
            layers[f"{name}.lora_A.weight"] = down / layer.in_features**0.5
            layers[f"{name}.lora_B.weight"] = torch.randn(layer.out_features, rank, generator=generator)
    part = "unet" if "unet" in pipeline.components else "transformer"
    pipeline.save_lora_weights(folder, **{f"{part}_lora_layers": layers})
    return folder


def save_tiny_ip_adapter(pipeline: DiffusionPipeline, folder: Path, *, seed: int = 0) -> Path:
    """Save an IP-Adapter for a pipeline around a UNet, and the encoder of its picture.

    `pipeline.load_ip_adapter(folder, subfolder="", weight_name="ip-adapter.safetensors")` loads both.

    Args:
        pipeline: of Stable Diffusion 1, 2 or XL. It is not changed.
        folder: where they are written.
        seed: seed of their random weights.
    """
    unet = denoiser(pipeline)
    width, tokens = unet.config.cross_attention_dim, 4
    vision = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=8,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        CLIPVisionModelWithProjection(vision).save_pretrained(folder / "image_encoder")
        weights = {
            "image_proj.proj.weight": torch.randn(tokens * width, vision.projection_dim),
            "image_proj.proj.bias": torch.randn(tokens * width),
            "image_proj.norm.weight": torch.ones(width),
            "image_proj.norm.bias": torch.zeros(width),
        }
        layers = [name.removesuffix(".processor") for name in unet.attn_processors if name.endswith("attn2.processor")]
        for k, name in enumerate(layers):
            keys = unet.get_submodule(name).to_k.weight
            for part in ("to_k_ip", "to_v_ip"):
                weights[f"ip_adapter.{2 * k + 1}.{part}.weight"] = torch.randn(keys.shape) / width**0.5
    save_file(weights, folder / "ip-adapter.safetensors")
    return folder


def save_tiny_embedding(pipeline: DiffusionPipeline, folder: Path, *, seed: int = 0, word: str = "<moss>") -> Path:
    """Save a word of two tokens, as textual inversion learns one, for `pipeline.load_textual_inversion(file)`.

    Args:
        pipeline: of Stable Diffusion 1 or 2. It is not changed.
        folder: where its file is written.
        seed: seed of its random embedding.
        word: how prompts write it.

    Returns:
        The file.
    """
    width = pipeline.text_encoder.config.hidden_size
    file = folder / "embedding.safetensors"
    save_file({word: torch.randn(2, width, generator=torch.Generator().manual_seed(seed))}, file)
    return file
