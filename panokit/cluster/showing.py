"""What the driver shows of all pictures: a bar, lines, or events for a script."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, final

from panokit.cluster.member import Planned
from panokit.extra import Extra
from panokit.output import Output
from panokit.painting import Tally, hint, note, note_of, print_line, summary


@final
class Showing:
    """Shows how far all pictures are, and writes the errors of those that fail. It keeps the standard output of now.

    Args:
        output: what is shown.
    """

    def __init__(self, output: Output) -> None:
        self._as_json, self._quiet = output.progress == "json", output.quiet
        self._out = sys.stdout
        self._ends: list[str] = []
        self._steps: dict[str, int] = {}
        self._bar: Any = None
        self._notes = Extra("the files of errors are not up to date")

    def begin(self, tasks: Sequence[Planned], there: Sequence[Planned]) -> None:
        """Begin with the pictures of a command, of which some are there already."""
        self._tally = Tally(task.width * task.height for task in tasks)
        for task in there:
            self._tally.skip(task.width * task.height)
            self._ends.append("there already")
        if not (self._as_json or self._quiet) and sys.stderr.isatty() and len(there) < len(tasks):
            from tqdm.auto import tqdm

            self._bar = tqdm(total=sum(task.steps for task in tasks) - sum(task.steps for task in there), desc="denoising")

    def event(self, event: Mapping[str, Any]) -> None:
        """Show the beginning or a step of a picture."""
        if self._as_json:
            print_line(json.dumps(event), self._out)
        elif self._bar is not None and event["event"] == "step":
            self._advance(event["file"], event["step"])

    def end(self, task: Planned, how: str, problem: str) -> None:
        """Show how a picture ended, and write its error into its file or remove that.

        Args:
            task: the picture.
            how: `made`, `there already` or `failed`.
            problem: the error.
        """
        self._ends.append(how)
        self._advance(str(task.path), task.steps)
        with self._notes:
            note(note_of(task.path), problem if how == "failed" else None)
        if how == "there already":
            self._tally.skip(task.width * task.height)
            return
        if how == "failed":
            self._report(
                {"event": "failed", "file": str(task.path), "error": problem},
                f"{task.path}: failed, {' '.join(problem.split())}",
                task,
            )
        else:
            self._report(
                {"event": "done", "file": str(task.path), "width": task.width, "height": task.height},
                f"{task.path}: {task.width} x {task.height} pixels",
                task,
            )

    def _report(self, event: Mapping[str, Any], line: str, task: Planned) -> None:
        line += self._tally.finish(task.width * task.height)
        if self._bar is not None:
            self._bar.clear()
        print_line(json.dumps(event) if self._as_json else line, self._out)
        if self._bar is not None:
            self._bar.refresh()

    def _advance(self, file: str, step: int) -> None:
        """Bring the bar up to date. A picture that goes on from an older checkpoint makes it go back."""
        self._steps[file] = step
        if self._bar is not None:
            self._bar.update(sum(self._steps.values()) - self._bar.n)

    def hint(self, line: str) -> None:
        """Show a line that is nice to know."""
        if not self._quiet:
            hint(line)

    def summary(self) -> None:
        """Show how all pictures ended."""
        event, line = summary(self._ends)
        print_line(json.dumps(event) if self._as_json else line, self._out)

    def close(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
