"""Where windows lie on a canvas. This is geometry alone: no noise, no model, no devices."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from types import EllipsisType

import torch
from jaxtyping import Shaped
from torch import Tensor

from panokit.errors import SettingError

Place = tuple[EllipsisType | slice | Tensor, ...]
"""An index expression for a canvas."""
Slices = tuple[EllipsisType | slice, ...]
"""An index expression made of slices, which gives a view."""
Piece = tuple[Slices, Slices]
"""A part of a window: its place in the canvas, and its place in the window."""


@dataclass(frozen=True)
class Grid:
    r"""Overlapping windows that cover a canvas with any number of axes.

    Take an axis of length $L$, with window $w$ and stride $s$. The windows start at $\min(k s, L - w)$ for $k = 0, \dots,
    \lceil (L - w) / s \rceil$. The last window is clamped to the border, so the windows cover every cell. A wrapped axis has
    $\lceil L / s \rceil$ windows. They start at $k s$, and the last ones continue at the start of the axis.

    Attributes:
        size: cells of the canvas, one number for each axis.
        window: cells of a window, one number for each axis.
        stride: cells from one window to the next, one number for each axis, $0 < s \le w \le L$.
        wrap: for each axis, whether the canvas is a ring along it.

    Raises:
        SettingError: the axes do not match, or $0 < s \le w \le L$ does not hold.
    """

    size: tuple[int, ...]
    window: tuple[int, ...]
    stride: tuple[int, ...]
    wrap: tuple[bool, ...]

    def __post_init__(self) -> None:
        if not len(self.size) == len(self.window) == len(self.stride) == len(self.wrap) > 0:
            raise SettingError(
                f"size {self.size}, window {self.window}, stride {self.stride} and wrap {self.wrap} "
                "must have the same number of axes, one or more"
            )
        for axis, (size, window, stride) in enumerate(zip(self.size, self.window, self.stride, strict=True)):
            if size < window:
                raise SettingError(
                    f"the canvas has {size} cells along axis {axis} and a window has {window}: "
                    f"a canvas holds at least one window; make it {window} or larger"
                )
            if not 0 < stride <= window:
                raise SettingError(
                    f"stride {stride} along axis {axis} leaves gaps or goes nowhere: "
                    f"it must be from 1 to the window's {window} cells"
                )

    def __len__(self) -> int:
        """The number of windows."""
        return len(self.origins)

    @cached_property
    def origins(self) -> tuple[tuple[int, ...], ...]:
        """The first cell of each window, in row-major order. A window's number is its position here."""
        return tuple(product(*(_starts(*axis) for axis in zip(self.size, self.window, self.stride, self.wrap, strict=True))))

    def place(self, i: int) -> Place:
        """The index expression of a window: `canvas[grid.place(i)] += window`.

        Args:
            i: the window's number, from 0.

        Returns:
            An expression for a canvas with any leading axes. It holds index tensors where the window goes over the join of a
            ring, so reading with it copies. `pieces` gives views instead.
        """
        spans = tuple(zip(self.origins[i], self.window, self.size, strict=True))
        if all(o + w <= s for o, w, s in spans):
            return (..., *(slice(o, o + w) for o, w, _ in spans))
        return (..., *torch.meshgrid(*(torch.arange(o, o + w) % s for o, w, s in spans), indexing="ij"))

    def pieces(self, i: int) -> tuple[Piece, ...]:
        """The same place as `place`, in slices: `canvas[at] += window[of]` for each piece.

        Slices give views, so nothing is copied and no index tensor moves to a device.

        Args:
            i: the window's number, from 0.

        Returns:
            Pairs `(at, of)`: the piece's place in the canvas, and its place in the window. There is one pair, or more where
            the window goes over the join of a ring.
        """
        return self._pieces[i]

    @cached_property
    def _pieces(self) -> tuple[tuple[Piece, ...], ...]:
        return tuple(self._cut(origin) for origin in self.origins)

    def _cut(self, origin: tuple[int, ...]) -> tuple[Piece, ...]:
        axes = [_parts(*span) for span in zip(origin, self.window, self.size, strict=True)]
        return tuple(((..., *(at for at, _ in parts)), (..., *(of for _, of in parts))) for parts in product(*axes))

    def crop(self, canvas: Shaped[Tensor, "*c_size"], index: Sequence[int] | None = None) -> Shaped[Tensor, "n *c_window"]:
        """Copy windows out of a canvas.

        Args:
            canvas: `c *size`, or with other leading axes than `c`.
            index: the numbers of the windows, in any order; None for all windows in order.

        Returns:
            The windows, `n c *window`.

        Raises:
            SettingError: the last axes of the canvas are not `size`.
        """
        self._check(canvas)
        return torch.stack([self._window(canvas, i) for i in (range(len(self)) if index is None else index)])

    def _window(self, canvas: Tensor, i: int) -> Tensor:
        """A window: a view, or a copy where it goes over the join of a ring."""
        (at, _), *more = pieces = self.pieces(i)
        if not more:
            return canvas[at]
        window = canvas.new_empty((*canvas.shape[: -len(self.size)], *self.window))
        for at, of in pieces:
            window[of] = canvas[at]
        return window

    def _check(self, canvas: Tensor) -> None:
        if tuple(canvas.shape[-len(self.size) :]) != self.size:
            raise SettingError(
                f"a canvas of shape {tuple(canvas.shape)} does not fit a grid of size {self.size}: "
                "its last axes must be the grid's"
            )

    def centre(self, i: int) -> tuple[float, ...]:
        """The centre of a window, relative to the canvas.

        Args:
            i: the window's number, from 0.

        Returns:
            A number in [0, 1) for each axis, in the order of `size`.
        """
        return tuple((o + w / 2) % s / s for o, w, s in zip(self.origins[i], self.window, self.size, strict=True))

    def scaled(self, factor: int) -> "Grid":
        """A grid of windows of the same size on a canvas `factor` times smaller. Window and stride stay the same.

        Each window then covers `factor` times as much of the scene along each axis.

        Args:
            factor: by how much to divide the canvas along each axis, 1 or more.

        Returns:
            The grid of the smaller canvas, which has fewer windows.

        Raises:
            SettingError: `factor` does not divide the size, or the smaller canvas does not hold a window.
        """
        for axis, (cells, window) in enumerate(zip(self.size, self.window, strict=True)):
            if cells < window * factor:
                raise SettingError(
                    f"a canvas of {cells} cells along axis {axis} does not hold a window of {window} at 1/{factor} of its "
                    f"size: make it {window * factor} cells or larger"
                )
        return Grid(_divided(self.size, factor, "the canvas"), self.window, self.stride, self.wrap)

    def coarsened(self, factor: int) -> "Grid":
        """The same grid with fewer cells: canvas, window and stride are all `factor` times smaller.

        Window `i` of the new grid covers the same part of the scene as window `i` of this one.

        Args:
            factor: by how much to divide canvas, window and stride along each axis, 1 or more.

        Returns:
            The coarser grid, which has as many windows.

        Raises:
            SettingError: `factor` does not divide size, window and stride.
        """
        return Grid(
            _divided(self.size, factor, "the canvas"),
            _divided(self.window, factor, "the window"),
            _divided(self.stride, factor, "the stride"),
            self.wrap,
        )


def _starts(size: int, window: int, stride: int, wrap: bool) -> list[int]:
    if wrap:
        return list(range(0, size, stride))
    return [*range(0, size - window, stride), size - window]


def _parts(start: int, window: int, size: int) -> list[tuple[slice, slice]]:
    """A window along one axis in one or two parts: for each, its slice of the canvas and its slice of the window."""
    rest = start + window - size
    if rest <= 0:
        return [(slice(start, start + window), slice(0, window))]
    return [(slice(start, size), slice(0, window - rest)), (slice(0, rest), slice(window - rest, window))]


def _divided(cells: tuple[int, ...], factor: int, name: str) -> tuple[int, ...]:
    if factor < 1:
        raise SettingError(f"a factor of {factor} cannot scale a grid: it must be a whole number from 1 up")
    for axis, n in enumerate(cells):
        if n % factor:
            near = " or ".join(str(m) for m in (n // factor * factor, -(-n // factor) * factor) if m > 0)
            raise SettingError(
                f"{name} has {n} cells along axis {axis}, which {factor} does not divide: the nearest that works is {near}"
            )
    return tuple(n // factor for n in cells)
