"""Points that are spread evenly over the sphere."""

from math import pi, sqrt

import torch
from jaxtyping import Float
from torch import Tensor

GOLDEN = pi * (3 - sqrt(5))
"""The golden angle, in radians. Turned by it from point to point, no two points come close."""


def lattice(points: int) -> Float[Tensor, "points 3"]:
    """The Fibonacci lattice: points at equal distances in height, each turned by the golden angle. From zenith to nadir.

    Args:
        points: how many.

    Returns:
        Their directions, as in `projections`.
    """
    k = torch.arange(points, dtype=torch.float64)
    down = (2 * k + 1) / points - 1
    around, across = (k * GOLDEN).remainder(2 * pi), (1 - down.square()).sqrt()
    return torch.stack([across * around.sin(), down, across * around.cos()], dim=1)
