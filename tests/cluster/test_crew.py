"""What is looked for on other machines before actors start there."""

from __future__ import annotations

import importlib.metadata
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import pytest

from panokit.cluster.crew import looker, threads_for

if TYPE_CHECKING:
    from pathlib import Path

HERE = version("panokit")


def hidden(name: str) -> str:
    raise PackageNotFoundError(name)


@pytest.mark.parametrize(
    ("there", "problem"),
    [
        (hidden, f"has no panokit: install panokit {HERE} there, in the environment that runs Ray"),
        (lambda name: "9.9", f"has panokit 9.9, and this one {HERE}: install the same version on all machines"),
    ],
)
def test_a_machine_without_this_panokit_is_told(
    there: Any, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", there)
    assert looker()(HERE, str(tmp_path), str(tmp_path), "mark").endswith(problem)


def test_a_machine_that_does_not_see_the_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look, folder = looker(), str(tmp_path)
    (tmp_path / "made").mkdir()
    assert look(HERE, folder, "made", "mark").endswith(
        f" does not see the files in {tmp_path}/made: choose a folder for --out that all machines share"
    )
    (tmp_path / "made" / "mark").touch()
    assert look(HERE, folder, "made", "mark") == ""
    assert look(HERE, "/elsewhere", str(tmp_path / "made"), "mark") == ""  # a whole name needs no common folder to start in
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["mark"]

    def refused(path: Path, *args: Any, **options: Any) -> None:
        raise OSError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.touch", refused)
    assert f"cannot write to {tmp_path}/made (Permission denied): allow it to, or choose another folder" in look(
        HERE, folder, "made", "mark"
    )


def test_actors_have_the_threads_of_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_for(8) == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {*range(8)})
    assert [threads_for(actors) for actors in (1, 3, 99)] == [8, 2, 1]
