"""Intervals for differences between methods, which separate real differences from chance."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, t

ENOUGH = 8
"""From this number of pairs on, a bootstrap interval has about its stated probability."""


class Difference(NamedTuple):
    """A mean difference and its 95 % interval.

    Attributes:
        mean: the mean difference.
        low: the lower end of the interval.
        high: the upper end of the interval.
        n: number of pairs; None if the difference is not taken from pairs.
    """

    mean: float
    low: float
    high: float
    n: int | None = None

    @property
    def shown(self) -> bool:
        """Whether the interval excludes zero, and there are enough pairs to trust it."""
        return (self.low > 0 or self.high < 0) and (self.n is None or self.n >= ENOUGH)


def paired(ours: ArrayLike, theirs: ArrayLike, resamples: int = 2000) -> Difference:
    r"""The mean of `ours - theirs` over pairs, with its 95 % bootstrap interval.

    With few pairs, the usual percentiles of resampled means give too narrow an interval. So this takes the percentiles at
    $\Phi(\pm \sqrt{n / (n - 1)}\, t_{0.975, n - 1})$. They are right for normal differences (Hesterberg 2015, section 3.2).

    Args:
        ours: one number for each pair.
        theirs: the other number of each pair, as many and in the same order.
        resamples: number of resampled means.

    Raises:
        ValueError: there are fewer than two pairs, or numbers without a partner.
    """
    one, other = np.asarray(ours, float), np.asarray(theirs, float)
    if one.shape != other.shape:
        raise ValueError(f"{one.size} numbers came with {other.size}: each needs a partner")
    differences = one - other
    n = len(differences)
    if n < 2:
        raise ValueError(f"there are {n} pairs: an interval needs two or more")
    chosen = np.random.default_rng(0).integers(n, size=(resamples, n))
    share = 100 * float(norm.cdf(-((n / (n - 1)) ** 0.5) * t.ppf(0.975, n - 1)))
    low, high = np.percentile(differences[chosen].mean(axis=1), [share, 100 - share])
    return Difference(float(differences.mean()), float(low), float(high), n)


def interval(subsets: NDArray[np.float64]) -> Difference:
    """The mean over subsets, with the interval between their 2.5 % and 97.5 % percentiles.

    Args:
        subsets: one number for each subset. A subset is half of all, drawn without replacement, as in `measures.kid`.
    """
    low, high = np.percentile(subsets, [2.5, 97.5])
    return Difference(float(subsets.mean()), float(low), float(high))
