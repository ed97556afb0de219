"""Differences that are there, and those that may be chance."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Difference(NamedTuple):
    """A mean difference of pairs, and the interval that holds it with 95 %."""

    mean: float
    low: float
    high: float

    @property
    def shown(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def paired(ours: ArrayLike, theirs: ArrayLike, resamples: int = 2000) -> Difference:
    """The mean of ours minus theirs, pair by pair, with its bootstrap interval (percentiles; Efron 1979).

    Raises:
        ValueError: they are not pairs, or fewer than two.
    """
    apart = np.asarray(ours, float) - np.asarray(theirs, float)
    if len(apart) < 2:
        raise ValueError(f"there are {len(apart)} pairs: an interval needs two or more")
    chosen = np.random.default_rng(0).integers(len(apart), size=(resamples, len(apart)))
    low, high = np.percentile(apart[chosen].mean(axis=1), [2.5, 97.5])
    return Difference(float(apart.mean()), float(low), float(high))
