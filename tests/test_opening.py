"""Which files of pictures are opened: those of panokit whatever their size, and those of others unless they fill the memory."""

import struct
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from panokit import Panorama, SettingError
from panokit.errors import OutputError
from panokit.opening import decoded, opened
from panokit.study.measures import pixels


def own(path: Path, size: tuple[int, int] = (40, 20), claimed: tuple[int, int] = (40, 20)) -> Path:
    """A picture with a recipe that says a size."""
    data = {"prompt": "a lake", "seed": 1, "width": claimed[0], "height": claimed[1]}
    Panorama(torch.zeros(4, 2, 3), Image.effect_noise(size, 90).convert("RGB"), data).save(path)
    return path


def bomb(path: Path, width: int, height: int) -> Path:
    """A PNG of a few bytes that says it has many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif"])
def test_a_panorama_of_panokit_is_opened_whatever_its_size(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = own(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with opened(path) as image:
        assert decoded(image, path).size == (40, 20)
    assert pixels(path).shape == (20, 40, 3)
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize("claimed", [(40, 21), (41, 20), (1, 1)])
def test_a_recipe_of_another_size_opens_nothing(
    claimed: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = own(tmp_path / "a.png", claimed=claimed)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(SettingError, match="has 40 x 20 pixels, and 200 are the most"), opened(path):
        pass
    with pytest.raises(OutputError, match=r"a\.png has 40 x 20 pixels"):
        pixels(path)


def test_a_picture_of_somebody_else_is_opened_up_to_pillows_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with opened(tmp_path / "a.png") as image:
        assert image.size == (20, 10)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with opened(tmp_path / "a.png") as image:
        assert image.size == (20, 10)


def test_a_few_bytes_do_not_fill_the_memory(tmp_path: Path) -> None:
    with (
        pytest.raises(SettingError, match="has 60000 x 60000 pixels") as error,
        opened(bomb(tmp_path / "a.png", 60_000, 60_000)),
    ):
        pass
    assert "\n" not in str(error.value)


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("a lake")
    (tmp_path / "b.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    whole = own(tmp_path / "c.png").read_bytes()
    (tmp_path / "c.png").write_bytes(whole[: len(whole) // 2])
    for name in ("a.png", "b.eps", "."):
        with pytest.raises(SettingError, match="cannot be read as a picture"), opened(tmp_path / name):
            pass
    with pytest.raises(SettingError, match=r"there is no picture .*nowhere\.png"), opened(tmp_path / "nowhere.png"):
        pass
    with opened(tmp_path / "c.png") as image, pytest.raises(SettingError, match=r"c\.png is damaged"):
        decoded(image, tmp_path / "c.png")
