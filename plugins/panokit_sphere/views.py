"""Pinhole views that cover the sphere: which way each of them looks, and what it sees where."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from panokit_sphere.projections import rotation


@final
@dataclass(frozen=True)
class Views:
    """Pinhole views in rings of equal latitude, upright, from the zenith to the nadir.

    There is a ring on the equator and one view at each pole, and the rings are equally far apart. A ring has as many views as
    its length needs, and its first one looks at longitude 0.

    Attributes:
        high: tangent of half the field of view from top to bottom.
        wide: tangent of half the field of view from left to right.
        spacing: the largest distance of neighbouring views, as a share of the field of view along the same direction.
    """

    high: float
    wide: float
    spacing: float

    def __len__(self) -> int:
        return len(self.centres)

    @cached_property
    def centres(self) -> Float[Tensor, "n 2"]:
        """Row and column of the centre of each view on an equirectangular picture, relative, from 0 to 1."""
        tall, broad = (2 * math.atan(half) * self.spacing for half in (self.high, self.wide))
        rings = max(1, math.ceil(round(math.pi / 2 / tall, 9)))  # from the equator to a pole
        centres = []
        for ring in range(-rings, rings + 1):
            around = 2 * math.pi * math.cos(math.pi / 2 * ring / rings)
            count = 1 if abs(ring) == rings else max(3, math.ceil(round(around / broad, 9)))
            centres += [(0.5 + 0.5 * ring / rings, (0.5 + k / count) % 1) for k in range(count)]
        return torch.tensor(centres, dtype=torch.float64)

    @cached_property
    def frames(self) -> Float[Tensor, "n 3 3"]:
        """For each view, the directions to its right, down in it, and ahead."""
        angles = [((column - 0.5) * 360, (0.5 - row) * 180) for row, column in self.centres.tolist()]
        return torch.stack([rotation(yaw, pitch).T for yaw, pitch in angles])

    def rays(self, high: int, wide: int) -> Float[Tensor, "high wide 3"]:
        """Where the cells of a view lie in it: to the right, down, and ahead, which is 1."""
        down, right = ((2 * torch.arange(cells, dtype=torch.float64) + 1) / cells - 1 for cells in (high, wide))
        return torch.stack(torch.broadcast_tensors(self.wide * right, self.high * down[:, None], torch.ones(())), dim=-1)

    def inside(self, i: int, directions: Float[Tensor, "*shape 3"]) -> tuple[Tensor, Tensor, Tensor]:
        """Where directions lie in a view.

        Args:
            i: the view's number.
            directions: of any shape, on any device.

        Returns:
            Whether the view shows them; and, right for those alone, how far right and how far down they lie, from -1 to 1.
        """
        right, down, ahead = (directions @ self.frames[i].to(directions).T).unbind(-1)
        x, y = right / (self.wide * ahead), down / (self.high * ahead)
        return (ahead > 0) & (x.abs() < 1) & (y.abs() < 1), x, y

    def shows(self, i: int, directions: Float[Tensor, "n 3"]) -> Bool[Tensor, " n"]:
        """Whether a view shows directions."""
        return self.inside(i, directions)[0]
