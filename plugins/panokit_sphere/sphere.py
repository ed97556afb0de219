"""Windows on a sphere. The canvas is points that are spread evenly, and each window is a pinhole view of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import ClassVar, final

import torch
from jaxtyping import Float, Shaped
from scipy.spatial import KDTree
from torch import Tensor, nn

from panokit import Projected, SettingError
from panokit.windows import Factor, divided
from panokit_sphere.lattice import lattice
from panokit_sphere.picking import picked
from panokit_sphere.projections import at, pixels, sample
from panokit_sphere.views import Views

STRIP = 1 << 20
"""The most pixels of a picture that are laid at once."""


@final
@dataclass(frozen=True)
class Sphere(Projected):
    r"""Pinhole views of points on a sphere.

    The points are a Fibonacci lattice, which has equal density everywhere. A cell at an angle $\vartheta$ from the axis of a
    view covers $\cos^3 \vartheta$ of what the middle cell covers. So there must be more points than one for each middle cell
    (`density`). A view takes as many of them as it has cells, each at most once: so noise stays noise.

    Attributes:
        points: the number of points.
        picture: height and width of the equirectangular picture, in cells; it is twice as wide as high.
        window: height and width of a view, in cells. Cells are square.
        wide: tangent of half the field of view from left to right.
        spacing: the largest distance of neighbouring views, as a share of their field of view.
        size: the number of points, in a tuple.
        wrap: a sphere has no border, and its points are no ring: always False.

    Raises:
        SettingError: the views are so wide that one has more cells than points.
    """

    projection: ClassVar[str] = "equirectangular"

    points: int
    picture: tuple[int, int]
    window: tuple[int, int]
    wide: float
    spacing: float
    size: tuple[int, ...] = field(init=False, repr=False, compare=False)
    wrap: tuple[bool, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", (self.points,))
        object.__setattr__(self, "wrap", (False,))
        if _stretch(self.shown.high, self.wide) > self.density:
            raise SettingError(
                f"views of {degrees(self.wide):.0f} degrees are too wide for a density of {self.density:.3g}, as their corners "
                f"show little of the sphere: the widest that work are {self._widest():.0f} degrees"
            )

    @property
    def density(self) -> float:
        """Points for each cell in the middle of a view."""
        return self.points * (2 * self.wide / self.window[1]) ** 2 / (4 * math.pi)

    def _widest(self) -> float:
        """The widest field of view that works with this density, in degrees."""
        low, up, ratio, density = 0.0, 100.0, self.window[0] / self.window[1], self.density
        for _ in range(60):
            middle = (low + up) / 2
            low, up = (middle, up) if _stretch(middle * ratio, middle) <= density else (low, middle)
        return float(math.floor(degrees(low)))

    @cached_property
    def shown(self) -> Views:
        """The views."""
        high, wide = self.window
        return Views(self.wide * high / wide, self.wide, self.spacing)

    def __len__(self) -> int:
        return len(self.shown)

    def crop(self, canvas: Shaped[Tensor, "*c_size"], index: Sequence[int] | None = None) -> Shaped[Tensor, "n *c_window"]:
        if tuple(canvas.shape[-1:]) != self.size:
            raise SettingError(
                f"a canvas of shape {tuple(canvas.shape)} does not fit a sphere of {self.points} points: its last axis must "
                "have as many"
            )
        points = _points(self, canvas.device)
        rows = points if index is None else points[list(index)]
        crops = canvas[..., rows.flatten()].unflatten(-1, (len(rows), *self.window))
        return crops.movedim(-3, 0)

    def put(self, canvas: Tensor, i: int, window: Tensor, weight: Tensor | None = None) -> None:
        added = window if weight is None else window * weight
        canvas.index_add_(-1, _points(self, canvas.device)[i].flatten(), added.flatten(-2))

    def cells(self, index: Sequence[int] | None = None) -> Shaped[Tensor, "n 1 *window"]:
        points = _points(self, torch.device("cpu"))
        return (points if index is None else points[list(index)])[:, None].clone()

    def centre(self, i: int) -> tuple[float, ...]:
        """Row and column of a view's centre on the picture, relative, from 0 to 1."""
        return tuple(self.shown.centres[i].tolist())

    def nearest(self, *where: float) -> int:
        """The view that looks most nearly at a place of the picture; see `Windows.nearest`."""
        if len(where) != 2:
            raise SettingError(
                f"the place {where} has {len(where)} numbers: on a sphere give two, the row and the column of the picture"
            )
        row, column = torch.tensor(where, dtype=torch.float64)
        along = (self.shown.frames[:, 2] @ at(row, column, (1, 1))).mul(1e6).round().tolist()
        return max(range(len(self)), key=lambda i: (along[i], i))

    def on(self, size: tuple[int, ...]) -> "Sphere":
        if len(size) != 1 or size[0] < 1:
            raise SettingError(f"a sphere has one number of points, and {size} came: give (points,)")
        (points,) = size
        by = math.sqrt(self.points / points)
        high = round(self.picture[0] / by)
        return replace(self, points=points, picture=(high, 2 * high), wide=self.wide * by)

    def scaled(self, factor: Factor) -> "Sphere":
        by = _factor(factor)
        points, picture, wide = self._divided(by), _by(self.picture, by, "the picture"), self.wide * by
        if _stretch(self.shown.high * by, wide) > self.density:
            raise SettingError(
                f"views of {degrees(self.wide):.0f} degrees cannot be {by} times as wide on a smaller sphere: make fov "
                f"{degrees(math.tan(math.radians(self._widest() / 2)) / by):.0f} degrees or less, or the picture larger"
            )
        return replace(self, points=points, picture=picture, wide=wide)

    def coarsened(self, factor: Factor) -> "Sphere":
        by = _factor(factor)
        picture, window = _by(self.picture, by, "the picture"), _by(self.window, by, "the window")
        return replace(self, points=self._divided(by), picture=picture, window=window)

    def refined(self, factor: Factor) -> "Sphere":
        by = _factor(factor)
        (high, wide), (rows, columns) = self.picture, self.window
        return replace(self, points=self.points * by**2, picture=(high * by, wide * by), window=(rows * by, columns * by))

    def _divided(self, by: int) -> int:
        """The number of points of a sphere that is so many times smaller along each direction."""
        if self.points % by**2:
            works = [str(n) for n in range(2, 13) if not self.points % n**2]
            raise SettingError(
                f"a sphere of {self.points} points cannot be made {by} times smaller: choose a factor of "
                f"{', '.join(works) or '1'}"
            )
        return self.points // by**2

    def shrunk(self, canvas: Float[Tensor, "*c_size"], factor: Factor) -> tuple[Float[Tensor, "*c_coarse"], Tensor]:
        """The mean of the points that become one point of a smaller canvas, and how many they are.

        A point belongs to the nearest one of the smaller canvas.

        Args:
            canvas: `c *size`.
            factor: how many times smaller the canvas is.

        Returns:
            The means, and the counts for each point, 1 or more.
        """
        few = self._divided(_factor(factor))
        fine, coarse, count = _nearest(self.points, few, canvas.device)
        sums = canvas.new_zeros(*canvas.shape[:-1], few).index_add_(-1, coarse, canvas[..., fine])
        return sums / count, count

    def places(self) -> Float[Tensor, "2 *size"]:
        """Where each point lies on the picture: row and column, relative, from 0 to 1."""
        return torch.stack(pixels(lattice(self.points), (1, 1)))

    def project(self, views: Float[Tensor, "n c h w"], size: tuple[int, int]) -> Float[Tensor, "c H W"]:
        """Lay views onto the picture. Where they overlap, they fade into each other, from their middles to their borders.

        Args:
            views: the views, in pixels.
            size: height and width of the picture, in pixels.
        """
        rows, columns = (torch.arange(n, dtype=torch.float64) + 0.5 for n in size)
        strips = []
        for strip in rows.split(max(1, STRIP // size[1])):
            row, column = torch.meshgrid(strip, columns, indexing="ij")
            strips.append(self._strip(views, at(row, column, size)))
        return torch.cat(strips, dim=1)

    def _strip(self, views: Tensor, directions: Tensor) -> Tensor:
        """What the views show in some directions, `c h w`."""
        rays = directions.flatten(0, 1).to(views)
        colours, total = views.new_zeros(views.shape[1], len(rays)), views.new_zeros(len(rays))
        for i, view in enumerate(views):
            shows, x, y = self.shown.inside(i, rays)
            here = shows.nonzero().squeeze(1)
            if len(here):
                grid = torch.stack([x[here], y[here]], dim=-1)
                weight = (1 - grid.abs()).prod(-1).square().clamp(min=1e-6)
                shown = nn.functional.grid_sample(view[None], grid[None, None], padding_mode="border", align_corners=False)
                colours.index_add_(1, here, shown[0, :, 0] * weight)
                total.index_add_(0, here, weight)
        return (colours / total).unflatten(1, directions.shape[:2])

    def views(self, picture: Float[Tensor, "c H W"], factor: int) -> Float[Tensor, "n c h w"]:
        """The picture as each view shows it. Where it has more pixels than the view, a pixel is the mean of several.

        Args:
            picture: equirectangular, in any size.
            factor: pixels of a view for each of its cells, along each axis.
        """
        high, wide = (cells * factor for cells in self.window)
        finer = max(1, round(picture.shape[-1] * self.wide / (math.pi * wide)))
        rays = self.shown.rays(high * finer, wide * finer)
        fine = (sample(picture, rays @ frame) for frame in self.shown.frames)
        return torch.cat([nn.functional.avg_pool2d(view[None], finer) for view in fine])


def _stretch(high: float, wide: float) -> float:
    """How many times as much a view would cover if all of its cells covered as much as the middle one."""
    return high * wide / math.asin(high * wide / math.sqrt((1 + high**2) * (1 + wide**2)))


def degrees(half: float) -> float:
    """The field of view in degrees, of the tangent of its half."""
    return 2 * math.degrees(math.atan(half))


def _factor(factor: Factor) -> int:
    """A factor for all axes.

    Raises:
        SettingError: it differs from axis to axis, or is no whole number from 1 up.
    """
    by, *more = factor if isinstance(factor, Sequence) else (factor,)
    if not isinstance(by, int) or by < 1 or any(other != by for other in more):
        raise SettingError(f"a factor of {factor} cannot scale a sphere: give one whole number from 1 up")
    return by


def _by(cells: tuple[int, int], by: int, name: str) -> tuple[int, int]:
    """Two numbers of cells, divided."""
    high, wide = divided(cells, by, name)
    return high, wide


@lru_cache(maxsize=32)
def _points(sphere: Sphere, device: torch.device) -> Tensor:
    """The number of the point of each cell, `n *window`."""
    if device.type != "cpu":
        return _points(sphere, torch.device("cpu")).to(device)
    return picked(lattice(sphere.points), sphere.shown, sphere.window)


@lru_cache(maxsize=32)
def _nearest(many: int, few: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of a point of a fine lattice and its nearest one of a coarse lattice, and how many pairs each coarse one has."""
    fine, coarse = lattice(many), lattice(few)
    of = torch.from_numpy(KDTree(coarse.numpy()).query(fine.numpy())[1]).long()
    points = torch.arange(many)
    alone = (torch.bincount(of, minlength=few) == 0).nonzero().squeeze(1)
    if len(alone):  # a coarse point that is the nearest one of none takes its own nearest one
        own = torch.from_numpy(KDTree(fine.numpy()).query(coarse[alone].numpy())[1]).long()
        points, of = torch.cat([points, own]), torch.cat([of, alone])
    return points.to(device), of.to(device), torch.bincount(of, minlength=few).to(device)
