"""Pictures that are written strip by strip: the same pixels, the recipe, and nothing that is half written."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

from panokit import deepzoom, files, recipe
from panokit.errors import OutputError, PanokitError, SettingError
from panokit.output import Output
from panokit.panorama import is_whole
from panokit.png import Rows
from panokit.writing import check_picture, is_streamed, writing

RECIPE: dict[str, Any] = {"prompt": "a lake, ümläut 湖", "seed": 6, "width": 700, "height": 300}
NAMES = ["a.png", "a.tif", "a.dzi"]
SIZE = (700, 300)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of more than 600 pixels a side count as large."""
    pytest.importorskip("pyvips", reason="TIFF and Deep Zoom pictures are written by pyvips, which is not installed")
    monkeypatch.setattr(files, "SIDE", 600)


def rows(seed: int = 0) -> Rows:
    """A picture whose neighbouring pixels are alike, so that JPEG keeps it."""
    up, across = np.mgrid[: SIZE[1], : SIZE[0]] / 40
    waves = [127 + 120 * np.sin(up * (k + 1) / 3 + across + seed) for k in range(3)]
    return np.stack(waves, axis=-1).astype(np.uint8)


def written(path: Path, picture: Rows, data: dict[str, Any] = RECIPE) -> Path:
    with writing(path, SIZE, data) as write:
        for strip in np.array_split(picture, 7):
            write(strip)
    return path


def pixels(path: Path) -> Rows:
    """The pixels of a file: of a Deep Zoom picture, those of its largest scale."""
    if not deepzoom.is_deep_zoom(path):
        with Image.open(path) as image:
            return np.asarray(image)
    made = deepzoom.read(path)
    whole, level, step = np.zeros((SIZE[1], SIZE[0], 3), np.uint8), len(made.levels) - 1, made.tile
    for tile in (made.folder / str(level)).iterdir():
        x, y = map(int, tile.stem.split("_"))
        cut = np.asarray(Image.open(tile))[made.overlap * (y > 0) :, made.overlap * (x > 0) :]
        place = whole[y * step : (y + 1) * step, x * step : (x + 1) * step]
        place[:] = cut[: place.shape[0], : place.shape[1]]
    return whole


@pytest.mark.parametrize("name", NAMES)
def test_the_file_has_all_pixels_and_the_recipe(name: str, tmp_path: Path) -> None:
    picture = rows()
    path = written(check_picture(tmp_path / name, SIZE), picture)
    difference = np.abs(pixels(path).astype(int) - picture)
    assert difference.max() <= (12 if name == "a.dzi" else 0)
    assert difference.mean() < 1
    assert recipe.read(path) == RECIPE
    assert is_whole(path)
    assert {entry.name for entry in tmp_path.iterdir()} == {name, *(["a_files"] if name == "a.dzi" else [])}


@pytest.mark.parametrize("name", NAMES)
def test_the_same_picture_makes_the_same_files(name: str, tmp_path: Path) -> None:
    def content(folder: Path) -> dict[str, bytes]:
        folder.mkdir()
        written(folder / name, rows())
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    assert content(tmp_path / "one") == content(tmp_path / "other")


def test_a_large_tiff_has_smaller_copies_in_it(tmp_path: Path) -> None:
    with Image.open(written(tmp_path / "a.tif", rows())) as image:
        sizes = [frame.size for frame in ImageSequence.Iterator(image)]
    assert sizes == [(700, 300), (350, 150), (175, 75)]


def test_a_tiff_of_which_a_part_is_cut_off_is_not_whole(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tif", rows())
    content = path.read_bytes()
    for end in (0, 4, 1000, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:end])
        assert not is_whole(path), end


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_takes_the_place_of_an_older_one(name: str, tmp_path: Path) -> None:
    written(tmp_path / name, rows(1), {**RECIPE, "seed": 5})
    path = written(check_picture(tmp_path / name, SIZE), rows(2))
    assert np.abs(pixels(path).astype(int) - rows(2)).max() <= 12
    assert recipe.read(path) == RECIPE
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


def _write_and_raise(write: Callable[[Rows], None], error: BaseException) -> None:
    write(rows()[:100])
    raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SettingError("broken"), OSError("of a plugin"), ValueError("of torch")])
@pytest.mark.parametrize("name", NAMES)
def test_an_error_of_the_decoder_ends_it_and_stays_as_it_is(name: str, error: BaseException, tmp_path: Path) -> None:
    older = written(tmp_path / name, rows(), {**RECIPE, "seed": 5})
    with pytest.raises(type(error)) as raised, writing(older, SIZE, {}) as write:
        _write_and_raise(write, error)
    assert raised.value is error
    assert recipe.read(older)["seed"] == 5
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


