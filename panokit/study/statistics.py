"""Differences that are there, and those that may be chance."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, t

ENOUGH = 8
"""Pairs from which on an interval holds about what it says."""


class Difference(NamedTuple):
    """A mean difference of n pairs, and the interval that holds it with 95 %; n is None where it is not of pairs."""

    mean: float
    low: float
    high: float
    n: int | None = None

    @property
    def shown(self) -> bool:
        """Whether the interval excludes zero, and is of pairs enough to believe it."""
        return (self.low > 0 or self.high < 0) and (self.n is None or self.n >= ENOUGH)


def paired(ours: ArrayLike, theirs: ArrayLike, resamples: int = 2000) -> Difference:
    r"""The mean of ours minus theirs, pair by pair, with its bootstrap interval.

    Percentiles of resampled means are too narrow for few pairs; they are taken further out, at $\Phi(\pm \sqrt{n / (n - 1)}\,
    t_{0.975, n - 1})$, which is right for normal differences (Hesterberg 2015, section 3.2).

    Raises:
        ValueError: they are not pairs, or fewer than two.
    """
    apart = np.asarray(ours, float) - np.asarray(theirs, float)
    n = len(apart)
    if n < 2:
        raise ValueError(f"there are {n} pairs: an interval needs two or more")
    chosen = np.random.default_rng(0).integers(n, size=(resamples, n))
    share = 100 * float(norm.cdf(-((n / (n - 1)) ** 0.5) * t.ppf(0.975, n - 1)))
    low, high = np.percentile(apart[chosen].mean(axis=1), [share, 100 - share])
    return Difference(float(apart.mean()), float(low), float(high), n)


def interval(subsets: NDArray[np.float64]) -> Difference:
    """The mean of what was measured on subsets, halves drawn without replacement, and its interval by their percentiles."""
    low, high = np.percentile(subsets, [2.5, 97.5])
    return Difference(float(subsets.mean()), float(low), float(high))
