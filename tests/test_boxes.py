"""What a film says of itself is read from its boxes, whoever wrote them, and nothing is decoded."""

import struct
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from panokit import boxes
from panokit.boxes import read
from panokit.errors import SettingError
from panokit.films import write

RECIPE = {"prompt": "a lake", "seed": 3}
NAMES = ["a.mp4", "a.webm"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of a film in each format."""
    folder = tmp_path_factory.mktemp("films")
    for name in NAMES:
        write(folder / name, np.full((2, 48, 64, 3), 90, np.uint8), 16, RECIPE)
    return {name: (folder / name).read_bytes() for name in NAMES}


def box(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def mp4(*parts: bytes) -> bytes:
    return box(b"ftyp", b"isom") + b"".join(parts)


@pytest.mark.parametrize("name", NAMES)
def test_a_film_says_its_recipe_and_its_size(name: str, whole: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(whole[name])
    notes = read(tmp_path / name)
    assert notes == ('{"prompt": "a lake", "seed": 3}', (64, 48), True)
    (tmp_path / name).write_bytes(whole[name][:-1])
    assert not read(tmp_path / name).whole


@pytest.mark.parametrize("name", NAMES)
@given(place=st.integers(0, 10_000), bits=st.integers(1, 255), length=st.integers(0, 10_000))
@settings(max_examples=100, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_film_is_read_or_refused_in_a_line(
    name: str, place: int, bits: int, length: int, whole: dict[str, bytes], tmp_path: Path
) -> None:
    content = bytearray(whole[name][: length or None])
    content[place % len(content)] ^= bits
    (tmp_path / name).write_bytes(content)
    problem = ""
    try:
        read(tmp_path / name)
    except SettingError as error:
        problem = str(error)
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "cannot be read as a film: give an MP4 or WebM file"),
        (b"#EXTM3U\n/etc/passwd\n", "cannot be read as a film"),
        (mp4(b"\0\0\0\x03moov"), "is damaged, and cannot be read as a film"),
        (mp4(b"\0\0"), "is damaged"),
        (mp4(box(b"moov", box(b"trak", box(b"tkhd", b"\0")))), "is damaged"),
        (mp4(struct.pack(">I4sQ", 1, b"moov", 3)), "is damaged"),
    ],
)
def test_what_is_no_film_is_named(content: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(SettingError, match=problem):
        read(tmp_path / "a.mp4")


def test_a_film_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="there is no film"):
        read(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").mkdir()
    with pytest.raises(SettingError, match="cannot be read: Is a directory"):
        read(tmp_path / "b.mp4")


def test_a_strangers_film_costs_little_time_and_memory(tmp_path: Path) -> None:
    """Boxes without end, boxes in boxes, a box that says it is endless, and a text of gigabytes."""
    deep = b""
    for _ in range(2000):
        deep = box(b"trak", deep)
    claimed = struct.pack(">I4sQ", 1, b"mdat", 1 << 62)
    path = tmp_path / "a.mp4"
    start = time.monotonic()
    for content in (mp4(box(b"free") * 300_000), mp4(box(b"moov", deep)), mp4(claimed), mp4(b"\0\0\0\0mdat")):
        path.write_bytes(content)
        assert not read(path).whole or content.endswith(b"mdat")
    with path.open("wb") as file:
        text = struct.pack(">I4sQ", 1, b"data", 1 << 32)
        file.write(mp4(b"\0\0\0\0moov", b"\0\0\0\0udta", b"\0\0\0\0meta\0\0\0\0", b"\0\0\0\0ilst", b"\0\0\0\0\xa9cmt", text))
        file.truncate(1 << 32)
    assert len(read(path).text) <= boxes.LONGEST
    assert time.monotonic() - start < 3
