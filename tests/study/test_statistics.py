"""Intervals of paired differences: what they hold, and how often."""

import numpy as np
import pytest

from panokit.study.statistics import Difference, paired


def test_a_difference_that_is_there_is_shown_and_chance_is_not() -> None:
    rng = np.random.default_rng(0)
    prompts, noise = rng.normal(size=40) * 10, rng.normal(size=(2, 40))
    apart = paired(prompts + noise[0] + 2, prompts + noise[1])
    assert apart.mean == pytest.approx(2, abs=0.5)
    assert apart.low < apart.mean < apart.high
    assert apart.shown
    assert not paired(prompts + noise[0], prompts + noise[1]).shown


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    held = [low <= 1 <= high for _ in range(300) for _, low, high in [paired(rng.normal(1, 1, 30), np.zeros(30), 500)]]
    assert 0.90 <= np.mean(held) <= 0.98


def test_zero_at_the_border_is_not_shown() -> None:
    assert not Difference(1.0, 0.0, 2.0).shown
    assert Difference(-1.0, -2.0, -0.1).shown


def test_one_pair_has_no_interval() -> None:
    with pytest.raises(ValueError, match="needs two or more"):
        paired([1.0], [0.0])
