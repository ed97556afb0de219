"""Deep Zoom pictures: what their files say, whether all tiles are there, and how one takes the place of another."""

from pathlib import Path

import pytest

from panokit import deepzoom
from panokit.deepzoom import DeepZoom, folder_of, put, read
from panokit.errors import SettingError

FILE = """<?xml version="1.0" encoding="UTF-8"?>
<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" Format="png" Overlap="0" TileSize="4">
  <Size Height="5" Width="9"/>
</Image>"""


def made(path: Path, text: str = "") -> Path:
    """A picture of 9 x 5 pixels without pixels: 5 levels, whose tiles hold a text."""
    path.write_text(FILE)
    folder = folder_of(path)
    for level, (columns, rows) in enumerate([(1, 1), (1, 1), (1, 1), (2, 1), (3, 2)]):
        (folder / str(level)).mkdir(parents=True)
        for x in range(columns):
            for y in range(rows):
                (folder / str(level) / f"{x}_{y}.png").write_text(text or path.name)
    (folder / deepzoom.RECIPE).touch()
    return path


def content(path: Path) -> tuple[str, str]:
    """The file of a picture, and what its last tile holds."""
    return path.read_text(), (folder_of(path) / "4" / "2_1.png").read_text()


def test_its_file_says_how_large_it_is(tmp_path: Path) -> None:
    picture = read(made(tmp_path / "a.dzi"))
    assert picture == DeepZoom(tmp_path / "a_files", (9, 5), 4, 0, "png")
    assert picture.levels == [(1, 1), (2, 1), (3, 2), (5, 3), (9, 5)]
    assert picture.small(2) == tmp_path / "a_files" / "1" / "0_0.png"
    assert picture.small(320) == tmp_path / "a_files" / "2" / "0_0.png"


def test_it_is_whole_until_a_tile_is_missing_or_empty(tmp_path: Path) -> None:
    picture = read(made(tmp_path / "a.dzi"))
    assert picture.is_whole
    tile = tmp_path / "a_files" / "3" / "1_0.png"
    tile.write_bytes(b"")
    assert not picture.is_whole
    tile.unlink()
    assert not picture.is_whole


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"there is no picture .*a\.dzi"),
        ("a lake", "cannot be read as a Deep Zoom picture"),
        (FILE.replace('"9"', '"9e9"'), "cannot be read as a Deep Zoom picture"),
        (FILE.replace('"4"', '"0"'), "cannot be read as a Deep Zoom picture"),
        (FILE.replace('"png"', '"../png"'), "cannot be read as a Deep Zoom picture"),
        (FILE, "the tiles of .*: keep the folder a_files beside it"),
    ],
)
def test_what_is_none_is_named(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "a.dzi").write_text(text)
    with pytest.raises(SettingError, match=message) as error:
        read(tmp_path / "a.dzi")
    assert "\n" not in str(error.value)


def test_a_new_one_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    for text in ("first", "second"):
        (tmp_path / text).mkdir()
        put(made(tmp_path / text / "new.dzi", text), tmp_path / "a.dzi")
        assert content(tmp_path / "a.dzi") == (FILE, text)
        assert read(tmp_path / "a.dzi").is_whole


@pytest.mark.parametrize("failing", range(4))
def test_if_it_cannot_be_moved_the_older_one_stays(failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path / "a.dzi", "older")
    (tmp_path / "aside").mkdir()
    made(tmp_path / "aside" / "new.dzi", "newer")
    moves, rename = list[Path](), Path.rename

    def sometimes(path: Path, target: Path) -> Path:
        moves.append(path)
        if len(moves) == failing + 1:
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", sometimes)
    with pytest.raises(KeyboardInterrupt):
        put(tmp_path / "aside" / "new.dzi", tmp_path / "a.dzi")
    assert content(tmp_path / "a.dzi") == (FILE, "older")
    assert len(moves) == 2 * failing + 1
