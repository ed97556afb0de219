"""Where windows lie on a canvas: the contract. This is geometry alone: no noise, no model, no devices."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod
from types import EllipsisType
from typing import ClassVar, Self

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from panokit.errors import SettingError
from panokit.scheduler import Level

Factor = int | tuple[int, ...]
"""A factor for all axes, or one for each."""
Slices = tuple[EllipsisType | slice, ...]
"""An index expression made of slices, which gives a view."""
Piece = tuple[Slices, Slices]
"""A part of a window: its place in the canvas, and its place in the window."""


class Windows(ABC):
    r"""Windows that cover a canvas: $F_i$ crops window $i$ out of it.

    Windows are a value: frozen, hashable, and equal on every rank. Whatever lies on a canvas goes through the same crop:
    latents, masks, known pixels, coordinates.

    Attributes:
        size: cells of the canvas, one number for each axis.
        window: cells of a window, one number for each of its axes. All windows have this shape.
        wrap: for each axis of the canvas, whether the canvas is a ring along it.
    """

    size: tuple[int, ...]
    window: tuple[int, ...]
    wrap: tuple[bool, ...]

    @abstractmethod
    def __len__(self) -> int:
        """The number of windows."""

    def at(self, level: Level) -> "Windows":
        """The windows at one noise level. A layout that moves its windows from step to step returns others here.

        The result depends on the windows and the level alone. `at` of the result gives other levels too, so
        `windows.at(one).at(other)` equals `windows.at(other)`. The default returns the same windows.

        Args:
            level: a noise level of the run.
        """
        return self

    @abstractmethod
    def crop(self, canvas: Shaped[Tensor, "*c_size"], index: Sequence[int] | None = None) -> Shaped[Tensor, "n *c_window"]:
        """Copy windows out of a canvas. A crop selects cells and never interpolates, so noise stays noise.

        Args:
            canvas: `c *size`, or with other leading axes than `c`.
            index: the numbers of the windows, in any order; None for all windows in order.

        Returns:
            The windows, `n c *window`.

        Raises:
            SettingError: the last axes of the canvas are not `size`.
        """

    @abstractmethod
    def put(self, canvas: Tensor, i: int, window: Tensor, weight: Tensor | None = None) -> None:
        r"""Add a window to a canvas in its place: the adjoint of `crop`, $z \mathrel{+}= F_i^T (W x_i)$.

        Args:
            canvas: `c *size`, or with other leading axes than `c`. It is changed.
            i: the window's number, from 0.
            window: `c *window`, in the dtype and on the device of the canvas.
            weight: $W$, `*window`, which multiplies the window; None for 1.
        """

    @abstractmethod
    def cells(self, index: Sequence[int] | None = None) -> Shaped[Tensor, "n a *window"]:
        """Where each cell of some windows lies on the canvas, one number for each axis of the canvas.

        Args:
            index: the numbers of the windows, in any order; None for all windows in order.

        Returns:
            The positions, in cells from 0. They run on where a window goes over the join of a ring, so neighbours in a window
            stay neighbours; the remainder by `size` is the cell.
        """

    @abstractmethod
    def on(self, size: tuple[int, ...]) -> Self:
        """The same layout on another canvas. The windows have the same shape, and there are more or fewer of them.

        Args:
            size: cells of the other canvas, one number for each axis.

        Raises:
            SettingError: that canvas holds no window.
        """

    @abstractmethod
    def coarsened(self, factor: Factor) -> "Windows":
        """The same windows with fewer cells: canvas, window and their distances are all `factor` times smaller.

        Window `i` of the result covers the same part of the scene as window `i` here.

        Args:
            factor: by how much to divide, 1 or more.

        Raises:
            SettingError: `factor` does not divide them.
        """

    @abstractmethod
    def refined(self, factor: Factor) -> "Windows":
        """The same windows with more cells, for example pixels: the inverse of `coarsened`.

        Args:
            factor: by how much to multiply, 1 or more.
        """

    def scaled(self, factor: Factor) -> "Windows":
        """The same layout on a canvas `factor` times smaller. Each window then covers more of the scene.

        Args:
            factor: by how much to divide the canvas, 1 or more.

        Raises:
            SettingError: `factor` does not divide the size, or the smaller canvas holds no window.
        """
        for axis, (cells, window, by) in enumerate(zip(self.size, self.window, per_axis(factor, self.size), strict=False)):
            if cells < window * by:
                raise SettingError(
                    f"a canvas of {cells} cells along axis {axis} does not hold a window of {window} at 1/{by} of its "
                    f"size: make it {window * by} cells or larger"
                )
        return self.on(divided(self.size, factor, "the canvas"))

    def shrunk(
        self, canvas: Float[Tensor, "*c_size"], factor: Factor
    ) -> tuple[Float[Tensor, "*c_small"], int | Float[Tensor, "*small"]]:
        r"""The mean of the cells that become one cell of the smaller canvas, that of `scaled(factor)`.

        Of independent noise the mean of $m$ cells leaves the standard deviation times $m^{-1/2}$.

        Args:
            canvas: `c *size`.
            factor: by how much to divide the canvas, 1 or more.

        Returns:
            The smaller canvas, and $m$: how many cells each of its cells is the mean of. It is a number, or one for each cell.

        Raises:
            SettingError: the canvas has more than three axes.
        """
        factors = per_axis(factor, self.size)
        return pooled(canvas, factors), prod(factors)

    @property
    def rings(self) -> tuple[bool, ...]:
        """For each axis of the canvas, whether it is a ring around which one window goes, so that a network may see it as one.

        The default is that none is.
        """
        return (False,) * len(self.size)

    def once_around(self) -> "Windows":
        """The same layout with one window around a ring that is as long as a window, for models that see it as a ring.

        That is so for height and width, and not for the time of a film. The default returns the same windows.
        """
        return self

    def centre(self, i: int) -> tuple[float, ...]:
        """The centre of a window, relative to the canvas.

        Args:
            i: the window's number, from 0.

        Returns:
            A number in [0, 1) for each axis of the canvas.
        """
        places = self.cells([i])[0].flatten(1).double()
        middles = ((places.amin(1) + places.amax(1) + 1) / 2).tolist()
        return tuple(middle % size / size for middle, size in zip(middles, self.size, strict=True))

    def nearest(self, *where: float) -> int:
        """The window whose centre is nearest to a place: an anchor. Of several, the last one.

        Args:
            where: the place, relative to the canvas, one number from 0 to 1 for each axis.

        Raises:
            SettingError: there is another number of numbers than of axes.
        """
        if len(where) != len(self.size):
            raise SettingError(
                f"the place {where} has {len(where)} numbers, and the canvas {len(self.size)} axes: give one each"
            )

        def distance(i: int) -> float:
            apart = [abs(at - to) for at, to in zip(self.centre(i), where, strict=True)]
            ringed = [min(gap, 1 - gap) if ring else gap for gap, ring in zip(apart, self.wrap, strict=True)]
            return round(sum((gap * size) ** 2 for gap, size in zip(ringed, self.size, strict=True)), 6)

        return min(reversed(range(len(self))), key=distance)


class Projected(Windows):
    """Windows on a canvas that is no plane, such as points on a sphere. Its picture is a projection of it.

    The canvas may have other axes than its windows and its picture, which have a height and a width. `scaled` makes a smaller
    canvas of the same kind.

    Attributes:
        picture: height and width of the picture in cells. Times the codec's factor these are pixels.
        projection: how the picture shows the canvas. Viewers know `equirectangular`.
    """

    projection: ClassVar[str]
    picture: tuple[int, int]

    @abstractmethod
    def places(self) -> Float[Tensor, "2 *size"]:
        """Where each cell of the canvas lies on the picture: its row and its column, relative, from 0 to 1.

        Texts of regions, masks and control pictures, which lie on the picture, come onto the canvas by it.
        """

    @abstractmethod
    def project(self, views: Float[Tensor, "n c h w"], size: tuple[int, int]) -> Float[Tensor, "c H W"]:
        """Lay what the windows show onto the picture. Where they overlap, they are blended.

        Args:
            views: what all windows show, in order, in any number of pixels.
            size: height and width of the picture, in pixels.

        Returns:
            The picture, on the device of the views.
        """

    @abstractmethod
    def views(self, picture: Float[Tensor, "c H W"], factor: int) -> Float[Tensor, "n c h w"]:
        """The picture as all windows show it: the inverse of `project`, up to interpolation.

        Args:
            picture: of any size.
            factor: pixels along a side of a cell of a window.

        Returns:
            The views, in order, with `factor` times the cells of a window along each axis.
        """


class Placed(Windows):
    """Windows that are cut from the canvas by slices. A subclass says where, in `places`."""

    @abstractmethod
    def places(self, i: int) -> tuple[Piece, ...]:
        """The place of a window, in slices: `canvas[at] += window[of]` for each piece. Slices give views: nothing is copied.

        Args:
            i: the window's number, from 0.

        Returns:
            Pairs `(at, of)`: the piece's place in the canvas, and its place in the window. There is one pair, or more where
            the window goes over the join of a ring.
        """

    def crop(self, canvas: Shaped[Tensor, "*c_size"], index: Sequence[int] | None = None) -> Shaped[Tensor, "n *c_window"]:
        if tuple(canvas.shape[-len(self.size) :]) != self.size:
            raise SettingError(
                f"a canvas of shape {tuple(canvas.shape)} does not fit windows on a canvas of {self.size}: its last axes must "
                "be these"
            )
        return torch.stack([self._window(canvas, i) for i in (range(len(self)) if index is None else index)])

    def _window(self, canvas: Tensor, i: int) -> Tensor:
        """A window: a view, or a copy where it goes over the join of a ring."""
        (at, _), *more = pieces = self.places(i)
        if not more:
            return canvas[at]
        window = canvas.new_empty((*canvas.shape[: -len(self.size)], *self.window))
        for at, of in pieces:
            window[of] = canvas[at]
        return window

    def put(self, canvas: Tensor, i: int, window: Tensor, weight: Tensor | None = None) -> None:
        (whole, _), *more = pieces = self.places(i)
        if not more and weight is not None:  # most windows are one piece; to slice them again would take time
            canvas[whole].addcmul_(window, weight)
            return
        for at, of in pieces:
            if weight is None:
                canvas[at].add_(window[of])
            else:
                canvas[at].addcmul_(window[of], weight[of])


def require_cover(windows: Windows) -> None:
    """Check that windows cover every cell of their canvas.

    Raises:
        SettingError: they leave cells uncovered.
    """
    count = torch.zeros(windows.size, dtype=torch.int32)
    one = torch.ones(windows.window, dtype=torch.int32)
    for i in range(len(windows)):
        windows.put(count, i, one)
    gaps = (count == 0).nonzero()
    if len(gaps):
        raise SettingError(
            f"the windows leave {len(gaps)} of {count.numel()} cells uncovered, the first at {tuple(gaps[0].tolist())}: "
            "try a smaller stride, or another layout"
        )


def pooled(x: Float[Tensor, "*large"], factors: Sequence[int]) -> Float[Tensor, "*small"]:
    """The mean of blocks of cells, along as many of the last axes as there are factors.

    Args:
        x: a canvas or windows.
        factors: cells along each of these axes that become one.

    Raises:
        SettingError: there are more than three.
    """
    pools = {1: nn.functional.avg_pool1d, 2: nn.functional.avg_pool2d, 3: nn.functional.avg_pool3d}
    if len(factors) not in pools:
        raise SettingError(f"a canvas of {len(factors)} axes cannot be shrunk: it must have 1, 2 or 3")
    return pools[len(factors)](x, tuple(factors))


def sampled(picture: Float[Tensor, "c H W"], places: Float[Tensor, "2 *size"]) -> Float[Tensor, "*c_size"]:
    """A picture at some places, by bilinear interpolation. Its left and right borders meet.

    Args:
        picture: of any size.
        places: rows and columns, relative, from 0 to 1.
    """
    wide = picture.shape[2]
    ringed = nn.functional.pad(picture[None], (1, 1, 0, 0), mode="circular")
    row, column = places.to(picture).flatten(1)
    grid = torch.stack([2 * (column * wide + 1) / (wide + 2) - 1, 2 * row - 1], dim=-1)[None, None]
    at = nn.functional.grid_sample(ringed, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return at[0, :, 0].unflatten(1, tuple(places.shape[1:]))


def per_axis(factor: Factor, axes: Sequence[object]) -> tuple[int, ...]:
    """A factor for each axis.

    Raises:
        SettingError: there is another number of factors than of axes, or one is no whole number from 1 up.
    """
    factors = tuple(factor) if isinstance(factor, Sequence) else (factor,) * len(axes)
    if len(factors) != len(axes) or any(not isinstance(by, int) or by < 1 for by in factors):
        raise SettingError(
            f"a factor of {factor} cannot scale {len(axes)} axes: give a whole number from 1 up, for all or each"
        )
    return factors


def divided(cells: tuple[int, ...], factor: Factor, name: str) -> tuple[int, ...]:
    """Numbers of cells, divided by a factor.

    Args:
        cells: one number for each axis.
        factor: by how much to divide.
        name: what has these cells, for the error.

    Raises:
        SettingError: the factor does not divide them. The error names the nearest numbers that work.
    """
    factors = per_axis(factor, cells)
    for axis, (n, by) in enumerate(zip(cells, factors, strict=True)):
        if n % by:
            near = " or ".join(str(m) for m in (n // by * by, -(-n // by) * by) if m > 0)
            raise SettingError(
                f"{name} has {n} cells along axis {axis}, which {by} does not divide: the nearest that works is {near}"
            )
    return tuple(n // by for n, by in zip(cells, factors, strict=True))


def multiplied(cells: tuple[int, ...], factor: Factor) -> tuple[int, ...]:
    """Numbers of cells, multiplied by a factor."""
    return tuple(n * by for n, by in zip(cells, per_axis(factor, cells), strict=True))
