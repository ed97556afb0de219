"""What several test modules share. Libraries that take seconds to import are imported by the fixtures that need them."""

from __future__ import annotations

import shutil
from copy import deepcopy
from typing import TYPE_CHECKING

import hypothesis
import jaxtyping
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser

    from panokit import Model, Runtime

# No deadline: whose core another process has for a moment is not slow.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.register_profile("sweeps", deadline=None, max_examples=1000)


def pytest_configure(config: pytest.Config) -> None:
    hypothesis.settings.load_profile("sweeps" if config.getoption("--sweeps") else "tests")


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
    from panokit.testing.tiny import tiny_model

    return tiny_model()


@pytest.fixture(scope="session")
def cpu() -> Runtime:
    from panokit import Runtime

    return Runtime(accelerator="cpu")


@pytest.fixture(scope="session")
def folder(tiny: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The tiny model in diffusers' folder format, with a scheduler that takes it for one of v-prediction. It is read once."""
    from diffusers import AutoencoderKL, DDIMScheduler

    from panokit import models
    from panokit.backbones.diffusers.codec import VAECodec
    from panokit.backbones.diffusers.model import UNetDenoiser

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
    load_model = models.load_model
    read = load_model(str(path))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(
            models,
            "load_model",
            lambda name, **settings: deepcopy(read) if (name, settings) == (str(path), {}) else load_model(name, **settings),
        )
        yield path


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A Chromium without a window, which draws in software and has no network of its own accord."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:  # it is a package of the system, which pip cannot bring; .ci/run installs it
        pytest.skip("pages are looked at with Chromium, which is not installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="Chromium is driven by playwright, which is not installed")
    graphics = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    quiet = [
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", *graphics, *quiet])
        yield browser
        browser.close()
