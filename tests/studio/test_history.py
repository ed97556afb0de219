"""The pictures of a session: whole files with recipes, which go when the session goes."""

from __future__ import annotations

from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from panokit import Sampler, recipe
from panokit.errors import OutputError, SettingError
from panokit.studio.asked import Asked
from panokit.studio.history import Sessions

if TYPE_CHECKING:
    from pathlib import Path

    from panokit import Model, Panorama, Runtime


@pytest.fixture(scope="module")
def panorama(tiny: Model, cpu: Runtime) -> Panorama:
    return Sampler(tiny, runtime=cpu)("a lake", height=16, width=32, steps=1, progress=False)


def test_a_session_keeps_files_with_recipes_until_it_is_left(tmp_path: Path, panorama: Panorama) -> None:
    sessions = Sessions(tmp_path)
    ann, ben = sessions.of("ann"), sessions.of("ben")
    assert sessions.of("ann") is ann
    first, other = ann.add(Asked({}), panorama), ben.add(Asked({}), panorama)
    assert recipe.read(first.path) == panorama.recipe
    assert [entry.path for entry in ann.entries] == [first.path]
    sessions.leave("ann")
    assert not first.path.exists()
    assert other.path.exists()
    with pytest.raises(SettingError, match="the page is closed"):
        ann.add(Asked({}), panorama)
    assert len([*tmp_path.iterdir()]) == 1


def test_the_oldest_pictures_go_but_not_the_one_that_is_kept(
    tmp_path: Path, panorama: Panorama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("panokit.studio.history.LONGEST", 2)
    session = Sessions(tmp_path).of("ann")
    entries = [session.add(Asked({}), panorama)]
    session.kept = entries[0]
    entries += [session.add(Asked({}), panorama) for _ in range(3)]
    assert session.entries == entries[2:]
    assert [entry.path.exists() for entry in entries] == [True, False, True, True]
    session.kept = entries[3]
    entries.append(session.add(Asked({}), panorama))
    assert [entry.path.parent.exists() for entry in entries] == [False, False, False, True, True]


def test_the_picture_that_another_started_from_is_a_file(tmp_path: Path, panorama: Panorama) -> None:
    session = Sessions(tmp_path).of("ann")
    image = Image.effect_noise((40, 20), 90).convert("RGBA")
    varied, other = session.add(Asked({"seed": 1}, image, image), panorama), session.add(Asked({}), panorama)
    assert varied.asked.image is varied.asked.mask is None
    assert varied.asked.options == {"seed": 1}
    start = varied.start()
    assert start is not None
    assert (start.mode, start.tobytes()) == ("RGBA", image.tobytes())
    assert other.start() is None


def test_a_disk_that_takes_nothing_is_named_and_no_half_entry_stays(
    tmp_path: Path, panorama: Panorama, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Sessions(tmp_path / "pictures").of("ann")
    (tmp_path / "pictures").write_text("no folder can be made here")
    with pytest.raises(OutputError, match="the studio cannot write the picture"):
        session.add(Asked({}), panorama)
    (tmp_path / "pictures").unlink()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OutputError):
        session.add(Asked({}), panorama)
    assert session.entries == []
    assert not [path for path in (tmp_path / "pictures").rglob("*") if path.is_file()]


def test_a_session_that_is_closed_while_a_picture_is_written_leaves_nothing(
    tmp_path: Path, panorama: Panorama, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Sessions(tmp_path).of("ann")
    writing, gate, save = Event(), Event(), Image.Image.save

    def slow(image: Image.Image, *args: Any, **kwargs: Any) -> None:
        writing.set()
        gate.wait(30)
        save(image, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "save", slow)
    adding, closing = Thread(target=session.add, args=(Asked({}), panorama)), Thread(target=session.close)
    adding.start()
    writing.wait(30)
    closing.start()
    closing.join(0.3)
    gate.set()
    adding.join()
    closing.join()
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("name", [None, ""])
def test_a_request_without_a_page_is_refused(tmp_path: Path, name: str | None) -> None:
    with pytest.raises(SettingError, match="belongs to no page"):
        Sessions(tmp_path).of(name)
