"""Films as files: what each format keeps, what is refused before a run, and what goes wrong while one is written."""

import errno
import os
import resource
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from panokit import Panorama, films, recipe
from panokit.cli import main
from panokit.errors import FallbackWarning, OutputError, SettingError
from panokit.files import check_output
from panokit.films import check_film, film_sheet, read_frames, write, write_preview
from panokit.output import Output, check_preview
from panokit.panorama import is_whole
from panokit.recipe_text import as_python

Frames = NDArray[np.uint8]
RECIPE: dict[str, Any] = {"prompt": "a lake", "seed": 3, "width": 64, "height": 48, "frames": 9}
NAMES = ["a.mp4", "a.webm", "a.webp"]


def moving(count: int = 9, height: int = 48, width: int = 64) -> Frames:
    """A smooth picture that moves to the left, a pixel and a half a frame."""
    y, x, t = np.mgrid[:height, :width, :count].astype(float)
    waves = [np.sin((x + 1.5 * t) / scale + k) * np.cos(y / scale) for k, scale in enumerate((11, 17, 23))]
    return np.ascontiguousarray((127.5 + 120 * np.stack(waves, -1)).round().astype(np.uint8).transpose(2, 0, 1, 3))


def flat() -> Frames:
    """A film of one colour a frame."""
    colours = np.random.default_rng(0).integers(0, 256, (12, 3), dtype=np.uint8)
    return np.ascontiguousarray(np.broadcast_to(colours[:, None, None], (12, 32, 32, 3)))


def psnr(one: Frames, other: Frames) -> float:
    return float(10 * np.log10(255**2 / np.square(one.astype(float) - other).mean()))


