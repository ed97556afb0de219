"""Whether views show all of a sphere."""

from collections.abc import Callable, Iterable
from math import asin, degrees

from jaxtyping import Bool, Float
from torch import Tensor

from panokit_sphere.lattice import lattice

Shows = Callable[[Float[Tensor, "n 3"]], Bool[Tensor, " n"]]
"""Says of directions whether a view shows them."""


def hole(views: Iterable[Shows], tried: int) -> int | None:
    """The latitude in degrees of a direction that no view shows, as near to the equator as there is; None if there is none.

    Args:
        views: the views.
        tried: how many directions are tried. Of 4,096 neighbours are 3 degrees apart, and of 20,000 they are 1.5.
    """
    hidden = lattice(tried)
    for shows in views:
        hidden = hidden[~shows(hidden)]
        if not len(hidden):
            return None
    height = -hidden[:, 1]
    return round(degrees(asin(float(height[height.abs().argmin()]))))
