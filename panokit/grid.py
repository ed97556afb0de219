"""Grids: windows at regular places."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import TypeVar, final

import torch
from jaxtyping import Shaped
from torch import Tensor

from panokit.errors import SettingError
from panokit.windows import Factor, Piece, Placed, divided, multiplied

Made = TypeVar("Made", bound="Lattice")


@dataclass(frozen=True)
class Lattice(Placed):
    r"""Windows at regular places on a canvas with any number of axes.

    Take an axis of length $L$, with stride $s$, shift $o$, and a window of $w$ cells that are $d$ apart; it spans
    $v = d (w - 1) + 1$ cells. The windows start at $k s - o$, moved back to $[0, L - v]$ where they leave the canvas, so the
    first and the last one lie at the borders. A wrapped axis has $\lceil L / s \rceil$ windows. They start at $k s - o$, and
    go on at the other end of the axis.

    A subclass may move its windows from level to level; see `at`.

    Attributes:
        size: cells of the canvas, one number for each axis.
        window: cells of a window, one number for each axis.
        stride: cells from one window to the next, one number for each axis, $0 < s \le v \le L$.
        wrap: for each axis, whether the canvas is a ring along it.
        shift: cells by which all windows are moved back, one number for each axis; None for 0.
        dilation: cells from one cell of a window to the next, one number for each axis; None for 1. A dilated window has gaps,
            which other windows must fill: give it a stride below the dilation, or unite it with another grid.
        once: whether a ring along the height or the width (the last two axes) that is as long as a window has one window,
            whatever the stride.

    Raises:
        SettingError: the axes do not match, or $0 < s \le v \le L$ does not hold.
    """

    size: tuple[int, ...]
    window: tuple[int, ...]
    stride: tuple[int, ...]
    wrap: tuple[bool, ...]
    shift: tuple[int, ...] | None = None
    dilation: tuple[int, ...] | None = None
    once: bool = False

    def __post_init__(self) -> None:
        given = {"size": self.size, "window": self.window, "stride": self.stride, "wrap": self.wrap}
        given |= {name: value for name, value in (("shift", self.shift), ("dilation", self.dilation)) if value is not None}
        if len({len(value) for value in given.values()}) != 1 or not self.size:
            *most, last = (f"{name} {value}" for name, value in given.items())
            raise SettingError(f"{', '.join(most)} and {last} must have the same number of axes, one or more")
        for axis, (size, window, stride, span) in enumerate(zip(self.size, self.window, self.stride, self._spans, strict=True)):
            if size < span:
                spans = f"a window has {window}" if span == window else f"a window of {window} dilated cells spans {span}"
                raise SettingError(
                    f"the canvas has {size} cells along axis {axis} and {spans}: "
                    f"a canvas holds at least one window; make it {span} or larger"
                )
            if not 0 < stride <= span:
                raise SettingError(
                    f"stride {stride} along axis {axis} leaves gaps or goes nowhere: "
                    f"it must be from 1 to the window's {span} cells"
                )

    @cached_property
    def _spans(self) -> tuple[int, ...]:
        """Cells from the first to the last one of a window, for each axis."""
        return tuple(d * (w - 1) + 1 for d, w in zip(self._dilations, self.window, strict=True))

    @property
    def _dilations(self) -> tuple[int, ...]:
        return self.dilation or (1,) * len(self.window)

    def __len__(self) -> int:
        return len(self.origins)

    @cached_property
    def origins(self) -> tuple[tuple[int, ...], ...]:
        """The first cell of each window, in row-major order. A window's number is its position here."""
        shift = self.shift or (0,) * len(self.size)
        axes = zip(self.size, self._spans, self._strides, self.wrap, shift, strict=True)
        return tuple(product(*(_starts(*axis) for axis in axes)))

    @property
    def _strides(self) -> tuple[int, ...]:
        """Cells from one window to the next. Of the height and the width, `once` makes them as long as a ring of one window."""
        axes = [*zip(self.size, self.window, self.stride, strict=True)]
        most = len(axes) - 2 if self.once else len(axes)
        return tuple(size if k >= most and size == window else stride for k, (size, window, stride) in enumerate(axes))

    @cached_property
    def rings(self) -> tuple[bool, ...]:
        axes = zip(self.wrap, self.size, self.window, self._strides, strict=True)
        return tuple(ring and size == window == stride for ring, size, window, stride in axes)

    def places(self, i: int) -> tuple[Piece, ...]:
        return self._places[i]

    @cached_property
    def _places(self) -> tuple[tuple[Piece, ...], ...]:
        return tuple(self._cut(origin) for origin in self.origins)

    def _cut(self, origin: tuple[int, ...]) -> tuple[Piece, ...]:
        axes = [_parts(*span) for span in zip(origin, self.window, self.size, self._dilations, strict=True)]
        return tuple(((..., *(at for at, _ in parts)), (..., *(of for _, of in parts))) for parts in product(*axes))

    def cells(self, index: Sequence[int] | None = None) -> Shaped[Tensor, "n a *window"]:
        steps = [torch.arange(w) * d for w, d in zip(self.window, self._dilations, strict=True)]
        within = torch.stack(torch.meshgrid(*steps, indexing="ij"))
        origins = torch.tensor([self.origins[i] for i in (range(len(self)) if index is None else index)], dtype=torch.long)
        return origins.view(-1, len(self.size), *(1,) * len(self.window)) + within

    def once_around(self: Made) -> Made:
        return replace(self, once=True)

    def centre(self, i: int) -> tuple[float, ...]:
        return tuple((o + v / 2) % s / s for o, v, s in zip(self.origins[i], self._spans, self.size, strict=True))

    def on(self: Made, size: tuple[int, ...]) -> Made:
        return replace(self, size=size)

    def coarsened(self: Made, factor: Factor) -> Made:
        if self.dilation:
            raise SettingError(
                "dilated windows cannot be coarsened: their cells lie apart, and so would parts of the coarser ones"
            )
        shift = divided(self.shift, factor, "the shift") if self.shift else None
        return replace(
            self,
            size=divided(self.size, factor, "the canvas"),
            window=divided(self.window, factor, "the window"),
            stride=divided(self.stride, factor, "the stride"),
            shift=shift,
        )

    def refined(self: Made, factor: Factor) -> Made:
        if self.dilation:
            raise SettingError("dilated windows cannot be refined: their cells lie apart, and those of a finer canvas do not")
        return replace(
            self,
            size=multiplied(self.size, factor),
            window=multiplied(self.window, factor),
            stride=multiplied(self.stride, factor),
            shift=multiplied(self.shift, factor) if self.shift else None,
        )


@final
@dataclass(frozen=True)
class Grid(Lattice):
    """Windows at regular places, the same at every level: a plane, a ring or a torus. `Lattice` has the formula."""


def _starts(size: int, span: int, stride: int, wrap: bool, shift: int) -> list[int]:
    if wrap:
        return [(start - shift) % size for start in range(0, size, stride)]
    last = size - span
    starts = {min(max(start, 0), last) for start in range(-(shift % stride), last + stride, stride)}
    return sorted(starts)


def _parts(start: int, window: int, size: int, step: int) -> list[tuple[slice, slice]]:
    """A window along one axis in one part or more: for each, its slice of the canvas and its slice of the window."""
    parts = []
    at, of = start, 0
    while of < window:
        count = min(window - of, -(-(size - at) // step))
        parts.append((slice(at, at + (count - 1) * step + 1, step if step > 1 else None), slice(of, of + count)))
        at, of = (at + count * step) % size, of + count
    return parts