@pytest.fixture(scope="module", params=NAMES)
def film(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / request.param
    write(path, moving(), 12.5, RECIPE)
    return path


def test_frames_come_back_and_those_of_a_webp_to_the_bit(film: Path) -> None:
    kept = read_frames(film)
    assert kept.shape == moving().shape
    if film.suffix == ".webp":
        assert (kept == moving()).all()
    else:
        assert psnr(kept, moving()) > 40


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kept", [RECIPE, {"prompt": "a lake"}, {}])
def test_frames_that_stay_the_same_come_back_one_by_one(tmp_path: Path, name: str, kept: dict[str, Any]) -> None:
    still = moving(3).repeat([1, 5, 3], axis=0)
    write(tmp_path / name, still, 24000 / 1001, kept)
    assert psnr(read_frames(tmp_path / name), still ^ np.uint8(name == "a.webp")) > 40


@pytest.mark.parametrize("name", NAMES[:2])
def test_colours_are_right(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, flat(), 16, {})
    error = read_frames(tmp_path / name).astype(float) - flat()
    assert np.abs(error.mean((1, 2))).max() < 2
    assert abs(error.mean()) < 0.3  # nothing drifts to the dark
    with av.open(str(tmp_path / name)) as file:
        coder = file.streams.video[0].codec_context
        assert (coder.colorspace, coder.color_primaries, coder.color_trc, coder.color_range) == (1, 1, 1, 1)


def test_the_recipe_comes_back(film: Path) -> None:
    assert recipe.read(film) == RECIPE


@pytest.mark.parametrize("name", NAMES)
def test_a_long_recipe_fits_and_one_that_is_too_long_is_left_out(tmp_path: Path, name: str) -> None:
    long = {**RECIPE, "prompt": "ü\0 " + "lake " * 13_000}
    write(tmp_path / name, moving(2), 16, long)
    assert recipe.read(tmp_path / name) == long
    with pytest.warns(FallbackWarning, match="the recipe is longer than 262144 letters"):
        write(tmp_path / name, moving(2), 16, {"prompt": "x" * recipe.LONGEST})
    with pytest.raises(SettingError, match="holds no recipe"):
        recipe.read(tmp_path / name)


def test_the_same_frames_make_the_same_bytes_on_one_core(film: Path, tmp_path: Path) -> None:
    """Whatever was in the memory before: trees of macroblocks made x264 read what it had not written, at widths like this."""
    again = tmp_path / f"b{film.suffix}"
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        write(again, moving(), 12.5, RECIPE)
    finally:
        os.sched_setaffinity(0, cores)
    assert again.read_bytes() == film.read_bytes()


@pytest.mark.parametrize("fps", [16, 12.5, 24000 / 1001, 0.01, 1000])
def test_a_film_is_as_fast_as_asked(tmp_path: Path, fps: float) -> None:
    for name in NAMES[:2]:
        write(tmp_path / name, moving(3), fps, {})
        with av.open(str(tmp_path / name)) as file:
            assert float(file.streams.video[0].average_rate or 0) == pytest.approx(fps, rel=2e-2 if name == "a.webm" else 1e-6)
    write(tmp_path / "a.webp", moving(9), fps, {})
    with Image.open(tmp_path / "a.webp") as image:
        ends = []
        for k in range(9):
            image.seek(k)
            image.load()
            ends.append(image.info["timestamp"] + image.info["duration"])
        assert ends == [round(1000 * (k + 1) / fps) for k in range(9)]
        assert image.info["loop"] == 0  # for ever


def test_a_film_of_one_frame_and_one_with_frames_out_of_order_in_the_memory(tmp_path: Path) -> None:
    for name in NAMES:
        write(tmp_path / name, moving(9)[::4, :, ::-1][:1], 16, {})
        assert psnr(read_frames(tmp_path / name), moving(1)[:, :, ::-1] ^ np.uint8(name == "a.webp")) > 35


@pytest.mark.parametrize("folder", ["data:x", "http:", "%03d", "ü é", "?q=1#f"])
def test_the_name_of_a_folder_is_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path(folder).mkdir()
    for name in NAMES:
        write(Path(folder) / name, moving(2), 16, RECIPE)
        assert len(read_frames(Path(folder) / name)) >= 2
    assert sorted(os.listdir(folder)) == NAMES


def test_odd_sizes_are_for_webm_and_webp(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"players of MP4 need an even width and height, and the film is 63 x 48: use .webm"):
        check_film(tmp_path / "a.mp4", (63, 48), 9)
    for name in NAMES[1:]:
        write(tmp_path / name, moving(3, 47, 63), 16, {})
        assert psnr(read_frames(tmp_path / name), moving(3, 47, 63) ^ np.uint8(name == "a.webp")) > 35


@pytest.mark.parametrize(
    ("name", "size", "problem"),
    [
        (
            "a.png",
            (64, 48),
            r"a\.png: its ending '\.png' holds no film, and this is one of 9 frames: use \.mp4, \.webm or \.webp",
        ),
        ("a", (64, 48), r"its ending '' holds no film"),
        ("a.gif", (64, 48), r"its ending '\.gif' holds no film"),
        ("a.mp4", (16_386, 48), r"a\.mp4: its format holds 16384 pixels a side, and the film is 16386 x 48"),
        ("a.webp", (16_384, 48), r"WEBP holds 16383 pixels a side"),
        ("no/a.mp4", (64, 48), r"there is no folder .*no; make it first"),
    ],
)
def test_a_film_that_cannot_be_written_is_refused_before_a_run(
    tmp_path: Path, name: str, size: tuple[int, int], problem: str
) -> None:
    with pytest.raises(OutputError, match=problem) as error:
        check_film(tmp_path / name, size, 9)
    assert "\n" not in str(error.value)


def test_a_picture_is_not_written_as_a_film(tmp_path: Path) -> None:
    for name in NAMES[:2]:
        with pytest.raises(OutputError, match=r"its ending '\.\w+' is of films, and this is a picture: use \.png"):
            check_output(tmp_path / name)
        with pytest.raises(OutputError, match="this is a picture"):
            Panorama(torch.zeros(4, 2, 3), Image.new("RGB", (4, 4)), RECIPE).save(tmp_path / name)
    check_output(tmp_path / "a.webp")


@pytest.mark.parametrize(
    ("frames", "fps", "problem"),
    [
        (moving().astype(float), 16, "frames came as float64 of shape (9, 48, 64, 3): a film is uint8"),
        (moving()[0], 16, "of shape (48, 64, 3)"),
        (moving()[:0], 16, "of shape (0, 48, 64, 3)"),
        (moving(), 0, "fps is 0: it must be from 0.01 to 1000 frames a second"),
        (moving(), 1e-9, "fps is 1e-09"),
        (moving(), 1e9, "fps is 1000000000.0"),
        (moving(), float("nan"), "fps is nan"),
    ],
)
def test_what_is_no_film_is_named(tmp_path: Path, frames: Any, fps: float, problem: str) -> None:
    with pytest.raises(SettingError) as error:
        write(tmp_path / "a.mp4", frames, fps, {})
    assert problem in str(error.value)


def test_without_av_films_are_webp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "b.mp4", moving(2), 16, RECIPE)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(
        SettingError,
        match=r'a film in this format needs av 18 or later, which is not installed: pip install "panokit\[films\]"',
    ):
        check_film(tmp_path / "a.mp4", (64, 48), 9)
    with pytest.raises(SettingError, match=r"b\.mp4: to read a film needs av 18 or later, which is not installed"):
        read_frames(tmp_path / "b.mp4")
    assert recipe.read(tmp_path / "b.mp4") == RECIPE
    write(tmp_path / "a.webp", moving(2), 16, RECIPE)
    assert films.ending() == ".webp"


