"""Windows for a canvas of which a single window is painted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise, product
from typing import final

import torch
from jaxtyping import Shaped
from torch import Tensor

from panokit import Placed
from panokit.windows import Factor, Piece, divided, multiplied


@final
@dataclass(frozen=True)
class Tiles(Placed):
    """One window, which is number 0, and others that cover the rest of the canvas and none of its cells.

    The others are there because windows must cover a canvas. They go round the rest, over its borders too, and lie on some of
    its cells twice. Nothing is lost: where all cells of a window are known, it is not computed.

    Attributes:
        first: the first cell of window 0.
    """

    size: tuple[int, ...]
    window: tuple[int, ...]
    wrap: tuple[bool, ...]
    first: tuple[int, ...]

    @cached_property
    def _cells(self) -> list[tuple[list[int], ...]]:
        """The cells of each window along each axis."""
        return list(product(*map(_tiles, self.size, self.window, self.first)))

    def __len__(self) -> int:
        return len(self._cells)

    def places(self, i: int) -> tuple[Piece, ...]:
        return self._places[i]

    @cached_property
    def _places(self) -> list[tuple[Piece, ...]]:
        return [self._cut(cells) for cells in self._cells]

    def _cut(self, cells: tuple[list[int], ...]) -> tuple[Piece, ...]:
        axes = (_pieces([at % size for at in axis]) for axis, size in zip(cells, self.size, strict=True))
        return tuple(((..., *(at for at, _ in parts)), (..., *(of for _, of in parts))) for parts in product(*axes))

    def cells(self, index: Sequence[int] | None = None) -> Shaped[Tensor, "n a *window"]:
        chosen = range(len(self)) if index is None else index
        return torch.stack([torch.stack(torch.meshgrid(*map(torch.tensor, self._cells[i]), indexing="ij")) for i in chosen])

    def nearest(self, *where: float) -> int:
        """Window 0: the others are never painted."""
        return 0

    def on(self, size: tuple[int, ...]) -> "Tiles":
        first = tuple(min(at, cells - window) for at, cells, window in zip(self.first, size, self.window, strict=True))
        return replace(self, size=size, first=first)

    def coarsened(self, factor: Factor) -> "Tiles":
        return replace(
            self,
            size=divided(self.size, factor, "the canvas"),
            window=divided(self.window, factor, "the window"),
            first=divided(self.first, factor, "the place of a window"),
        )

    def refined(self, factor: Factor) -> "Tiles":
        size, window, first = (multiplied(cells, factor) for cells in (self.size, self.window, self.first))
        return replace(self, size=size, window=window, first=first)


def _tiles(size: int, window: int, first: int) -> list[list[int]]:
    """The cells of the windows along one axis."""
    rest, beside = size - window, first + window
    others = [[beside + (start + k) % rest for k in range(window)] for start in range(0, rest, window)]
    return [list(range(first, beside)), *others]


def _pieces(cells: list[int]) -> list[tuple[slice, slice]]:
    """The slices of the canvas, and those of the window, along one axis."""
    breaks = [0, *(k for k, (one, next_) in enumerate(pairwise(cells), start=1) if next_ != one + 1), len(cells)]
    return [(slice(cells[of], cells[of] + end - of), slice(of, end)) for of, end in pairwise(breaks)]
