"""Pictures on disk."""

import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from panokit import Panorama
from panokit.errors import OutputError
from panokit.panorama import to_image


@pytest.fixture
def panorama() -> Panorama:
    picture = torch.linspace(-0.1, 1.1, 3 * 4 * 6).reshape(3, 4, 6)
    return Panorama(torch.zeros(4, 2, 3), to_image(picture), {"prompt": "a lake"})


def test_values_are_clamped_and_rounded() -> None:
    image = to_image(torch.tensor([-1.0, 0.5, 2.0]).view(1, 1, 3).expand(3, 1, 3))
    assert [image.getpixel((x, 0)) for x in range(3)] == [(0, 0, 0), (128, 128, 128), (255, 255, 255)]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_the_ending_names_the_format(panorama: Panorama, tmp_path: Path, name: str) -> None:
    panorama.save(tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert image.size == (6, 4)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_it_shows_itself_in_a_notebook(panorama: Panorama) -> None:
    assert Image.open(io.BytesIO(panorama._repr_png_())).size == (6, 4)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing/a.png", "make it first"),
        ("a.xyz", "names no picture format"),
        ("a.psd", "names no picture format"),
        (".", "names no picture format"),
        ("d.png", "is a folder"),
    ],
)
def test_a_place_that_cannot_be_written_is_told(panorama: Panorama, tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "d.png").mkdir()
    with pytest.raises(OutputError, match=message):
        panorama.save(tmp_path / path)
    assert [p.name for p in tmp_path.iterdir()] == ["d.png"]


def test_a_picture_wider_than_its_format_holds_is_told(panorama: Panorama, tmp_path: Path) -> None:
    wide = Panorama(panorama.latents, Image.new("RGB", (16_400, 8)), {})
    with pytest.raises(OutputError, match=r"WEBP holds 16383 pixels a side, .*; try \.png"):
        wide.save(tmp_path / "a.webp")
    wide.save(tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_failed_write_leaves_nothing(panorama: Panorama, tmp_path: Path) -> None:
    panorama.image.putpixel((0, 0), (1, 2, 3))
    with pytest.raises(OutputError, match="cannot write"):
        Panorama(panorama.latents, panorama.image.convert("RGBA"), {}).save(tmp_path / "a.jpg")
    assert not list(tmp_path.iterdir())