@pytest.mark.parametrize("name", NAMES)
def test_too_few_rows_make_no_picture(name: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="200 of its rows are missing"), writing(tmp_path / name, SIZE, {}) as write:
        write(rows()[:100])
    assert not [*tmp_path.iterdir()]


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from panokit.errors import OutputError
from panokit.writing import writing
chance = np.random.default_rng(0)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for name in sys.argv[1:]:
    strips = 0
    try:
        with writing(Path(name), (2000, 20_000), {"prompt": "a lake"}) as write:
            for strips in range(1, 201):
                write(chance.integers(0, 256, (100, 2000, 3), dtype=np.uint8))
    except OutputError as error:
        print(f"{strips < 200} {error}")
"""


def test_a_disk_that_is_full_in_the_middle_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the length of files takes the place of the disk. The writer hears of it long before the last strip."""
    names = [str(tmp_path / name) for name in NAMES]
    done = subprocess.run([sys.executable, "-c", FULL, *names], capture_output=True, text=True)
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.splitlines() == [f"True cannot write {name}: File too large" for name in names]
    assert not [*tmp_path.iterdir()]


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        # Without root no file system can be made. The tests with a limit on the size of files find the same there.
        pytest.skip("file systems are mounted by root alone")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_keeps_the_older_picture(name: str, full_disk: Path) -> None:
    path = written(full_disk / name, np.zeros_like(rows()))
    noise = np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    with pytest.raises(OutputError, match=rf"^cannot write {path}: No space left on device$"):
        written(path, noise)
    assert not pixels(path).any()
    assert is_whole(path)
    assert not [entry for entry in full_disk.iterdir() if entry.name.startswith(".")]


@pytest.mark.parametrize(
    ("path", "size", "message"),
    [
        ("missing/a.dzi", SIZE, "there is no folder .*missing; make it first"),
        ("d.dzi", SIZE, "it is a folder"),
        (
            "thesis.dzi",
            SIZE,
            "its tiles go into .*thesis_files, which panokit did not write: remove it, or choose another name",
        ),
        ("note.dzi", SIZE, "its tiles go into .*note_files, which panokit did not write"),
        (f"{'a' * 251}.dzi", SIZE, "File name too long"),
        ("a.jpg", (65_501, 8), r"JPEG holds 65500 pixels a side, .*; try \.png, \.tif or \.dzi$"),
        ("a.webp", (16_384, 8), r"WEBP holds 16383 pixels a side, .*; try \.png, \.tif or \.dzi$"),
        ("a.xyz", SIZE, "names no picture format"),
    ],
)
def test_what_cannot_be_written_is_one_line_before_the_run(
    path: str, size: tuple[int, int], message: str, tmp_path: Path
) -> None:
    (tmp_path / "d.dzi").mkdir()
    (tmp_path / "thesis_files").mkdir()
    (tmp_path / "note_files").touch()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OutputError, match=message) as error:
        check_picture(tmp_path / path, size)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_that_nobody_may_write_to_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:  # root may write anywhere, so permissions would not do
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(files, "TemporaryDirectory", refuse)
    monkeypatch.setattr(files.os, "access", lambda path, mode: False)
    for name in NAMES:
        with pytest.raises(OutputError, match="permission denied; choose another place"):
            check_picture(tmp_path / name, SIZE)


@pytest.mark.parametrize(
    ("name", "message"),
    [("a.dzi", "a Deep Zoom picture needs pyvips"), ("a.tif", "a TIFF of 700 x 300 pixels needs pyvips")],
)
def test_without_pyvips_a_line_says_what_to_install(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyvips", None)
    with pytest.raises(SettingError, match=rf'{message}, which is not installed: pip install "panokit\[tiles\]", or write'):
        check_picture(tmp_path / name, SIZE)
    check_picture(tmp_path / "a.png", SIZE)
    check_picture(tmp_path / "b.tif", (600, 300))
    with pytest.raises(PanokitError, match="pip install"):
        Output(out=str(tmp_path / name)).check_files(tmp_path / name, SIZE)


def test_which_pictures_are_written_strip_by_strip() -> None:
    assert all(is_streamed(Path(name), SIZE) for name in (*NAMES, "a.TIFF", "a.DZI"))
    assert not any(is_streamed(Path(name), SIZE) for name in ("a.jpg", "a.webp", "a.bmp", "a.ppm"))
    assert not any(is_streamed(Path(name), (600, 300)) for name in ("a.png", "a.tif"))
    assert is_streamed(Path("a.dzi"), (8, 8))
