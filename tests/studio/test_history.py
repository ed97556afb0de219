"""The pictures of a session: whole files with recipes, which go when the session goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from panokit import Sampler, recipe
from panokit.errors import SettingError
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


@pytest.mark.parametrize("name", [None, ""])
def test_a_request_without_a_page_is_refused(tmp_path: Path, name: str | None) -> None:
    with pytest.raises(SettingError, match="belongs to no page"):
        Sessions(tmp_path).of(name)
