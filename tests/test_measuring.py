"""What benchmarks measure with: bars, ratios and peaks."""

import itertools

import pytest
import torch

from measuring import Bench, Case, in_turns, table
from panokit.testing.memory import peak


@pytest.mark.parametrize(
    ("least", "most", "value", "holds", "bar"),
    [
        (None, 1.03, 1.03, True, "≤ 1.03"),
        (None, 1.03, 1.04, False, "≤ 1.03"),
        (0.92, None, 0.95, True, "≥ 0.920"),
        (0.92, None, 0.9, False, "≥ 0.920"),
        (1.9, 2.1, 2.0, True, "1.90 to 2.10"),
        (1.9, 2.1, 2.2, False, "1.90 to 2.10"),
        (4500, 4500, 4500, True, "= 4,500"),
        (4500, 4500, 4499, False, "= 4,500"),
        (None, None, 7.0, True, ""),
    ],
)
def test_a_value_keeps_its_bar_or_not(least: float | None, most: float | None, value: float, holds: bool, bar: str) -> None:
    case = Case("P1", "samples", value, "samples", least, most)
    assert (case.holds, case.bar) == (holds, bar)


def test_what_does_not_keep_its_bar_fails_and_is_in_the_table() -> None:
    bench = Bench(enabled=True)
    bench.record("P11", "time", 2.0, "times", least=1.9, most=2.1, peer=2)
    with pytest.raises(AssertionError, match=r"P5, time: 1\.10 of diffusers', and the bar is ≤ 1\.03"):
        bench.record("P5", "time", 1.1, "of diffusers'", most=1.03, peer="1.0 s")
    first, _, *rows = (line.split("|")[1:-1] for line in table(bench.cases).splitlines())
    assert [cell.strip() for cell in first] == ["case", "what is measured", "panokit", "bar", "peer", ""]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["P5", "time", "1.10 of diffusers'", "≤ 1.03", "1.0 s", "FAIL"],
        ["P11", "time", "2.00 times", "1.90 to 2.10", "2", "pass"],
    ]


def test_plain_tests_keep_the_bars_of_counts_alone() -> None:
    bench = Bench(enabled=False)
    bench.record("P5", "time", 1.1, "of diffusers'", most=1.03)
    with pytest.raises(AssertionError, match="4,499 samples, and the bar is = 4,500"):
        bench.record("P1", "passes", 4499, "samples", exactly=4500, always=True)
    assert bench.cases == []


def test_turns_are_compared_pair_by_pair() -> None:
    ours, theirs = itertools.cycle([1.0, 10.0, 4.0]), itertools.cycle([2.0, 20.0, 4.0])
    turns = in_turns(3, lambda: next(ours), lambda: next(theirs))
    assert turns == (0.5, 4.0, 4.0)
    assert in_turns(9, lambda: 1.0, lambda: 2.0, enough=lambda turns, pairs: pairs == 2).ratio == 0.5


def test_the_peak_is_that_of_living_tensors() -> None:
    there = torch.zeros(1000)

    def work() -> torch.Tensor:
        twice = (there + 1) * 2  # the sum is gone when the next line runs
        return twice.sum()

    made, most = peak(work)
    assert made == 2000
    assert 2 * there.nbytes <= most < 2.1 * there.nbytes
