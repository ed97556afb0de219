"""TwinDiffusion (Zhou & Tang 2024): each window is fused with its neighbour before the mean, and windows move between steps.

Crop Fusion pulls the part that a window shares with the window before it towards that one, so that neighbours are alike like
twins. Cross Sampling shifts the windows at every other step, so that a border between two windows never lies at the same place
twice in a row. So windows may lie farther apart.

Source: Zhou, Tang, "TwinDiffusion: Enhancing Coherence and Efficiency in Panoramic Image Generation with Diffusion Models",
ECAI 2024, arXiv:2404.19475.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from panokit import Lattice, Layout, Level, Projected, SettingError, WeightedFuser, Windows
from panokit.windows import Factor, divided, multiplied


@final
@dataclass(frozen=True)
class CropFusion(WeightedFuser):
    r"""Windows that follow their neighbours, for the first share `until` of the steps; then the plain mean of all windows.

    The windows over a cell have an order: from left to right, and row by row in two directions. The first one keeps its
    value, $y_1 = x_1$. Each later one is moved towards the one before it:

    $$ y_k = \arg\min_y\; \lVert y - y_{k-1} \rVert^2 + \lambda \lVert y - x_k \rVert^2
           = \frac{y_{k-1} + \lambda x_k}{1 + \lambda} $$

    The cell becomes the mean of all $y_k$. With $a = 1 / (1 + \lambda)$ and $m$ windows over the cell, this is a weighted mean
    of the $x_k$, with weights

    $$ W_1 = \frac{1 - a^m}{(1 - a)\, m}, \qquad W_k = \frac{1 - a^{m - k + 1}}{m} \quad (k > 1). $$

    It asks only which windows lie over a cell, and which of them begins first. So all places of a ring are alike.

    Attributes:
        lam: $\lambda$, above 0: how much a window's own value counts against its neighbour's. Large values give the plain mean.
        until: the share of the steps with Crop Fusion, in [0, 1].

    Raises:
        SettingError: a setting is out of its range.
    """

    constant: ClassVar[bool] = False

    lam: float = 1.0
    until: float = 0.5

    def __post_init__(self) -> None:
        if not self.lam > 0:
            raise SettingError(f"lam is {self.lam}: it must be above 0; 1 lets a window and its neighbour count alike")
        if not 0 <= self.until <= 1:
            raise SettingError(f"until is {self.until}: it is a share of the steps, from 0 to 1")

    def begin(self, windows: Windows, levels: Sequence[Level]) -> None:
        """Check that windows overlap at some level.

        Raises:
            SettingError: there is a single window, or all lie side by side, or not on a plane.
        """
        if isinstance(windows, Projected):
            raise SettingError(
                "twindiffusion fuses windows that follow each other in rows and columns, and those of this layout do not: "
                "choose another fuser, such as multidiffusion"
            )
        if len(windows) == 1:
            raise SettingError(
                f"twindiffusion fuses neighbours, and {_lonely(windows)}: make it larger, choose a stride of half a window on "
                "a ring, or take the fuser multidiffusion"
            )
        cells = math.prod(windows.size)
        if all(len(moved) * math.prod(windows.window) == cells for moved in {windows.at(level) for level in levels}):
            raise SettingError(
                f"twindiffusion fuses windows where they overlap, and windows of {_by(windows.window)} cells lie side by side "
                f"here: choose a stride below {min(windows.window)} cells"
            )

    def weight(self, windows: Windows, level: Level) -> Float[Tensor, "#n *window"]:
        """The weights $W_k$ up to `until`, and 1 later; see `WeightedFuser.weight`."""
        if level.progress < self.until:
            return _weights(windows, self.lam)
        return torch.ones(1, *windows.window)


@lru_cache(maxsize=4)
def _weights(windows: Windows, lam: float) -> Float[Tensor, "n *window"]:
    """The weight of each cell of each window, by its position among the windows over that cell."""
    places = windows.cells()
    within = places - places.flatten(2).amin(2).view(*places.shape[:2], *(1,) * len(windows.window))
    cell, order = torch.zeros_like(places[:, 0]), torch.zeros_like(places[:, 0])
    for axis, size in enumerate(windows.size):  # the farther a cell lies in a window, the earlier that window begins
        span = int(within[:, axis].max()) + 1
        cell, order = cell * size + places[:, axis] % size, order * span + span - 1 - within[:, axis]
    cell, order = cell.flatten(), order.flatten()
    queue = (cell * (int(order.max()) + 1) + order).argsort(stable=True)
    before = torch.empty_like(cell)
    before[queue] = torch.arange(len(cell)) - torch.searchsorted(cell[queue], cell[queue])
    count = cell.bincount()[cell]

    def lost(power: Tensor | int) -> Tensor:  # 1 - a^power, exact for small lambda too
        return -torch.expm1(-math.log1p(lam) * torch.as_tensor(power, dtype=torch.float64))

    weights = torch.where(before == 0, lost(count) / lost(1), lost(count - before)) / count
    return weights.view(len(windows), *windows.window)


@final
@dataclass(frozen=True)
class CrossSampling(Layout):
    r"""Overlapping windows that are shifted by a part of their stride from step to step.

    At step $k$ all windows are shifted by $(k \bmod c) \lfloor s / c \rfloor$ cells along each axis, with stride $s$ and
    `every` $c$. With $c = 2$ they are half a stride elsewhere at every other step. The windows at the borders stay there; a
    ring has none. The stride is a quarter of the window unless the user sets it.

    Attributes:
        every: $c$, the number of steps after which windows come back to their places, 1 or more; 1 never moves them.

    Raises:
        SettingError: `every` is below 1.
    """

    every: int = 2

    def __post_init__(self) -> None:
        if self.every < 1:
            raise SettingError(f"every is {self.every}: it must be 1 step or more")

    def begin(
        self, size: tuple[int, ...], window: tuple[int, ...], stride: tuple[int, ...] | None, wrap: tuple[bool, ...], seed: int
    ) -> "Crossing":
        stride = stride or tuple(min(max(self.every, cells // 4), cells) for cells in window)
        if min(stride) < self.every:
            raise SettingError(
                f"every is {self.every}, and a stride of {min(stride)} cells is too short for so many shifts: choose a stride "
                f"of {self.every} cells or more, or every from 1 to {min(stride)}"
            )
        windows = Crossing(size, window, stride, wrap, every=self.every, unit=tuple(cells // self.every for cells in stride))
        if len(windows) == 1:
            raise SettingError(
                f"twindiffusion moves windows, and {_lonely(windows)}: make it larger, or take the layout overlap"
            )
        return windows


@final
@dataclass(frozen=True)
class Crossing(Lattice):
    """A lattice that goes through `every` shifts, from step to step.

    Attributes:
        every: the number of shifts.
        unit: cells from one shift to the next, one number for each axis.
    """

    every: int = 1
    unit: tuple[int, ...] = ()

    def at(self, level: Level) -> "Crossing":
        return replace(self, shift=tuple(level.step % self.every * unit for unit in self.unit))

    def once_around(self) -> "Crossing":
        return self  # a ring of one window needs two of them, so that they overlap

    def coarsened(self, factor: Factor) -> "Crossing":
        unit = divided(self.unit, factor, f"the shift between steps (the stride divided by every, {self.every})")
        return replace(super().coarsened(factor), unit=unit)

    def refined(self, factor: Factor) -> "Crossing":
        return replace(super().refined(factor), unit=multiplied(self.unit, factor))


def _lonely(windows: Windows) -> str:
    return f"a canvas of {_by(windows.size)} cells has a single window of {_by(windows.window)}"


def _by(cells: Iterable[int]) -> str:
    return " x ".join(map(str, cells))
