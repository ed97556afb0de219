"""Windows on a sphere. The canvas is points that are spread evenly, and each window is a pinhole view of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import final

import torch
from jaxtyping import Float, Shaped
from scipy.spatial import KDTree
from torch import Tensor, nn

from panokit import SettingError
from panokit.windows import Factor, Windows, divided, multiplied
from panokit_sphere.lattice import directions, lattice, places
from panokit_sphere.picking import picked
from panokit_sphere.views import Views


@final
@dataclass(frozen=True)
class Sphere(Windows):
    r"""Pinhole views of points on a sphere.

    The points are a Fibonacci lattice, which has equal density everywhere. A cell at an angle $\vartheta$ from the axis of a
    view covers $\cos^3 \vartheta$ of what the middle cell covers. So the lattice has more points than one for each middle cell
    (`density`), and a view takes as many of them as it has cells, each at most once: noise stays noise.

    Attributes:
        picture: height and width of the equirectangular picture, in cells; it is twice as wide as high.
        window: height and width of a view, in cells. Cells are square.
        wide: tangent of half the field of view from left to right.
        spacing: the largest distance of neighbouring views, as a share of their field of view.
        density: points of the canvas for each cell in the middle of a view.
        size: the number of points.
        wrap: a sphere has no border, and its points are no ring: always False.
    """

    picture: tuple[int, int]
    window: tuple[int, int]
    wide: float
    spacing: float
    density: float
    size: tuple[int, ...] = field(init=False, repr=False, compare=False)
    wrap: tuple[bool, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        cell = 2 * self.wide / self.window[1]
        object.__setattr__(self, "size", (round(self.density * 4 * math.pi / cell**2),))
        object.__setattr__(self, "wrap", (False,))

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
                f"a canvas of shape {tuple(canvas.shape)} does not fit a sphere of {self.size[0]} points: its last axis must "
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
        ahead = directions(*torch.tensor(where, dtype=torch.float64))
        along = (self.shown.frames[:, 0] @ ahead).mul(1e6).round().tolist()
        return max(range(len(self)), key=lambda i: (along[i], i))

    def on(self, size: tuple[int, ...]) -> "Sphere":
        if size == self.size:
            return self
        raise SettingError(
            f"a sphere of {self.size[0]} points has views of its own, and does not become one of {size} points: scale it"
        )

    def coarsened(self, factor: Factor) -> "Sphere":
        by = _factor(factor)
        picture, window = divided(self.picture, by, "the picture"), divided(self.window, by, "the window")
        return replace(self, picture=(picture[0], picture[1]), window=(window[0], window[1]))

    def refined(self, factor: Factor) -> "Sphere":
        by = _factor(factor)
        picture, window = multiplied(self.picture, by), multiplied(self.window, by)
        return replace(self, picture=(picture[0], picture[1]), window=(window[0], window[1]))

    def scaled(self, factor: Factor) -> "Sphere":
        by = _factor(factor)
        picture = divided(self.picture, by, "the picture")
        sphere = replace(self, picture=(picture[0], picture[1]), wide=self.wide * by)
        require_points(sphere)
        return sphere

    def shrunk(self, canvas: Float[Tensor, "*c_size"], factor: Factor) -> tuple[Float[Tensor, "*c_coarse"], Tensor]:
        """The mean of the points that become one point of a smaller canvas, and how many they are.

        A point belongs to the nearest one of the smaller canvas.

        Args:
            canvas: `c *size`.
            factor: how many times smaller the canvas is.

        Returns:
            The means, and the counts for each point, 1 or more.
        """
        few = replace(self, wide=self.wide * _factor(factor)).size[0]
        fine, coarse, count = _nearest(self.size[0], few, canvas.device)
        sums = canvas.new_zeros(*canvas.shape[:-1], few).index_add_(-1, coarse, canvas[..., fine])
        return sums / count, count

    def places(self) -> Float[Tensor, "2 *size"]:
        """Where each point lies on the picture: row and column, relative, from 0 to 1."""
        return torch.stack(places(lattice(self.size[0]))).float()

    def project(self, views: Float[Tensor, "n c h w"], size: tuple[int, int]) -> Float[Tensor, "c H W"]:
        """Lay views onto the picture. Where they overlap, they fade into each other, and the nearer axis counts more.

        Args:
            views: the views, in pixels.
            size: height and width of the picture, in pixels.
        """
        rows, columns = ((torch.arange(n, device=views.device) + 0.5) / n for n in size)
        seen = directions(rows[:, None], columns).flatten(0, 1)
        picture, total = views.new_zeros(views.shape[1], len(seen)), views.new_zeros(len(seen))
        for i, view in enumerate(views):
            shows, x, y = self.shown.inside(i, seen)
            pixels = shows.nonzero().squeeze(1)
            grid = torch.stack([x[pixels], y[pixels]], dim=-1).to(view)
            weight = (1 - grid.abs()).prod(-1).square().clamp(min=1e-6)
            colours = _sampled(view, grid[None])[:, 0]
            picture.index_add_(1, pixels, colours * weight)
            total.index_add_(0, pixels, weight)
        return (picture / total).unflatten(1, size)

    def views(self, picture: Float[Tensor, "c H W"], factor: int = 1) -> Float[Tensor, "n c h w"]:
        """The picture as each view shows it.

        Args:
            picture: equirectangular, in any size.
            factor: pixels of a view for each of its cells, along each axis.
        """
        high, wide = (cells * factor for cells in self.window)
        finest = round(math.pi * wide / self.wide)  # width of the picture whose pixels are as large as those of a view
        if picture.shape[-1] > finest:
            small = (max(1, round(picture.shape[-2] * finest / picture.shape[-1])), finest)
            picture = nn.functional.interpolate(picture[None], size=small, mode="bilinear", antialias=True)[0]
        around = nn.functional.pad(picture, (1, 1, 0, 0), mode="circular")
        rays, views = self.shown.rays(high, wide).to(picture), []
        for frame in self.shown.frames.to(picture):
            row, column = places(rays @ frame)
            grid = torch.stack([(2 * column - 1) * picture.shape[-1] / around.shape[-1], 2 * row - 1], dim=-1)
            views.append(_sampled(around, grid))
        return torch.stack(views)


def require_points(sphere: Sphere) -> None:
    """Check that a view holds as many points as it has cells.

    Raises:
        SettingError: it does not. The error names the widest field of view that works.
    """
    high, wide = sphere.shown.high, sphere.shown.wide
    if _stretch(high, wide) <= sphere.density:
        return
    low, up = 0.0, wide
    for _ in range(40):
        middle = (low + up) / 2
        low, up = (middle, up) if _stretch(middle * high / wide, middle) <= sphere.density else (low, middle)
    raise SettingError(
        f"views of {_degrees(wide):.0f} degrees are too wide for a sphere of density {sphere.density:g}, as their corners cover "
        f"little of it: the widest that work are {math.floor(_degrees(low))} degrees"
    )


def _stretch(high: float, wide: float) -> float:
    """How many times as much a view would cover if all of its cells covered as much as the middle one."""
    return high * wide / math.asin(high * wide / math.sqrt((1 + high**2) * (1 + wide**2)))


def _degrees(half: float) -> float:
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


def _sampled(picture: Tensor, grid: Tensor) -> Tensor:
    """A picture between its pixels, at places from -1 to 1."""
    return nn.functional.grid_sample(picture[None], grid[None], mode="bilinear", padding_mode="border", align_corners=False)[0]


@lru_cache(maxsize=32)
def _points(sphere: Sphere, device: torch.device) -> Tensor:
    """The number of the point of each cell, `n *window`."""
    if device.type != "cpu":
        return _points(sphere, torch.device("cpu")).to(device)
    return picked(lattice(sphere.size[0]), sphere.shown, sphere.window)


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
