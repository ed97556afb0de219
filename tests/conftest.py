"""What several test modules share."""

import pytest

from panokit import Model, Runtime
from panokit.testing.tiny import tiny_model


@pytest.fixture(scope="session")
def tiny() -> Model:
    """Stable Diffusion in miniature: windows of 8 x 8 latents, 16 x 16 pixels."""
    return tiny_model()


@pytest.fixture(scope="session")
def cpu() -> Runtime:
    return Runtime(accelerator="cpu")
