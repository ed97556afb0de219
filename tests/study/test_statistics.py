"""Intervals of paired differences: what they hold, and how often."""

import numpy as np
import pytest

from panokit.study.statistics import Difference, interval, paired


def test_a_difference_that_is_there_is_shown_and_chance_is_not() -> None:
    rng = np.random.default_rng(0)
    prompts, noise = rng.normal(size=40) * 10, rng.normal(size=(2, 40))
    apart = paired(prompts + noise[0] + 2, prompts + noise[1])
    assert apart.mean == pytest.approx(2, abs=0.5)
    assert apart.low < apart.mean < apart.high
    assert apart.shown
    assert not paired(prompts + noise[0], prompts + noise[1]).shown


@pytest.mark.parametrize("n", [8, 16, 64])
def test_the_interval_holds_the_truth_as_often_as_it_says(n: int) -> None:
    rng = np.random.default_rng(1)
    found = [paired(rng.normal(1, 1, n), np.zeros(n), 1000) for _ in range(500)]
    assert 0.92 <= np.mean([each.low <= 1 <= each.high for each in found]) <= 0.98


def test_zero_at_the_border_is_not_shown() -> None:
    assert not Difference(1.0, 0.0, 2.0).shown
    assert Difference(-1.0, -2.0, -0.1).shown


def test_few_pairs_show_nothing() -> None:
    assert Difference(1.0, 0.5, 2.0, n=8).shown
    assert not Difference(1.0, 0.5, 2.0, n=7).shown


def test_an_interval_of_subsets_is_their_percentiles() -> None:
    found = interval(np.arange(201.0))
    assert (found.mean, found.low, found.high) == (100, 5, 195)


def test_one_pair_has_no_interval() -> None:
    with pytest.raises(ValueError, match="needs two or more"):
        paired([1.0], [0.0])


def test_numbers_without_a_partner_are_refused() -> None:
    with pytest.raises(ValueError, match="3 numbers came with 1: each needs a partner"):
        paired([1.0, 2.0, 3.0], [0.0])
