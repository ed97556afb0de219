"""The layout of a sphere: which views cover it."""

import math
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import final

from panokit import Layout, SettingError
from panokit_sphere.coverage import hole
from panokit_sphere.sphere import Sphere, degrees
from panokit_sphere.views import Views

WIDEST = 80.0
"""The field of view in degrees above which views are only made if they are asked for."""
UNITS = (2304, 576, 144, 36, 4)
"""The number of points is a multiple of one of these, so that smaller spheres have a whole number of them."""
MOST = 4096
"""The most views."""
PROBES = 20_000
"""Directions in which it is tested whether views cover the sphere."""


@final
@dataclass(frozen=True)
class SphereLayout(Layout):
    """Views that look in all directions, for a picture that is twice as wide as high.

    There are rings of views at several latitudes, one of them on the equator, and one view at each pole.

    Attributes:
        fov: the field of view from left to right, in degrees; None for one whose middle has as many cells a degree as the
            picture, but at most 80 degrees.
        spacing: the largest distance of neighbouring views, in degrees; None for half of the field of view.
        density: points of the canvas for each cell in the middle of a view, 1 or more. Wide views need more: 1 is enough for 10
            degrees, and 1.75 for 84. The more points there are, the fewer do neighbouring views share.

    Raises:
        SettingError: a setting is out of its range.
    """

    fov: float | None = None
    spacing: float | None = None
    density: float = 1.75

    def __post_init__(self) -> None:
        if self.fov is not None and not 1 <= self.fov <= 150:
            raise SettingError(f"fov is {self.fov}: a field of view has 1 to 150 degrees; 60 to 90 are usual")
        if self.spacing is not None and not 1 <= self.spacing <= 180:
            raise SettingError(f"spacing is {self.spacing}: it must be 1 to 180 degrees, from one view to the next")
        if not 1 <= self.density <= 100:
            raise SettingError(f"density is {self.density}: it must be 1 to 100 points for each cell; 1.75 is usual")

    def begin(
        self, size: tuple[int, ...], window: tuple[int, ...], stride: tuple[int, ...] | None, wrap: tuple[bool, ...], seed: int
    ) -> Sphere:
        if len(size) != 2:
            raise SettingError("a sphere is a picture, and this is a film: make a picture, with frames=1, or choose a plane")
        if size[1] != 2 * size[0]:
            raise SettingError(
                f"a picture of all directions is twice as wide as high, and this one is {size[0]} x {size[1]} cells: make its "
                f"width {2 * size[0]} or height {size[1] // 2}"
            )
        if stride is not None:
            raise SettingError(
                'views on a sphere lie so many degrees apart, and have no stride: leave it out, or set {"plugin": "sphere", '
                '"spacing": 30}'
            )
        if any(wrap):
            raise SettingError("a sphere has no border in any direction: leave wrap out")
        (high, wide), picture = window, (size[0], size[1])
        half = math.pi * wide / size[1] if self.fov is None else math.tan(math.radians(self.fov / 2))
        if self.fov is None:
            half = min(half, math.tan(math.radians(WIDEST / 2)) * min(1.0, wide / high))  # for its height, too
        cell, fov = 2 * half / wide, degrees(half)
        points = self.density * 4 * math.pi / cell**2
        unit = next((unit for unit in UNITS if points >= 8 * unit), 1)
        spacing = 0.5 if self.spacing is None else self.spacing / fov
        sphere = Sphere(math.ceil(points / unit) * unit, picture, (high, wide), half, spacing)
        if len(sphere) > MOST:
            raise SettingError(
                f"views of {fov:.0f} degrees that are {spacing * fov:.0f} degrees apart are {len(sphere)}, and a sphere takes "
                f"{MOST}: make fov or spacing larger"
            )
        if (latitude := _hole(sphere.shown)) is not None:
            apart = spacing * fov
            raise SettingError(
                f"views of {fov:.0f} degrees that are {apart:.0f} degrees apart leave holes, the first at latitude "
                f"{latitude}: make spacing smaller, such as {fov / 2:.0f}"
            )
        return sphere


@lru_cache(maxsize=32)
def _hole(views: Views) -> int | None:
    """The latitude in degrees of a hole between views; None if there is none."""
    return hole((partial(views.shows, i) for i in range(len(views))), PROBES)