def test_an_av_that_is_too_old_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "__version__", "17.1.0")
    with pytest.raises(SettingError, match="needs av 18 or later"):
        check_film(tmp_path / "a.mp4", (64, 48), 9)
    assert films.ending() == ".webp"


def test_an_ffmpeg_without_the_encoder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, mode: str) -> None:
        raise ValueError(name, mode)

    monkeypatch.setattr("av.codec.Codec", missing)
    with pytest.raises(SettingError, match="the FFmpeg of av has no encoder libx264: install av from PyPI"):
        check_film(tmp_path / "a.mp4", (64, 48), 9)


def test_a_full_disk_is_one_line_and_leaves_the_film_before(film: Path) -> None:
    """A real limit: no file may hold more than a few bytes."""
    before, (soft, hard) = film.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(OutputError) as error:
            write(film, moving(), 12.5, RECIPE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(error.value) == f"cannot write {film}: {os.strerror(errno.EFBIG)}"
    assert [*film.parent.iterdir()] == [film]
    assert film.read_bytes() == before


def test_half_a_film_is_not_whole(film: Path, tmp_path: Path) -> None:
    assert is_whole(film)
    half = tmp_path / film.name
    for part in (0, 3, 40, len(film.read_bytes()) // 2, -1):
        half.write_bytes(film.read_bytes()[:part])
        assert not is_whole(half)
    with pytest.raises(SettingError, match="cannot be read"):
        read_frames(tmp_path / "a.png")
    half.write_bytes(film.read_bytes()[:100])
    with pytest.raises(SettingError, match="is damaged, and cannot be read as a film"):
        read_frames(half)


def test_a_film_that_would_fill_the_memory_is_not_read(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(films, "LARGEST", 8 * 48 * 64)
    with pytest.raises(SettingError, match="has more than 24576 pixels, all frames together"):
        read_frames(film)
    monkeypatch.setattr(films, "LARGEST", 1 << 30)
    monkeypatch.setattr(films, "MOST", 8)
    with pytest.raises(SettingError, match="has more than 8 frames"):
        read_frames(film)
    with pytest.raises(SettingError, match="there is no film"):
        read_frames(film.with_name("missing.mp4"))


def test_a_list_of_other_films_opens_none_of_them(film: Path, tmp_path: Path) -> None:
    """FFmpeg reads lists of files by many names. A film of a stranger is a film, or nothing."""
    for name, text in {"a.mp4": "#EXTM3U\n#EXTINF:1,\n{}\n", "a.webm": "ffconcat version 1.0\nfile '{}'\n"}.items():
        (tmp_path / name).write_text(text.format(film.resolve()))
        with pytest.raises(SettingError, match="is damaged, and cannot be read as a film"):
            read_frames(tmp_path / name)


def test_a_sheet_has_frames_in_their_order_with_the_first_and_the_last() -> None:
    shades = np.zeros((30, 20, 40, 3), np.uint8) + np.arange(30, dtype=np.uint8)[:, None, None, None] * 8
    sheet = film_sheet(shades, 400, fps=16)
    wide = 400 // 2
    assert sheet.size == (400, 6 * (wide // 2 + 20))
    shown = [sheet.getpixel((x + wide // 2, y + 20)) for y in range(0, sheet.height, wide // 2 + 20) for x in (0, wide)]
    reds = [pixel[0] for pixel in shown if isinstance(pixel, tuple)]
    assert reds == sorted(reds)
    assert (len(reds), reds[0], reds[-1]) == (12, 0, 29 * 8)
    assert film_sheet(shades[:1], 40).size == (40, 40)


def test_a_preview_of_a_film_is_a_sheet_or_a_film(tmp_path: Path) -> None:
    for name in ("a.png", *NAMES):
        check_preview(tmp_path / name, (64, 48), 9)
        write_preview(tmp_path / name, moving(), 16)
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.width == 2048
    assert read_frames(tmp_path / "a.webm").shape == (9, 48, 64, 3)
    with pytest.raises(OutputError, match="this is a picture"):
        check_preview(tmp_path / "a.mp4", (64, 48), 1)


def test_a_film_in_a_folder_has_an_ending_of_films(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = Output(out=str(tmp_path))
    assert output.path(RECIPE).suffix == ".mp4"
    assert output.path({**RECIPE, "frames": 1}).suffix == output.path({"prompt": "a", "seed": 1}).suffix == ".png"
    assert "-again.mp4" in as_python(RECIPE)
    assert "-again.png" in as_python({**RECIPE, "frames": None})
    monkeypatch.setitem(sys.modules, "av", None)
    assert output.path(RECIPE).suffix == ".webp"


def test_files_are_checked_before_and_after_it_is_known_whether_it_is_a_film(tmp_path: Path) -> None:
    for name in ("a.png", *NAMES):
        output = Output(out=str(tmp_path / name), preview=str(tmp_path / f"preview-{name}"))
        output.check(1)  # it is not known yet
        if name != "a.png":
            output.check_files(tmp_path / name, (64, 48), 9)
    with pytest.raises(OutputError, match=r"holds no film, and this is one of 9 frames"):
        output.check_files(tmp_path / "a.png", (64, 48), 9)
    with pytest.raises(OutputError, match="is of films, and this is a picture"):
        output.check_files(tmp_path / "a.mp4", (64, 48), 1)
    with pytest.raises(SettingError, match="--out and --preview name one file"):
        Output(out=str(tmp_path / "a.mp4"), preview=str(tmp_path / "a.mp4")).check(1)


def test_the_recipe_in_a_film_is_painted_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--model", str(folder), "--height", "32", "--width", "32", "--steps", "1", "--quiet"]
    assert main(["generate", "a lake", *options, "--out", "b.png"]) == 0
    write(tmp_path / "a.mp4", moving(), 16, recipe.read("b.png"))
    assert main(["rerun", "a.mp4", "--trust", "--quiet"]) == 0
    assert (tmp_path / "a-rerun.png").read_bytes() == (tmp_path / "b.png").read_bytes()
