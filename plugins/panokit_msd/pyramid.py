"""The smaller canvases of a run: their number, their size and their guidances."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, final

from jaxtyping import Float
from torch import Tensor, nn

from panokit import Estimate, Guidance, Level, Projected, SettingError, Step, Windows
from panokit_msd.settings import require_at_least

Memory = dict[str, Any]


class CrossScale(Guidance):
    """A guidance that works with a smaller canvas of the same scene, which may have a smaller one in turn.

    Attributes:
        levels: number of canvases, with the run's own, 2 to 32; None for as many as the run's canvas holds.
        factor: number of cells along each axis that become one cell of the next smaller canvas, 2 or more.
    """

    levels: int | None
    factor: int

    def __post_init__(self) -> None:
        require_at_least(2, levels=self.levels, factor=self.factor)
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
        levels_here, room = self._levels(windows), self._room(windows)
        if any(window % self.factor for window in windows.window):
            fit = [str(factor) for factor in range(2, min(windows.window) + 1) if not any(w % factor for w in windows.window)]
            raise SettingError(
                f"factor is {self.factor}, which does not divide the model's window of {_by(windows.window)} cells: "
                f"choose {' or '.join(fit) or 'another model'}"
            )
        if isinstance(windows, Projected):
            windows.coarsened(self.factor)
            self._lowest(windows, levels_here)
            return {}
        larger = tuple(window * self.factor for window in windows.window)
        windows.on(larger).coarsened(self.factor)  # raises where the stride cannot be divided
        if room < levels_here:
            unit = self.factor ** (levels_here - 1)
            fits = (max(-(-size // unit), window) * unit for size, window in zip(windows.size, windows.window, strict=True))
            raise SettingError(
                f"{type(self).__name__} with {levels_here} levels of factor {self.factor} needs a canvas of "
                f"{_by(window * unit for window in windows.window)} cells or more, in steps of {unit}, and this one is "
                f"{_by(windows.size)}: the next that works is {_by(fits)}"
                + (f", and {room} levels fit this one" if room > 1 else "")
            )
        return {}

    def below(self, windows: Windows) -> Windows:
        """The windows of the next smaller canvas, in the same layout."""
        return windows.scaled(self.factor)

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
                raise SettingError(
                    f"{type(self).__name__} cannot have {levels} levels of factor {self.factor}: {error}{has}"
                ) from error


@final
class Target(NamedTuple):
    """The coarse canvas that windows are compared with.

    Attributes:
        canvas: the denoised coarse canvas, `c *size`.
        windows: where the fine windows lie on it.
    """

    canvas: Float[Tensor, "*c_size"]
    windows: Windows

    @property
    def axes(self) -> int:
        """The number of axes of a window."""
        return len(self.windows.window)

    def distance(self, rows: Float[Tensor, "n *c_window"], index: Sequence[int]) -> Float[Tensor, " n"]:
        """The squared distances of shrunk windows from the parts of the coarse canvas that the fine windows `index` cover."""
        return nn.functional.mse_loss(rows, self.windows.crop(self.canvas, index), reduction="none").flatten(1).sum(1)


def _by(cells: Iterable[int]) -> str:
    return " x ".join(map(str, cells))
