"""Fusing on a sphere: a view counts less where it is stretched."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from panokit import Level, SettingError, WeightedFuser, Windows
from panokit_sphere.sphere import Sphere


@final
@dataclass(frozen=True)
class SphereFuser(WeightedFuser):
    r"""The mean of the views over each point, weighted by how little they are stretched there.

    $$ W = \cos^k \vartheta $$

    with the angle $\vartheta$ from the axis of the view. A cell covers $\cos^3 \vartheta$ of what the middle cell covers.

    Attributes:
        power: $k$, 0 or more. 0 is the plain mean, and 3 weighs a cell by what it covers.

    Raises:
        SettingError: `power` is below 0, or infinite.
    """

    power: float = 8.0

    def __post_init__(self) -> None:
        if not 0 <= self.power < float("inf"):
            raise SettingError(f"power is {self.power}: it must be 0 or more; 3 weighs a cell by what it covers")

    def begin(self, windows: Windows, levels: Sequence[Level]) -> None:
        """Check that the windows are views of a sphere.

        Raises:
            SettingError: they are not.
        """
        if not isinstance(windows, Sphere):
            raise SettingError(
                "the fuser sphere weighs views of a sphere, and these windows are none: choose the layout sphere, or another "
                "fuser, such as multidiffusion"
            )

    def weight(self, windows: Windows, level: Level) -> Float[Tensor, "1 *window"]:
        """The weight of each cell of a view, in (0, 1]; all alike for windows on a plane, which `begin` refuses."""
        if not isinstance(windows, Sphere):
            return torch.ones(1, *windows.window)
        rays = windows.shown.rays(*windows.window)
        return rays.norm(dim=-1).pow(-self.power).float()[None]
