"""The overlaps of windows: along an axis, and on the canvas."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import NamedTuple, final

import torch
from torch import Tensor

from panokit import Lattice, SettingError, Windows
from panokit.windows import Factor, divided, multiplied


@final
@dataclass(frozen=True)
class Overlaps(Lattice):
    """Parts of windows, of one shape, as windows at places of their own.

    Attributes:
        firsts: the first cell of each part.
    """

    firsts: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(cls, windows: Lattice, parts: Sequence[tuple[int, tuple[slice, ...]]]) -> "Overlaps":
        """Some parts of windows.

        Args:
            windows: where the windows lie.
            parts: for each part the number of its window, and its cells in that window.
        """
        window = tuple(cells.stop - cells.start for cells in parts[0][1])
        firsts = tuple(
            tuple((o + at.start) % size for o, at, size in zip(windows.origins[i], cells, windows.size, strict=True))
            for i, cells in parts
        )
        return cls(windows.size, window, window, windows.wrap, firsts=firsts)

    @cached_property
    def origins(self) -> tuple[tuple[int, ...], ...]:
        return self.firsts

    def coarsened(self, factor: Factor) -> "Overlaps":
        firsts = tuple(divided(first, factor, "the place of an overlap") for first in self.firsts)
        return replace(super().coarsened(factor), firsts=firsts)

    def refined(self, factor: Factor) -> "Overlaps":
        return replace(super().refined(factor), firsts=tuple(multiplied(first, factor) for first in self.firsts))


class Piece(NamedTuple):
    """A part of a window along one axis that is evaluated alone: all of it, or its overlap with a neighbour.

    Attributes:
        cells: the part, in cells of the window.
        counts: how often it counts in each of these cells.
    """

    cells: slice
    counts: Tensor


@lru_cache(maxsize=256)
def pieces(size: int, window: int, starts: tuple[int, ...], start: int, wrap: bool) -> tuple[Piece, ...]:
    """The parts of one window along one axis: all of it, then its overlaps with the window before it and the one after it.

    Args:
        size: cells of the canvas.
        window: cells of a window.
        starts: where the windows start.
        start: where this one starts.
        wrap: whether the axis is a ring.

    Raises:
        SettingError: it shares no cell with a neighbour.
    """
    cell = torch.arange(window)
    gaps = [(other - start) % size if wrap else other - start for other in starts if other != start]
    ahead = [gap for gap in gaps if gap > 0]
    behind = [size - gap for gap in ahead] if wrap else [-gap for gap in gaps if gap < 0]
    after = sum(((cell >= gap) for gap in ahead), torch.zeros(window))
    # On a short ring a window may be ahead and behind. It covers a cell once: from behind only if not from ahead.
    before = sum(((cell < window - gap) & ((cell < size - gap) | (not wrap)) for gap in behind), torch.zeros(window))
    parts = [Piece(slice(0, window), 1 + before + after)]
    if behind:
        cells = slice(0, window - _checked(min(behind), window))
        parts.append(Piece(cells, -before[cells]))
    if ahead:
        cells = slice(_checked(min(ahead), window), window)
        parts.append(Piece(cells, -after[cells]))
    return tuple(parts)


def _checked(gap: int, window: int) -> int:
    """The cells from one window to the next, if they overlap."""
    if gap >= window:
        raise SettingError(
            f"DiffCollage needs windows that overlap, and two neighbours of {window} cells lie {gap} cells apart: choose a "
            "smaller stride, such as half a window"
        )
    return gap


@lru_cache(maxsize=64)
def rows_and_columns(windows: Windows) -> tuple[Lattice, tuple[tuple[int, ...], ...]]:
    """Windows that lie in rows and columns, and where these start along each axis.

    Raises:
        SettingError: they do not, or their cells lie apart.
    """
    if isinstance(windows, Lattice) and not windows.dilation:
        return windows, tuple(tuple(sorted(set(along))) for along in zip(*windows.origins, strict=True))
    kind = f"{'dilated ' * isinstance(windows, Lattice)}{type(windows).__name__}"
    raise SettingError(f"DiffCollage needs windows in rows and columns, and the layout made a {kind}: use the layout overlap")
