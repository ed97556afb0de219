"""Files on a disk that may be full or broken: written whole or not at all, and tried before."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from panokit.errors import OutputError, PanokitError, SettingError
from panokit.files import beside, check_output, try_files, write_picture, written_aside
from panokit.output import Output, latents_of


def test_a_name_as_long_as_any_can_be_is_written(tmp_path: Path) -> None:
    path = tmp_path / f"{'a' * 251}.png"
    write_picture(check_output(path), Image.new("RGB", (4, 4)))
    assert [*tmp_path.iterdir()] == [path]


def test_the_error_of_cleaning_up_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path, **options: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "unlink", broken)
    with pytest.raises(OutputError, match=r"cannot write .*a: No space left on device$"), written_aside(tmp_path / "a"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("place", ["/", ".", "missing/a", "a\0b", "\ud800", "a" * 256, "a" * 5000, "folder", "file/a"])
def test_a_place_that_takes_no_file_is_one_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"^cannot write "):
        try_files({"--out": tmp_path / place})
    with pytest.raises(OutputError, match=r"^cannot write "), written_aside(tmp_path / place) as aside:
        aside.touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("ending", [".checkpoint", ".before"])
@pytest.mark.parametrize("name", ["a", "a" * 240, "a" * 255, "湖" * 85, "b" * 255])
def test_what_is_beside_a_file_has_a_name_that_fits(tmp_path: Path, name: str, ending: str) -> None:
    path = beside(tmp_path / name, ending)
    path.touch()
    assert path == beside(tmp_path / name, ending)
    assert path != beside(tmp_path / f"c{name[1:]}", ending)
    assert path.name.endswith(ending)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file, links to it and to itself, and a folder in it."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "there.png").touch()
    (folder / "soft.png").symlink_to("there.png")
    os.link(folder / "there.png", folder / "hard.png")
    (folder / "in").mkdir()
    (folder / "again").symlink_to(folder)
    return folder


def spelled(folder: Path, name: str) -> list[Path]:
    """Ways to write the path of a file."""
    return [
        folder / name,
        folder / "." / name,
        folder / "in" / ".." / name,
        folder / "again" / name,
        folder / "again" / "again" / "in" / ".." / name,
        Path(os.path.relpath(folder)) / name,
    ]


SAME = [
    ("there.png", "soft.png"),
    ("there.png", "hard.png"),
    ("hard.png", "soft.png"),
    ("there.png", "there.png"),
    ("new.png",) * 2,
]


@pytest.mark.parametrize("names", SAME)
def test_one_file_by_any_two_spellings_is_one(places: Path, names: tuple[str, str]) -> None:
    for one in spelled(places, names[0]):
        for other in spelled(places, names[1]):
            with pytest.raises(PanokitError, match=r"^--out and --preview name one file, .*: give one of them another name$"):
                try_files({"--out": one, "--preview": other})


def test_names_that_the_file_system_takes_for_one_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that ignores case, of which every call goes to the name in small letters."""
    for name in ("touch", "stat", "exists"):
        call = getattr(Path, name)
        monkeypatch.setattr(Path, name, lambda path, call=call, **more: call(path.with_name(path.name.lower()), **more))
    try_files({"--out": tmp_path / "A.png", "--preview": tmp_path / "b.png"})
    with pytest.raises(SettingError, match="--out and --preview name one file"):
        try_files({"--out": tmp_path / "A.png", "--preview": tmp_path / "a.png"})


def test_two_files_are_two(places: Path) -> None:
    before = sorted(places.rglob("*"))
    try_files({"--out": places / "there.png", "--preview": places / "new.png", "--sheet": places / "in" / "there.png"})
    assert sorted(places.rglob("*")) == before


letters = st.sampled_from(
    ["a", "A", "é", "e\u0301", "湖", ".", "/", "..", "\0", "\ud800", "\udcff", " ", "\n", "~", "a" * 60, "湖" * 20]
)
names = st.lists(letters, max_size=6).map("".join)


@given(names, st.sampled_from([".png", ".jpg", ".webp", ".PNG", ".gif", ""]), names)
def test_what_was_tried_can_be_written_and_what_cannot_be_is_refused_before(
    places: Path, name: str, ending: str, other: str
) -> None:
    folder = places / "in"
    out = Output(out=f"{folder}/{name}{ending}", preview=f"{folder}/{other}.png", latents=True)
    kept = out.folder or folder
    try:
        out.check(1)
    except PanokitError:
        pass
    else:
        path = Path(str(out.out)) if out.folder is None else kept / "a.png"
        for file in (path, latents_of(path), Path(str(out.preview))):
            with written_aside(file) as aside:
                aside.write_bytes(b"whole")
            assert file.read_bytes() == b"whole"
            file.unlink()
    assert not [path for path in places.rglob("*") if path.name.startswith(".panokit-")]
