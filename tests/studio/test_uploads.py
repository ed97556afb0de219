"""Pictures that people upload: broken ones, bombs, and recipes that ask for what they may not."""

from __future__ import annotations

import json
import struct
import zlib
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from panokit.errors import SettingError
from panokit.studio.uploads import BYTES, PIXELS, picture_of, recipe_of

if TYPE_CHECKING:
    from pathlib import Path

RECIPE: dict[str, Any] = {
    "panokit": "0.1.0",
    "prompt": "a lake",
    "height": 128,
    "width": 256,
    "steps": 2,
    "seed": 3,
    "model": "landscapes",
    "scheduler": {"plugin": "ddim", "options": {}},
    "layout": {"plugin": "overlap"},
    "fuser": {"plugin": "multidiffusion"},
    "guidances": [],
    "precision": "32-true",
}


def picture(path: Path, recipe: dict[str, Any]) -> Path:
    chunks = PngInfo()
    chunks.add_itxt("panokit", json.dumps(recipe))
    Image.new("RGB", (8, 8)).save(path, pnginfo=chunks)
    return path


def bomb(path: Path, side: int) -> Path:
    """A small file that claims to have many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("side", [6000, 12_000, 60_000])
def test_a_bomb_is_refused_before_its_pixels_are_decoded(tmp_path: Path, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", PIXELS // 2)  # as the server sets it
    assert side**2 > PIXELS
    with pytest.raises(SettingError, match=rf"^bomb\.png has {side} x {side} pixels: the studio takes up to {PIXELS}") as error:
        picture_of(bomb(tmp_path / "bomb.png", side))
    assert "\n" not in str(error.value)


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(BYTES + 1)
    for read in (picture_of, recipe_of):
        with pytest.raises(SettingError, match=rf"^large\.png has {BYTES + 1} bytes: the studio takes up to {BYTES}"):
            read(path)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n rubbish", b"GIF89a", b"%!PS-Adobe-3.0 EPSF-3.0"])
def test_what_is_no_picture_is_refused_by_its_own_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    for read in (picture_of, recipe_of):
        with pytest.raises(SettingError) as error:
            read(path)
        assert str(error.value).startswith("broken.png ")
        assert str(tmp_path) not in str(error.value)


def test_a_picture_is_read_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert picture_of(tmp_path / "a.jpg").size == (4, 8)


def test_a_recipe_comes_back(tmp_path: Path) -> None:
    options, missing = recipe_of(picture(tmp_path / "a.png", RECIPE))
    assert options == {name: value for name, value in RECIPE.items() if name != "panokit"}
    assert missing == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"model": "/etc"}, "which is not installed by that name"),
        ({"fuser": {"plugin": "antigravity:Fuser"}}, "is code and no installed plugin's name"),
        ({"image": "/etc/passwd"}, "a file of this machine"),
        ({"prompt": {"regions": [{"mask": "/etc/passwd", "text": "a"}]}}, "a file of this machine"),
        ({"steps": 10_000}, "steps is 10000: the studio makes up to"),
        ({"width": 1 << 20}, "is the most without trusting it"),
        ({"surprise": 1}, "there is no option surprise"),
        ({"seed": None}, "it lacks seed"),
    ],
)
def test_a_recipe_is_not_trusted(tmp_path: Path, change: dict[str, Any], line: str) -> None:
    with pytest.raises(SettingError) as error:
        recipe_of(picture(tmp_path / "a.png", {**RECIPE, **change}))
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_pictures_that_no_file_holds_are_named(tmp_path: Path) -> None:
    regions = [{"mask": "sha256:12", "text": "a"}, {"box": [0, 0, 1, 1], "text": "b"}]
    change = {"image": "sha256:34", "prompt": {"regions": regions, "elsewhere": "c"}}
    options, missing = recipe_of(picture(tmp_path / "a.png", {**RECIPE, **change}))
    assert missing == ["image", "painted regions"]
    assert options["prompt"] == {"regions": regions[1:], "elsewhere": "c"}
    assert "image" not in options
