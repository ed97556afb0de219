"""SpotDiffusion (Frolov et al. 2024): disjoint windows that lie elsewhere at every step, so that seams do not add up.

MultiDiffusion computes every cell several times, in overlapping windows. Here every cell is computed once a step. The windows
share no cells, so each step leaves seams; the next step has its windows elsewhere and mends them. Those of the last steps stay,
faintly.

Source: Frolov, Moser, Dengel, "SpotDiffusion: A Fast Approach For Seamless Panorama Generation Over Time", arXiv:2407.15507.
"""

from dataclasses import dataclass, replace
from random import Random
from typing import final

from panokit import Lattice, Layout, Level, SettingError
from panokit.windows import Factor, divided, multiplied


@final
@dataclass(frozen=True)
class SpotDiffusion(Layout):
    r"""Windows side by side, all shifted at each step by the same random number of cells.

    At level $k$ the windows along an axis start at $i s - o_k$. The stride $s$ is a whole window unless the user sets it. The
    shift $o_k$ is uniform in $\{0, u, 2u, \dots\}$ below $s$ (`unit` $u$). On a ring the windows go over its join, which is
    the paper's roll of the canvas. Elsewhere windows that leave the canvas are moved back to its border, where they overlap
    their neighbours.

    Attributes:
        unit: $u$: shifts are multiples of this number of cells, 1 or more. A cross-scale guidance compares blocks of cells
            with a smaller canvas, so its factor must divide the unit: 2 serves MSD.

    Raises:
        SettingError: the unit is below 1.
    """

    unit: int = 2

    def __post_init__(self) -> None:
        if self.unit < 1:
            raise SettingError(f"unit is {self.unit}: it must be 1 cell or more")

    def begin(
        self, size: tuple[int, ...], window: tuple[int, ...], stride: tuple[int, ...] | None, wrap: tuple[bool, ...], seed: int
    ) -> "Spots":
        return Spots(size, window, stride or window, wrap, seed=seed, unit=(self.unit,) * len(size))


@final
@dataclass(frozen=True)
class Spots(Lattice):
    """A lattice with another shift at each level.

    Attributes:
        seed: keys the shifts, together with the level.
        unit: the shifts along each axis are multiples of this number of cells.
    """

    seed: int = 0
    unit: tuple[int, ...] = ()

    def at(self, level: Level) -> "Spots":
        draw = Random(f"{self.seed}/{level.index}")  # a text is hashed by SHA-512: the same numbers in every process
        shift = tuple(draw.randrange(-(-s // unit)) * unit for s, unit in zip(self.stride, self.unit, strict=True))
        return replace(self, shift=shift)

    def coarsened(self, factor: Factor) -> "Spots":
        unit = divided(self.unit, factor, "the unit of the shifts (setting unit of the layout)")
        return replace(super().coarsened(factor), unit=unit)

    def refined(self, factor: Factor) -> "Spots":
        return replace(super().refined(factor), unit=multiplied(self.unit, factor))
