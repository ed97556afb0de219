"""The smaller canvases under a canvas: how many there are, how large they are, and what guides them."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, final

from jaxtyping import Float
from torch import Tensor

from panokit import Estimate, Grid, Guidance, Level, SettingError, Step
from panokit_msd.settings import require_at_least

Memory = dict[str, Any]


class CrossScale(Guidance):
    """A guidance that works with a smaller canvas of the same scene, which may have a smaller one in turn.

    Attributes:
        levels: how many canvases there are, the run's own included, 2 to 32; None: as many as the run's canvas holds.
        factor: how many cells of a canvas, along each axis, are one cell of the next smaller canvas; 2 or more.
    """

    levels: int | None
    factor: int

    def __post_init__(self) -> None:
        require_at_least(2, levels=self.levels, factor=self.factor)
        if self.levels is not None and self.levels > 32:
            raise SettingError(f"levels is {self.levels}: there are 32 at most, of which the largest canvas holds a few")

    @abstractmethod
    def with_levels(self, levels: int) -> "CrossScale":
        """This guidance as it is on a smaller canvas, with that many levels."""

    def begin(self, grid: Grid, levels: Sequence[Level]) -> Memory:
        """An empty memory.

        Raises:
            SettingError: the canvas does not hold that many levels, or its cells cannot be divided so.
        """
        levels_here, room = self._levels(grid), self._room(grid)
        if any(window % self.factor for window in grid.window):
            fit = [str(factor) for factor in range(2, min(grid.window) + 1) if not any(w % factor for w in grid.window)]
            raise SettingError(
                f"factor is {self.factor}, which does not divide the model's window of {_by(grid.window)} cells: "
                f"choose {' or '.join(fit) or 'another model'}"
            )
        larger = tuple(window * self.factor for window in grid.window)
        replace(grid, size=larger).coarsened(self.factor)  # raises where the stride cannot be divided
        if room < levels_here:
            unit = self.factor ** (levels_here - 1)
            fits = (max(-(-size // unit), window) * unit for size, window in zip(grid.size, grid.window, strict=True))
            raise SettingError(
                f"{type(self).__name__} with {levels_here} levels of factor {self.factor} needs a canvas of "
                f"{_by(window * unit for window in grid.window)} cells or more, in steps of {unit}, and this one is "
                f"{_by(grid.size)}: the next that works is {_by(fits)}"
                + (f", and {room} levels fit this one" if room > 1 else "")
            )
        return {}

    def below(self, grid: Grid) -> Grid:
        """The windows of the next smaller canvas: as large as these, and as far apart."""
        return grid.scaled(self.factor)

    def lowered(self, grid: Grid, below: Grid) -> "tuple[CrossScale, ...]":
        """What guides a smaller canvas in the place of this guidance.

        Args:
            grid: the canvas that this guidance began with.
            below: the smaller canvas, by this guidance's factor or by another's.

        Returns:
            One guidance; none if this one has no level left, or the smaller canvas holds no smaller one.
        """
        levels = min(self._levels(grid) - 1, self._room(below))
        return (self.with_levels(levels),) if levels > 1 else ()

    def begin_below(self, grid: Grid, levels: Sequence[Level]) -> list[Memory]:
        """The memories of what guides the next smaller canvas at every step."""
        below = self.below(grid)
        return [guidance.begin(below, levels) for guidance in self.lowered(grid, below)]

    def estimate_below(self, step: Step, coarse: Float[Tensor, "*c_size"], memories: Sequence[Memory]) -> Estimate:
        """What the denoiser makes of the next smaller canvas, guided in turn.

        Args:
            step: of the canvas above.
            coarse: the smaller canvas, `c *size`, at the noise level of the step.
            memories: what `begin_below` returned.
        """
        below = self.below(step.grid)
        return step.estimate(coarse, below, list(zip(self.lowered(step.grid, below), memories, strict=True)))

    def _levels(self, grid: Grid) -> int:
        """How many canvases there are."""
        return self.levels or max(2, self._room(grid))

    def _room(self, grid: Grid) -> int:
        """How many canvases there can be: each of whole cells, and of a window or more."""
        room, unit = 1, self.factor
        while all(size % unit == 0 and size >= window * unit for size, window in zip(grid.size, grid.window, strict=True)):
            room, unit = room + 1, unit * self.factor
        return room


@final
class Target(NamedTuple):
    """What windows are compared with.

    Attributes:
        canvas: the coarse canvas, denoised, `c *size`.
        grid: where each fine window lies on it.
    """

    canvas: Float[Tensor, "*c_size"]
    grid: Grid

    @property
    def axes(self) -> int:
        """How many axes a canvas has."""
        return len(self.grid.size)

    def crop(self, index: Sequence[int]) -> Float[Tensor, "n *c_window"]:
        """What the fine windows `index` cover."""
        return self.grid.crop(self.canvas, index)


def _by(cells: Iterable[int]) -> str:
    return " x ".join(map(str, cells))
