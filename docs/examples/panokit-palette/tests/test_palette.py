"""The guidance keeps panokit's contract, and does what it says."""

import pytest
import torch

from panokit import SettingError
from panokit.testing import Check, conforms
from panokit.testing.toys import ToyCodec, toy_run
from panokit.testing.worlds import Gaussian
from panokit_palette import Palette, mean_colour

SUNSET = (0.9, 0.5, 0.3)


@conforms(lambda: Palette(SUNSET))
def test_a_colour_that_was_given(check: Check) -> None:
    check()


@conforms(lambda: Palette(jacobian="full"))
def test_the_colour_of_the_middle_window(check: Check) -> None:
    check()


def off(*guidances: Palette) -> float:
    """How far the colours of a toy panorama's windows are from a sunset's."""
    run = toy_run((8, 24), denoiser=Gaussian(variance=0.3), codec=ToyCodec(), guidances=guidances, stride=4, steps=10)
    while not run.done:
        run.step()
    return float((mean_colour(ToyCodec(), run.windows.crop(run.canvas)) - torch.tensor(SUNSET)).abs().mean())


@pytest.mark.parametrize("jacobian", ["identity", "full"])
def test_windows_come_closer_to_the_colour(jacobian: str) -> None:
    assert off(Palette(SUNSET, until=1.0, jacobian=jacobian)) < 0.7 * off()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"colour": (230, 120, 80)}, "give red, green and blue from 0 to 1"),
        ({"weight": -1.0}, "it must be 0 or more"),
        ({"until": 2.0}, "it is a share of the steps"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Palette(**settings)


def test_a_model_without_pictures_is_refused() -> None:
    run = toy_run((8, 24), denoiser=Gaussian(), guidances=[Palette()], stride=4)
    with pytest.raises(SettingError, match="no codec"):
        run.step()
