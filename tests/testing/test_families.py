"""The families in miniature: each makes a picture with its own pipeline, as its prompt and its seed say."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from panokit.testing.families import FAMILIES, tiny_pipeline

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
