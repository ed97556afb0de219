"""Several kinds of windows on one canvas."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, groupby
from typing import final

import torch
from jaxtyping import Shaped
from torch import Tensor

from panokit.errors import SettingError
from panokit.scheduler import Level
from panokit.windows import Factor, Windows


@final
@dataclass(frozen=True)
class Union(Windows):
    """Windows of several kinds on one canvas, numbered through: dilated and local ones, say.

    Attributes:
        parts: windows of one shape on one canvas. The windows of the first part have the lowest numbers.

    Raises:
        SettingError: there is no part, or the parts have other canvases or windows.
    """

    parts: tuple[Windows, ...]
    size: tuple[int, ...] = field(init=False, repr=False, compare=False)
    window: tuple[int, ...] = field(init=False, repr=False, compare=False)
    wrap: tuple[bool, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len({(part.size, part.window, part.wrap) for part in self.parts}) != 1:
            shapes = ", ".join(f"{part.window} on {part.size}" for part in self.parts) or "none"
            raise SettingError(f"a union of windows {shapes}: it must have parts with the same canvas, window and wrap")
        for name in ("size", "window", "wrap"):
            object.__setattr__(self, name, getattr(self.parts[0], name))

    @cached_property
    def _ends(self) -> list[int]:
        """For each part, the number of windows up to its last one."""
        return list(accumulate(map(len, self.parts)))

    def _place(self, i: int) -> tuple[int, int]:
        """The position of the part that has a window, and the window's number there."""
        k = bisect_right(self._ends, i)
        return k, i - (self._ends[k - 1] if k else 0)

    def _by_part(self, index: Sequence[int] | None) -> list[tuple[Windows, list[int] | None]]:
        """Some windows by their parts, in order: each part with the numbers that its windows have there."""
        if index is None:
            return [(part, None) for part in self.parts]
        groups = groupby(map(self._place, index), key=lambda place: place[0])
        return [(self.parts[k], [i for _, i in places]) for k, places in groups]

    def _map(self, change: Callable[[Windows], Windows]) -> "Union":
        return Union(tuple(map(change, self.parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def at(self, level: Level) -> "Union":
        return self._map(lambda part: part.at(level))

    def crop(self, canvas: Shaped[Tensor, "*c_size"], index: Sequence[int] | None = None) -> Shaped[Tensor, "n *c_window"]:
        return torch.cat([part.crop(canvas, numbers) for part, numbers in self._by_part(index)])

    def put(self, canvas: Tensor, i: int, window: Tensor, weight: Tensor | None = None) -> None:
        k, number = self._place(i)
        self.parts[k].put(canvas, number, window, weight)

    def cells(self, index: Sequence[int] | None = None) -> Shaped[Tensor, "n a *window"]:
        return torch.cat([part.cells(numbers) for part, numbers in self._by_part(index)])

    def centre(self, i: int) -> tuple[float, ...]:
        k, number = self._place(i)
        return self.parts[k].centre(number)

    def on(self, size: tuple[int, ...]) -> "Union":
        return self._map(lambda part: part.on(size))

    @property
    def rings(self) -> tuple[bool, ...]:
        return tuple(map(all, zip(*(part.rings for part in self.parts), strict=True)))

    def once_around(self) -> "Union":
        return self._map(lambda part: part.once_around())

    def coarsened(self, factor: Factor) -> "Union":
        return self._map(lambda part: part.coarsened(factor))

    def refined(self, factor: Factor) -> "Union":
        return self._map(lambda part: part.refined(factor))
