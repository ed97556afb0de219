"""Running checks: which there are, what an outcome says, and how pytest sees them."""

import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from panokit import Level, SettingError, WeightedFuser, Windows
from panokit.testing import Check, ConformanceError, checks, conforms, run_checks
from panokit.testing.demands import contents, distance, unchanged
from panokit.testing.toys import Mean, Pull, ToyDenoiser, ToyScheduler


@dataclass(frozen=True)
class Negative(WeightedFuser):
    def weight(self, windows: Windows, level: Level) -> Tensor:
        return -torch.ones(1, *windows.window)


@dataclass(frozen=True)
class Untyped(WeightedFuser):
    def weight(self, windows: Windows, level: Level) -> Any:
        return 1 / 0


@pytest.mark.parametrize("make", [Pull, Mean, ToyScheduler, ToyDenoiser])
def test_every_check_has_a_name_and_a_rule_of_one_sentence(make: Any) -> None:
    names = [check.name for check in checks(make)]
    assert len(names) == len(set(names)) > 4
    for check in checks(make):
        assert check.rule.endswith(".")
        assert "\n" not in check.rule


def test_the_kind_of_the_plugin_decides_which_checks_there_are() -> None:
    of = {make: {check.name for check in checks(make)} for make in (Pull, Mean, ToyScheduler, ToyDenoiser)}
    assert "gradient_matches_energy" in of[Pull]
    assert "fuse_of_crops_is_the_canvas" in of[Mean]
    assert "noise_is_what_levels_say" in of[ToyScheduler]
    assert "condition_per_window" in of[ToyDenoiser]


def test_what_is_no_plugin_is_refused() -> None:
    with pytest.raises(SettingError, match="the factory made a dict, which has no checks: it must make a Guidance"):
        checks(dict)


def test_a_check_makes_the_plugin_afresh() -> None:
    made: list[Mean] = []

    def make() -> Mean:
        made.append(Mean())
        return made[-1]

    chosen = checks(make)
    before = len(made)
    for check in chosen:
        check()
    assert len(made) - before >= len(chosen)


def test_a_broken_rule_is_an_assertion_error() -> None:
    (check,) = (check for check in checks(Negative) if check.name == "weights_cover")
    with pytest.raises(AssertionError, match="clamp weights to a small number") as raised:
        check()
    assert isinstance(raised.value, ConformanceError)


def test_outcomes_without_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytest", None)
    assert [outcome.problem for outcome in run_checks(Mean)] == [""] * len(checks(Mean))
    outcomes = dict(run_checks(Negative))
    assert outcomes["weights_cover"].startswith("Negative.weight goes from -1.0 to -1.0")
    assert outcomes["pickles_and_reprs"] == ""


def test_whatever_a_plugin_raises_is_a_problem_with_its_place() -> None:
    outcomes = dict(run_checks(Untyped))
    assert outcomes["weights_cover"].startswith("ZeroDivisionError: division by zero (")
    assert "test_conformance.py, line " in outcomes["weights_cover"]


def test_pytest_runs_a_test_once_for_each_check_under_its_name() -> None:
    @conforms(Mean)
    def decorated(check: Check) -> None:
        check()

    (mark,) = decorated.pytestmark
    assert mark.name == "parametrize"
    assert [parameter.id for parameter in mark.args[1]] == [check.name for check in checks(Mean)]
    assert [parameter.values for parameter in mark.args[1]] == [(check,) for check in checks(Mean)]


# --- comparing ----------------------------------------------------------------------------------------------


def test_distances_are_relative_and_bad_ones_infinite() -> None:
    ones = torch.ones(3)
    assert distance(ones, ones) == 0
    assert distance(0 * ones, 0 * ones) == 0
    assert distance(200 * ones, 100 * ones) == pytest.approx(0.5)
    for other in (torch.ones(4), ones * torch.nan, ones * torch.inf):
        assert distance(other, ones) == distance(ones, other) == float("inf")


def test_contents_are_copies_of_what_lies_in_nested_things() -> None:
    held = {"a": [torch.zeros(2), 1.5], "b": (Pull(weight=3), None, "text")}
    before = contents(held)
    assert unchanged(before, held)
    held["a"][0][1] = 1  # type: ignore[index]  # dug into on purpose
    assert not unchanged(before, held)


@pytest.mark.parametrize(
    "other", [{"a": 2}, {"b": 1}, {"a": 1.0}, {}, {"a": 1, "c": 2}, {"a": torch.tensor(1)}, {"a": True}], ids=repr
)
def test_anything_else_is_a_change(other: dict[str, Any]) -> None:
    assert not unchanged(contents({"a": 1}), other)
