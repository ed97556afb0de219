"""Layouts: they say where the windows of a canvas lie."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from panokit.grid import Grid
from panokit.windows import Windows


class Layout(ABC):
    """Says where the windows of a canvas lie. A layout holds settings; it makes the windows of each run anew."""

    @abstractmethod
    def begin(
        self, size: tuple[int, ...], window: tuple[int, ...], stride: tuple[int, ...] | None, wrap: tuple[bool, ...], seed: int
    ) -> Windows:
        """Lay windows out for one run. Called once a run, on every rank.

        Args:
            size: cells of the canvas, one number for each axis.
            window: cells of a window, one number for each axis: what the model was trained on.
            stride: cells from one window to the next, one number for each axis, from 1 to the window; None if the user has not
                chosen one.
            wrap: for each axis, whether the canvas is a ring along it.
            seed: the run's seed, for layouts that move their windows at random. They key their numbers with it and with
                `Level.index`, so that `Windows.at` is the same on every rank and after a resumed run.

        Returns:
            The windows. They cover every cell at every level.

        Raises:
            SettingError: the layout cannot cover such a canvas.
        """


@final
@dataclass(frozen=True)
class Overlap(Layout):
    """Overlapping windows at regular places, half a window apart if no stride is chosen."""

    def begin(
        self, size: tuple[int, ...], window: tuple[int, ...], stride: tuple[int, ...] | None, wrap: tuple[bool, ...], seed: int
    ) -> Grid:
        return Grid(size, window, stride or tuple(max(1, cells // 2) for cells in window), wrap)
