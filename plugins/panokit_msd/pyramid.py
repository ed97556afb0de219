"""The smaller canvases of a run: their number, their size and their guidances."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from math import prod
from typing import Any, NamedTuple, final

from jaxtyping import Float
from torch import Tensor, nn

from panokit import Estimate, Guidance, Level, Projected, SettingError, Step, Windows
from panokit.windows import Factor
from panokit_msd.scale import mean
from panokit_msd.settings import require_at_least

Memory = dict[str, Any]


class CrossScale(Guidance):
    """A guidance that works with a smaller canvas of the same scene, which may have a smaller one in turn.

    Attributes:
        levels: number of canvases, with the run's own, 2 to 32; None for as many as the run's canvas holds.
        factor: number of cells along each axis that become one cell of the next smaller canvas, 2 or more. A film keeps its
            time. With a number for each axis, 1 keeps an axis, and one is 2 or more.
    """

    levels: int | None
    factor: int | tuple[int, ...]

    def __post_init__(self) -> None:
        factors = (self.factor,) if isinstance(self.factor, int) else self.factor
        require_at_least(2, levels=self.levels, factor=max(factors, default=0))
        require_at_least(1, factor=min(factors, default=0))
        if self.levels is not None and self.levels > 32:
            raise SettingError(f"levels is {self.levels}: there are 32 at most, of which the largest canvas holds a few")

    @abstractmethod
    def with_levels(self, levels: int) -> "CrossScale":
        """The guidance for a smaller canvas, with the same settings and another number of levels."""

    def begin(self, windows: Windows, levels: Sequence[Level]) -> Memory:
        """Check the canvas, and return an empty memory.

        Raises:
            SettingError: the canvas does not hold that many levels, or `factor` does not divide window or stride.
        """
        by, levels_here, room = self.by(windows), self._levels(windows), self._room(windows)
        factors = (by,) * len(windows.window) if isinstance(by, int) else by
        if any(cells % factor for cells, factor in zip(windows.window, factors, strict=True)):
            scaled = [cells for cells, factor in zip(windows.window, factors, strict=True) if factor > 1]
            fit = [str(factor) for factor in range(2, min(scaled) + 1) if not any(cells % factor for cells in scaled)]
            raise SettingError(
                f"factor is {self.factor}, which does not divide the model's window of {_by(windows.window)} cells: "
                f"choose {' or '.join(fit) or 'another model'}"
            )
        if self.starts and any(factor > 1 for factor in factors[:-2]):
            near = (*(1,) * len(factors[:-2]), *factors[-2:])
            raise SettingError(
                f"factor is {self.factor}, and a head start enlarges height and width alone: make it {near}, or let it begin "
                "with noise (head_start or until 0)"
            )
        if isinstance(windows, Projected):
            windows.coarsened(by)
            self._lowest(windows, levels_here)
            return {}
        larger = tuple(window * factor for window, factor in zip(windows.window, factors, strict=True))
        windows.on(larger).coarsened(by)  # raises where the stride cannot be divided
        if room < levels_here:
            units = [factor ** (levels_here - 1) for factor in factors]
            axes = [*zip(windows.size, windows.window, units, strict=True)]
            raise SettingError(
                f"{type(self).__name__} with {levels_here} levels of factor {self.factor} needs a canvas of "
                f"{_by(window * unit for _, window, unit in axes)} cells or more, in steps of {max(units)}, and this one is "
                f"{_by(windows.size)}: the next that works is "
                f"{_by(max(-(-size // unit), window) * unit for size, window, unit in axes)}"
                + (f", and {room} levels fit this one" if room > 1 else "")
            )
        return {}

    def by(self, windows: Windows) -> Factor:
        """The factor of a canvas. A number alone is that of height and width: a film keeps its time.

        Raises:
            SettingError: there is another number of factors than of axes.
        """
        if isinstance(self.factor, int):
            return (1, self.factor, self.factor) if len(windows.window) == 3 else self.factor
        if len(self.factor) != len(windows.size):
            raise SettingError(
                f"factor is {self.factor}, and the canvas has {len(windows.size)} axes: give one number, or one for each axis"
            )
        return self.factor

    def below(self, windows: Windows) -> Windows:
        """The windows of the next smaller canvas, in the same layout."""
        return windows.scaled(self.by(windows))

    def lowered(self, windows: Windows, below: Windows) -> "tuple[CrossScale, ...]":
        """The guidance that replaces this one on a smaller canvas.

        Args:
            windows: the windows of this guidance's canvas.
            below: the windows of the smaller canvas. Another guidance may have chosen its size.

        Returns:
            One guidance; none if no level is left, or the smaller canvas holds no smaller one.
        """
        levels = min(self._levels(windows) - 1, self._room(below))
        return (self.with_levels(levels),) if levels > 1 else ()

    def begin_below(self, windows: Windows, levels: Sequence[Level]) -> list[Memory]:
        """The memories of the guidances of the next smaller canvas."""
        below = self.below(windows)
        return [guidance.begin(below, levels) for guidance in self.lowered(windows, below)]

    def estimate_below(self, step: Step, coarse: Float[Tensor, "*c_size"], memories: Sequence[Memory]) -> Estimate:
        """Estimate the next smaller canvas, which is guided too.

        Args:
            step: the step of the larger canvas.
            coarse: the smaller canvas, `c *size`, at the noise level of the step.
            memories: what `begin_below` returned.

        Returns:
            The estimate of the smaller canvas.
        """
        below = self.below(step.windows)
        return step.estimate(coarse, below, list(zip(self.lowered(step.windows, below), memories, strict=True)))

    def _levels(self, windows: Windows) -> int:
        """The number of canvases."""
        return self.levels or max(2, self._room(windows))

    def _room(self, windows: Windows) -> int:
        """The largest possible number of canvases. Each has whole cells, and holds at least one window."""
        room = 1
        while True:
            try:
                windows = self.below(windows)
            except SettingError:
                return room
            room += 1

    def _lowest(self, windows: Projected, levels: int) -> None:
        """Check that a canvas that is no plane has so many levels.

        Raises:
            SettingError: it has fewer.
        """
        below: Windows = windows
        for level in range(1, levels):
            try:
                below = self.below(below)
            except SettingError as error:
                has = f", and {level} fit this one" if level > 1 else ""
                name = type(self).__name__
                raise SettingError(f"{name} cannot have {levels} levels of factor {self.factor}: {error}{has}") from error


@final
class Target(NamedTuple):
    """The coarse canvas that windows are compared with.

    Attributes:
        canvas: the denoised coarse canvas, `c *size`.
        windows: where the fine windows lie on it.
        factor: how many fine cells along an axis, or along each, are one of its cells.
    """

    canvas: Float[Tensor, "*c_size"]
    windows: Windows
    factor: Factor

    @property
    def axes(self) -> int:
        """The number of axes of a window."""
        return len(self.windows.window)

    @property
    def block(self) -> int:
        """The number of fine cells that become one."""
        return self.factor**self.axes if isinstance(self.factor, int) else prod(self.factor)

    def distance(self, rows: Float[Tensor, "n *c_window"], index: Sequence[int]) -> Float[Tensor, " n"]:
        """The squared distances of windows, shrunk, from the parts of the coarse canvas that the windows `index` cover."""
        return (
            nn.functional.mse_loss(mean(rows, self.factor, self.axes), self.windows.crop(self.canvas, index), reduction="none")
            .flatten(1)
            .sum(1)
        )


def _by(cells: Iterable[int]) -> str:
    return " x ".join(map(str, cells))
