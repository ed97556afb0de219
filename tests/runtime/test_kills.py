"""The killer in small: two kills of its hundred, and what it makes of outcomes."""

import importlib.util
import random
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.xdist_group("ranks")  # one after another with the other tests of processes: they have time limits
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "faults" / "kills.py"


@pytest.fixture(scope="module")
def kills() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kills", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["kills"] = module  # where its dataclasses look their types up
    spec.loader.exec_module(module)
    return module


@pytest.mark.sweep
def test_a_first_rank_that_is_killed_at_the_start_leaves_no_process(kills: Any) -> None:
    cell = kills.Cell("panokit", "start", "SIGKILL", "rank 0")
    with kills.folder_of_marks() as folder:
        outcome = kills.strike(cell, folder, random.Random(0))
    assert outcome == replace(outcome, status=-9, left=0, files=[], others=0)
    before = "panokit: the process that started the others has ended, at the start"
    between = "panokit: rank 1: rank 1 of 2 could not meet the others: Connection reset by peer"
    after = "panokit: rank 1: rank 0 has ended, and its windows are missing: look at its last output"
    assert len(outcome.lines) == 1
    # As the ranks had met, were about to, or had not: a fast machine comes that far in the second that passes.
    assert outcome.lines[0] in (before, between, after)
    assert outcome.seconds < 20


@pytest.mark.sweep
def test_a_checkpoint_of_a_killed_process_makes_the_same_picture(kills: Any) -> None:
    with kills.folder_of_marks() as folder:
        picture = kills.undisturbed(folder)
    cell = kills.Cell("one process", "decode", "SIGKILL", "parent")
    with kills.folder_of_marks() as folder:
        outcome = kills.strike(cell, folder, random.Random(0))
        kills.resume(outcome, picture, folder)
    assert (outcome.status, outcome.resumed, outcome.same) == (-9, True, True)
    assert kills.wrong(cell, outcome) == []
    assert kills.table([(cell, outcome)]).count("\n") == 2


def test_all_is_tried_before_anything_is_tried_again(kills: Any) -> None:
    every = kills.cells()
    assert len(every) == len({*every}) == 6 * 4 * (1 + 3 + 4)
    assert {*kills.chosen(len(every), 3)} == {*every}
    assert kills.chosen(5, 3) == kills.chosen(200, 3)[:5] != kills.chosen(5, 4)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"left": 1}, "1 processes left"),
        ({"status": 1}, "status 1"),
        ({"status": None}, "status None"),
        ({"lines": []}, "0 lines of panokit"),
        ({"lines": ["panokit: a", "panokit: b"]}, "2 lines of panokit"),
        ({"others": 20}, "20 lines of others"),
        ({"whole": False}, "the picture is not whole"),
        ({"same": False}, "another picture"),
    ],
)
def test_what_must_not_be_is_named(kills: Any, change: dict[str, Any], problem: str) -> None:
    cell = kills.Cell("panokit", "step", "SIGTERM", "rank 0")
    sound = kills.Outcome(143, ["panokit: terminated"], 0, 1.0, 0, [], same=True)
    assert kills.wrong(cell, sound) == []
    assert kills.wrong(cell, replace(sound, **change)) == [problem]
