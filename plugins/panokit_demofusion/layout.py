"""Where the windows lie: local ones as usual, and dilated ones, which see all of the scene."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from random import Random
from typing import NoReturn, final

import torch
from jaxtyping import Shaped
from torch import Tensor

from panokit import Grid, Lattice, Layout, Level, Placed, SettingError
from panokit.windows import Factor, Piece, Slices
from panokit_demofusion.phases import base_of, most, require_phases


@final
@dataclass(frozen=True)
class DemoFusionLayout(Layout):
    r"""Local windows that move a little at each step, and dilated windows.

    A canvas of phase $s$ is $s$ times as large as a base canvas along every axis. To each offset $o \in \{0, \dots, s - 1\}^a$
    belongs the canvas of the cells $s k + o$, as large as the base canvas. Windows lie on it as they do in the first phase:
    these are the dilated windows, whose cells are $s$ apart. Where the base canvas is one window, they read each cell of the
    canvas exactly once. On the base canvas itself there are local windows alone.

    The stride of all windows is half a window unless the user sets it. At each level the local windows are shifted by a random
    number of cells from $-j$ to $j$ (`jitter`), the same for all; those at the borders of the canvas stay there.

    Attributes:
        phases: $S$, the number of phases of the run's canvas, 1 or more; None for as many as it holds.
        jitter: $j$, in cells, from 0, where the windows stay, to the overlap of two windows, which is the most that counts;
            None for a quarter of the overlap, as in the authors' code.

    Raises:
        SettingError: a setting is out of its range.
    """

    phases: int | None = None
    jitter: int | None = None

    def __post_init__(self) -> None:
        require_phases(self.phases, 1)
        if self.jitter is not None and self.jitter < 0:
            raise SettingError(f"jitter is {self.jitter}: it must be 0 cells or more, or None for a quarter of the overlap")

    def begin(
        self, size: tuple[int, ...], window: tuple[int, ...], stride: tuple[int, ...] | None, wrap: tuple[bool, ...], seed: int
    ) -> "Phased":
        stride = stride or tuple(max(1, cells // 2) for cells in window)
        overlap = [cells - step for cells, step in zip(window, stride, strict=True)]
        jitter = tuple(cells // 4 if self.jitter is None else min(self.jitter, cells) for cells in overlap)
        return Phased(size, window, stride, wrap, base_of(size, window, self.phases or most(size, window)), jitter, seed)


@final
@dataclass(frozen=True)
class Phased(Placed):
    """The windows of `DemoFusionLayout`. The dilated ones have the lower numbers.

    Attributes:
        size: cells of the canvas, one number for each axis.
        window: cells of a window, one number for each axis.
        stride: cells from one local window to the next, and dilated cells from one dilated window to the next.
        wrap: for each axis, whether the canvas is a ring along it.
        base: cells of the base canvas.
        jitter: the largest shift of the local windows, one number for each axis.
        seed: keys the shifts, together with the level.
        shift: cells by which the local windows are moved at this level; None for 0.

    Raises:
        SettingError: the canvas holds no window.
    """

    size: tuple[int, ...]
    window: tuple[int, ...]
    stride: tuple[int, ...]
    wrap: tuple[bool, ...]
    base: tuple[int, ...]
    jitter: tuple[int, ...]
    seed: int
    shift: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        len(self)  # raises where no window fits

    @property
    def phases(self) -> int:
        """The phase that paints this canvas: how many times as large as the base canvas it is."""
        phases = self.size[0] // self.base[0]
        return phases if self.size == tuple(phases * cells for cells in self.base) else most(self.size, self.window)

    @cached_property
    def _local(self) -> "Local":
        return Local(self.size, self.window, self.stride, self.wrap, self.shift)

    @cached_property
    def _small(self) -> Grid:
        """The windows on the cells of one offset, where they lie side by side."""
        return Grid(tuple(cells // self.phases for cells in self.size), self.window, self.stride, self.wrap)

    @cached_property
    def _dilated(self) -> list[tuple[tuple[int, ...], int]]:
        """For each dilated window its offset, and its number among the windows of that offset."""
        offsets = product(range(self.phases), repeat=len(self.size)) if self.phases > 1 else ()
        return [(offset, i) for offset in offsets for i in range(len(self._small))]

    def __len__(self) -> int:
        return len(self._dilated) + len(self._local)

    def places(self, i: int) -> tuple[Piece, ...]:
        if i >= len(self._dilated):
            return self._local.places(i - len(self._dilated))
        offset, k = self._dilated[i]
        return tuple((self._spread(at, offset), of) for at, of in self._small.places(k))

    def _spread(self, at: Slices, offset: tuple[int, ...]) -> Slices:
        """A place among the cells of one offset, as a place in the canvas."""
        parts, apart = [part for part in at if isinstance(part, slice)], self.phases
        ends = [(part.start * apart + o, (part.stop - 1) * apart + o + 1) for part, o in zip(parts, offset, strict=True)]
        return ..., *(slice(start, stop, apart) for start, stop in ends)

    def cells(self, index: Sequence[int] | None = None) -> Shaped[Tensor, "n a *window"]:
        return torch.cat([self._cells(i) for i in (range(len(self)) if index is None else index)])

    def _cells(self, i: int) -> Tensor:
        if i >= len(self._dilated):
            return self._local.cells([i - len(self._dilated)])
        offset, k = self._dilated[i]
        return self._small.cells([k]) * self.phases + torch.tensor(offset).view(-1, *(1,) * len(self.window))

    def at(self, level: Level) -> "Phased":
        draw = Random(f"{self.seed}/{level.index}")  # a text is hashed by SHA-512: the same numbers in every process
        return replace(self, shift=tuple(draw.randint(-cells, cells) for cells in self.jitter))

    def on(self, size: tuple[int, ...]) -> "Phased":
        return replace(self, size=size)

    def coarsened(self, factor: Factor) -> NoReturn:
        raise SettingError(
            "the layout demofusion has dilated windows, which cannot be coarsened, because their cells lie apart: guidances "
            "that shrink windows, such as msd, need another layout"
        )

    def refined(self, factor: Factor) -> NoReturn:
        raise SettingError(
            "the layout demofusion has dilated windows, which cannot be refined, because their cells lie apart: control "
            "pictures, and models whose windows grow in blocks of cells, need another layout"
        )


@final
@dataclass(frozen=True)
class Local(Lattice):
    """A lattice whose windows at the borders stay there, while the others move by `shift`. So their number stays the same."""

    @cached_property
    def origins(self) -> tuple[tuple[int, ...], ...]:
        still = Grid(self.size, self.window, self.stride, self.wrap).origins
        return tuple(tuple(self._moved(axis, start) for axis, start in enumerate(origin)) for origin in still)

    def _moved(self, axis: int, start: int) -> int:
        moved, last = start + (self.shift[axis] if self.shift else 0), self.size[axis] - self.window[axis]
        if self.wrap[axis]:
            return moved % self.size[axis]
        return start if start in (0, last) else min(max(moved, 0), last)
