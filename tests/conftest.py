"""What several test modules share."""

from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
from diffusers import AutoencoderKL, DDIMScheduler

from panokit import Model, Runtime
from panokit.backbones.diffusers.model import UNetDenoiser, VAECodec
from panokit.testing.tiny import tiny_model


@pytest.fixture
def unannotated() -> Iterator[None]:
    """No checks of annotations, which tests add: what a user's mistake meets."""
    checks = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", checks)


@pytest.fixture(scope="session")
def tiny() -> Model:
    """Stable Diffusion in miniature: windows of 8 x 8 latents, 16 x 16 pixels."""
    return tiny_model()


@pytest.fixture(scope="session")
def cpu() -> Runtime:
    return Runtime(accelerator="cpu")


@pytest.fixture(scope="session")
def folder(tiny: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in diffusers' folder format, with a scheduler that takes it for one of v-prediction."""
    path = tmp_path_factory.mktemp("tiny")
    denoiser, codec = tiny.denoiser, tiny.codec
    assert isinstance(denoiser, UNetDenoiser)
    assert isinstance(codec, VAECodec)
    assert isinstance(codec.vae, AutoencoderKL)
    denoiser.unet.save_pretrained(path / "unet")
    denoiser.text_encoder.save_pretrained(path / "text_encoder")
    denoiser.tokenizer.save_pretrained(path / "tokenizer")
    codec.vae.save_pretrained(path / "vae")
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction")
    scheduler.save_pretrained(path / "scheduler")
    return path
