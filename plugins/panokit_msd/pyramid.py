"""The smaller canvases of a run: their number, their size and their guidances."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, final

from jaxtyping import Float
from torch import Tensor, nn

from panokit import Estimate, Guidance, Level, SettingError, Step, Windows
from panokit_msd.settings import require_at_least

Memory = dict[str, Any]


class CrossScale(Guidance):
    """A guidance that works with a smaller canvas of the same scene, which may have a smaller one in turn.

    Attributes:
        levels: number of canvases, with the run's own, 2 to 32; None for as many as the run's canvas holds.
        factor: number of cells along each axis that become one cell of the next smaller canvas, 2 or more. A film keeps its
            time. With a number for each axis, one must be 2 or more, and 1 keeps an axis.
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
        factors, levels_here, room = self.factors(windows), self._levels(windows), self._room(windows)
        if any(window % by for window, by in zip(windows.window, factors, strict=True)):
            scaled = [window for window, by in zip(windows.window, factors, strict=True) if by > 1]
            fit = [str(factor) for factor in range(2, min(scaled) + 1) if not any(w % factor for w in scaled)]
            raise SettingError(
                f"factor is {self.factor}, which does not divide the model's window of {_by(windows.window)} cells: "
                f"choose {' or '.join(fit) or 'another model'}"
            )
        larger = tuple(window * by for window, by in zip(windows.window, factors, strict=True))
        windows.on(larger).coarsened(factors)  # raises where the stride cannot be divided
        if room < levels_here:
            units = tuple(by ** (levels_here - 1) for by in factors)
            axes = [*zip(windows.size, windows.window, units, strict=True)]
            raise SettingError(
                f"{type(self).__name__} with {levels_here} levels of factor {self.factor} needs a canvas of "
                f"{_by(window * unit for _, window, unit in axes)} cells or more, in steps of {max(units)}, and this one is "
                f"{_by(windows.size)}: the next that works is "
                f"{_by(max(-(-size // unit), window) * unit for size, window, unit in axes)}"
                + (f", and {room} levels fit this one" if room > 1 else "")
            )
        return {}

    def factors(self, windows: Windows) -> tuple[int, ...]:
        """The factor of each axis. A number alone is that of space: a film keeps its time.

        Raises:
            SettingError: there is another number of factors than of axes.
        """
        axes = len(windows.size)
        if isinstance(self.factor, int):
            return (1,) * (axes - 2) + (self.factor,) * min(axes, 2)
        if len(self.factor) != axes:
            raise SettingError(
                f"factor is {self.factor}, and the canvas has {axes} axes: give a number for each, or one for height and width"
            )
        return tuple(self.factor)

    def below(self, windows: Windows) -> Windows:
        """The windows of the next smaller canvas, in the same layout."""
        return windows.scaled(self.factors(windows))

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
        factors = self.factors(windows)
        room, units = 1, factors
        while all(
            size % unit == 0 and size >= window * unit
            for size, window, unit in zip(windows.size, windows.window, units, strict=True)
        ):
            room, units = room + 1, tuple(unit * by for unit, by in zip(units, factors, strict=True))
        return room


@final
class Target(NamedTuple):
    """The coarse canvas that windows are compared with.

    Attributes:
        canvas: the denoised coarse canvas, `c *size`.
        windows: where the fine windows lie on it.
        factors: how many fine cells one of its cells is along each axis.
    """

    canvas: Float[Tensor, "*c_size"]
    windows: Windows
    factors: tuple[int, ...]

    def distance(self, rows: Float[Tensor, "n *c_window"], index: Sequence[int]) -> Float[Tensor, " n"]:
        """The squared distances of shrunk windows from the parts of the coarse canvas that the fine windows `index` cover."""
        return nn.functional.mse_loss(rows, self.windows.crop(self.canvas, index), reduction="none").flatten(1).sum(1)


def _by(cells: Iterable[int]) -> str:
    return " x ".join(map(str, cells))
