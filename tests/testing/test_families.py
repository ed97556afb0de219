"""The families in miniature: each makes a picture with its own pipeline, as its prompt and its seed say."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from panokit.testing.families import (
    CONTROLNETS,
    FAMILIES,
    save_tiny_embedding,
    save_tiny_ip_adapter,
    save_tiny_lora,
    tiny_controlnet,
    tiny_pipeline,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning",  # diffusers, in set_timesteps
    "ignore:`FluxPosEmbed` is deprecated:FutureWarning",  # diffusers, where Chroma is loaded
)

LAKE, CITY = "a lake at night", "Zebras, a city"
CELLS = 16
OPTIONS: dict[str, dict[str, Any]] = {
    "pixart_sigma": {"use_resolution_binning": False},
    "sana": {"use_resolution_binning": False},
    "qwen_image": {"negative_prompt": " "},
    "wan": {"num_frames": 5},
}


def latents(pipeline: DiffusionPipeline, prompt: str = LAKE, **options: Any) -> Tensor:
    """What two steps of a pipeline's own call make of a prompt."""
    factor = getattr(pipeline, "vae_scale_factor", None) or pipeline.vae_scale_factor_spatial
    side = CELLS * factor
    common = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0), "output_type": "latent"}
    made = pipeline(prompt=prompt, height=side, width=side, return_dict=False, **common, **options)[0]
    return torch.as_tensor(made)


def distance(x: Tensor, y: Tensor) -> float:
    return float((x - y).norm() / y.norm())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_feels_its_prompt(name: str) -> None:
    pipeline = tiny_pipeline(name)
    lake, city = (latents(pipeline, prompt, **OPTIONS.get(name, {})) for prompt in (LAKE, CITY))
    assert lake.isfinite().all()
    assert distance(lake, city) > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_a_seed_decides_all_weights_and_leaves_the_global_generator_alone(name: str) -> None:
    state = torch.get_rng_state()
    same, again, other = (tiny_pipeline(name, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    options = OPTIONS.get(name, {})
    for key, part in same.components.items():
        if isinstance(part, torch.nn.Module):
            assert not part.training
            assert not any(weight.requires_grad for weight in part.parameters())
            twin = again.components[key].state_dict()
            assert all(torch.equal(weight, twin[entry]) for entry, weight in part.state_dict().items())
    assert torch.equal(latents(same, **options), latents(again, **options))
    assert distance(latents(same, **options), latents(other, **options)) > 0.01


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    if name in ("krea2", "wan"):  # diffusers loads networks that keep parts in float32 with it alone
        pytest.importorskip("accelerate")
    saved = tiny_pipeline(name)
    saved.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path, use_safetensors=True, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is type(saved)
    options = OPTIONS.get(name, {})
    # Some loaded weights lie elsewhere in memory, which decides the order of sums.
    assert distance(latents(loaded, **options), latents(saved, **options)) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_decodes_what_it_makes(name: str) -> None:
    pipeline = tiny_pipeline(name)
    factor = getattr(pipeline, "vae_scale_factor", None) or pipeline.vae_scale_factor_spatial
    options = {**OPTIONS.get(name, {}), "num_inference_steps": 2, "output_type": "pt"}
    pictures = torch.as_tensor(pipeline(prompt=LAKE, height=16 * factor, width=32 * factor, **options)[0])
    assert pictures.shape[-2:] == (16 * factor, 32 * factor)
    assert pictures.isfinite().all()


@pytest.mark.parametrize("family", CONTROLNETS)
def test_a_controlnet_feels_its_picture(family: str, tmp_path: Path) -> None:
    pipeline = tiny_controlnet(family)
    side = CELLS * pipeline.vae_scale_factor
    dark, stripes = torch.zeros(1, 3, side, side), torch.arange(side).remainder(8).div(7).expand(1, 3, side, side)
    kind = "image" if hasattr(pipeline, "unet") else "control_image"

    def made(pipeline: DiffusionPipeline, picture: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):  # pipelines of transformers sample the posterior of the picture
            torch.manual_seed(0)
            return latents(pipeline, **{kind: picture})

    assert made(pipeline, stripes).isfinite().all()
    assert distance(made(pipeline, dark), made(pipeline, stripes)) > 1e-2
    pipeline.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path, use_safetensors=True, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    assert distance(made(loaded, stripes), made(pipeline, stripes)) < 1e-5


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "pixart_sigma"])
def test_a_lora_changes_a_family(name: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    pipeline, options = tiny_pipeline(name), OPTIONS.get(name, {})
    before = latents(pipeline, **options)
    pipeline.load_lora_weights(save_tiny_lora(pipeline, tmp_path))
    changed = latents(pipeline, **options)
    assert changed.isfinite().all()
    assert distance(changed, before) > 1e-3
    pipeline.unload_lora_weights()
    assert torch.equal(latents(pipeline, **options), before)


@pytest.mark.parametrize("name", ["sd", "sd2", "sdxl"])
def test_an_ip_adapter_feels_its_picture(name: str, tmp_path: Path) -> None:
    pipeline = tiny_pipeline(name)
    before = latents(pipeline)
    folder = save_tiny_ip_adapter(pipeline, tmp_path)
    pipeline.load_ip_adapter(folder, subfolder="", weight_name="ip-adapter.safetensors")
    dark, light = (latents(pipeline, ip_adapter_image=Image.new("RGB", (16, 16), colour)) for colour in ("navy", "gold"))
    assert distance(dark, before) > 1e-2
    assert distance(dark, light) > 1e-3


@pytest.mark.parametrize("name", ["sd", "sd2"])
def test_a_word_is_learned(name: str, tmp_path: Path) -> None:
    pipeline = tiny_pipeline(name)
    before = latents(pipeline, "a <moss>")
    pipeline.load_textual_inversion(save_tiny_embedding(pipeline, tmp_path))
    assert distance(latents(pipeline, "a <moss>"), before) > 1e-2
    assert torch.equal(latents(pipeline), latents(tiny_pipeline(name)))
