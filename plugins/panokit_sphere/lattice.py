"""Points that are spread evenly over the sphere, and where directions lie on an equirectangular picture.

A direction is a vector of length 1: x is ahead, at longitude 0, y is to the right (east), and z is up.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

GOLDEN = math.pi * (3 - math.sqrt(5))
"""The golden angle, in radians. Turned by it from point to point, no two points come close."""


def lattice(points: int) -> Float[Tensor, "points 3"]:
    """The Fibonacci lattice: points of equal distance in height, each turned by the golden angle. From north to south.

    Args:
        points: how many.

    Returns:
        The directions, in float64.
    """
    k = torch.arange(points, dtype=torch.float64)
    up = 1 - (2 * k + 1) / points
    around, radius = (k * GOLDEN).remainder(2 * math.pi), (1 - up.square()).sqrt()
    return torch.stack([radius * around.cos(), radius * around.sin(), up], dim=1)


def directions(row: Tensor, column: Tensor) -> Float[Tensor, "*shape 3"]:
    """The directions of places on an equirectangular picture.

    Args:
        row: relative, from 0 at the zenith to 1 at the nadir.
        column: relative, from 0 at longitude -180 degrees to 1 at 180.
    """
    latitude, longitude = torch.broadcast_tensors((0.5 - row) * math.pi, (2 * column - 1) * math.pi)
    return torch.stack([latitude.cos() * longitude.cos(), latitude.cos() * longitude.sin(), latitude.sin()], dim=-1)


def places(directions: Float[Tensor, "*shape 3"]) -> tuple[Tensor, Tensor]:
    """Where directions lie on an equirectangular picture: the inverse of `directions`, for vectors of any length.

    Returns:
        Row and column, relative, from 0 to 1.
    """
    x, y, z = directions.unbind(-1)
    return 0.5 - torch.atan2(z, torch.hypot(x, y)) / math.pi, 0.5 + torch.atan2(y, x) / (2 * math.pi)
