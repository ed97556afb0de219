"""What a command is going to do: in words before a long run, with the time left, and as lines of JSON for scripts."""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

from panokit.run import Run
from panokit.sampler import Plan
from panokit.wording import counted, duration

LONG = 1000
"""Passes of the network from which a command counts as long."""
_SOON, _LATE = 10.0, 300.0
"""Seconds that need no estimate, even of a long command; and seconds that need one of any command."""


def words(path: Path, plan: Plan) -> str:
    """What a picture is going to be, in a line."""
    width, height = plan.size
    guidances = ", and those of the guidances" if plan.sampler.guidances else ""
    return (
        f"{path}: {width} x {height} pixels{_film(plan)}, {counted(len(plan.windows), 'window')} a step, "
        f"{counted(plan.settings.steps or 0, 'step')}, about {counted(plan.passes, 'pass')} of the network{guidances}"
    )


def data(path: Path, plan: Plan) -> dict[str, Any]:
    """The same for a script."""
    width, height = plan.size
    film = {"frames": plan.frames} if plan.frames > 1 else {}
    numbers = {"width": width, "height": height, **film, "windows": len(plan.windows), "steps": plan.settings.steps}
    return {"event": "begin", "file": str(path), **numbers, "passes": plan.passes}


def _film(plan: Plan) -> str:
    return f", {plan.frames} frames" if plan.frames > 1 else ""


@final
class Forecast:
    """A callback that says what pictures are going to be, and how long they take.

    For people it speaks of long commands alone: a line before the first step, and one with the time for all pictures after the
    first step that computes windows. In a terminal the bar has the time.

    Args:
        plans: the pictures that this process makes, by their files, in their order.
        show: prints a line for people; None if they want none.
        emit: prints an event for a script; None if none reads.
    """

    def __init__(
        self,
        plans: Mapping[Path, Plan],
        show: Callable[[str], None] | None,
        emit: Callable[[Mapping[str, Any]], None] | None,
    ) -> None:
        self._plans, self._show, self._emit = plans, show, emit
        self._left = sum(plan.passes for plan in plans.values())
        self._long = self._left >= LONG
        self._all = counted(len(plans), "picture")
        self._path = next(iter(plans), Path())
        self._start = self._last = self._busy = 0.0
        self._before = self._computed = 0
        self._windows: list[int] = []

    def begin(self, path: Path) -> None:
        """Name the picture that is made next."""
        self._path, first = path, path == next(iter(self._plans))
        if self._emit:
            self._emit(data(path, self._plans[path]))
        if self._show and first and self._long:
            several = f"{self._all}, about {counted(self._left, 'pass')} of the network"
            self._show(words(path, self._plans[path]) if len(self._plans) == 1 else several)

    def on_run_start(self, run: Run) -> None:
        """Start the clock."""
        self._start = self._last = time.monotonic()
        self._before = run.computed
        self._windows = [len(run.windows.at(level)) for level in run.solver.levels[:-1]]

    def on_step_end(self, run: Run) -> None:
        """Say how far the run is, and how long the rest takes, by the time of the windows that were computed."""
        step, steps, now = run.level.step, run.level.steps, time.monotonic()
        if run.computed > self._before:  # other steps paint smaller canvases, or take cells that are known
            self._busy, self._computed = self._busy + now - self._last, self._computed + run.computed - self._before
        self._last, self._before = now, run.computed
        left = self._seconds_left(run)
        if self._emit:
            numbers = {"seconds": round(now - self._start, 2), "seconds_left": left and round(left, 2)}
            self._emit({"event": "step", "file": str(self._path), "step": step, "steps": steps, **numbers})
        if self._show and left is not None:
            own = self._plans[self._path].passes
            left += (left + now - self._start) * (self._left - own) / max(1, own)
            if left > (_SOON if self._long else _LATE) and not sys.stderr.isatty():
                self._show(f"{self._path if len(self._plans) == 1 else self._all}: about {duration(left)} left")
            self._show = None

    def _seconds_left(self, run: Run) -> float | None:
        """The time of the windows of a run that are left; None before any was computed."""
        if not self._computed:
            return None
        return self._busy / self._computed * sum(self._windows[run.level.index :])
