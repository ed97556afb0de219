"""Paints jobs into files: it writes checkpoints and pictures, prints a line for each, and continues if one fails."""

import json
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, final

from PIL.Image import Image

from panokit import films, forecast, recipe
from panokit.callbacks import Preview
from panokit.checkpoint import Checkpoint
from panokit.errors import FallbackWarning, OutputError, RankError, SettingError, in_words
from panokit.extra import Extra
from panokit.files import check_format, write_picture, written_aside
from panokit.forecast import Forecast
from panokit.jobs import Job, Worker
from panokit.output import Output, checkpoint_of, latents_of
from panokit.panorama import Panorama, contact_sheet, is_whole, sheet_size
from panokit.run import Run
from panokit.runtime import Runtime
from panokit.sampler import Plan
from panokit.signals import asking
from panokit.wording import counted


@final
@dataclass(frozen=True, eq=False)
class Task:
    """A picture to make, and the file for it.

    Attributes:
        plan: the plan of the picture.
        output: what to write besides the picture.
        path: the file of the picture.
    """

    plan: Plan
    output: Output
    path: Path

    @property
    def pixels(self) -> int:
        """The pixels of the picture, or of all frames: a measure of its work, compared with other tasks."""
        width, height = self.plan.size
        return width * height * self.plan.frames

    @property
    def done(self) -> bool:
        """Whether all that it makes is there, and complete."""
        return is_whole(self.path, latents_of(self.path) if self.output.latents else None)


def prepare(job: Job | Mapping[str, Any], worker: Worker, output: Output) -> Task:
    """Check that a job can be done, and make its task.

    Args:
        job: the job, or a mapping of its options.
        worker: makes the plan. If it does not trust its jobs, the amount of work is limited.
        output: where the picture goes.

    Raises:
        PanokitError: the job cannot be done, or its picture cannot be written.
    """
    plan = worker.plan(job)
    path = output.path(plan.recipe)
    output.check_files(path, plan.size, films.frames_of(plan.recipe))
    if not worker.trusted:
        recipe.check_work(plan.passes)
    plan.check()
    return Task(plan, output, path)


def prepare_all(path: str, jobs: Mapping[int, Job], wrong: Mapping[int, str], worker: Worker, output: Output) -> list[Task]:
    """Check all jobs of a file, and make their tasks. One that cannot be done is left out, with a warning that names its line.

    Args:
        path: the file, for the warnings.
        jobs: the jobs, by line number.
        wrong: what is wrong with other lines, by line number.
        worker: makes the plans.
        output: where the pictures go.

    Returns:
        The tasks, in the order of the file.

    Raises:
        SettingError: no job can be done.
        RankError: a rank is lost.
    """
    tasks, problems = prepared(jobs, worker, output)
    leave_out(path, {**wrong, **problems}, some=bool(tasks))
    return [*tasks.values()]


def prepared(jobs: Mapping[int, Job], worker: Worker, output: Output) -> tuple[dict[int, Task], dict[int, str]]:
    """Check jobs, and make their tasks.

    Args:
        jobs: the jobs, by line number.
        worker: makes the plans.
        output: where the pictures go.

    Returns:
        The tasks, by line number in the order of the jobs; and what is wrong with the other jobs, by line number.

    Raises:
        RankError: a rank is lost.
    """
    problems: dict[int, str] = {}
    tasks: dict[Path, tuple[int, Task]] = {}
    if jobs:
        worker.runtime.launch()  # a job that fails on one rank alone fails on all of them
    for line, job in jobs.items():
        try:
            task = worker.runtime.barrier(partial(prepare, job, worker, output))
        except RankError:
            raise
        except Exception as error:  # plugins raise errors of any type
            problems[line] = in_words(error)
            continue
        first, _ = tasks.setdefault(task.path, (line, task))
        if first != line:
            problems[line] = f"its picture is that of line {first}, {task.path}: keep one of them"
    return dict(tasks.values()), problems


def leave_out(path: str, problems: Mapping[int, str], *, some: bool) -> None:
    """Warn of the lines of a file whose jobs cannot be done.

    Args:
        path: the file.
        problems: what is wrong, by line number.
        some: whether some of its jobs can be done.

    Raises:
        SettingError: none can.
    """
    if problems and not some:
        shown = "; ".join(f"line {line}: {problems[line]}" for line in sorted(problems)[:5])
        raise SettingError(f"{path}, {shown}" + (f"; and {len(problems) - 5} more" if len(problems) > 5 else ""))
    for line in sorted(problems):
        warnings.warn(f"{path}, line {line}: {problems[line]}; this job is left out", FallbackWarning, stacklevel=2)


def paint(tasks: Sequence[Task], runtime: Runtime) -> None:
    """Make and write every picture, and a contact sheet of all if the first task asks for one.

    Args:
        tasks: the pictures, one or more.
        runtime: the devices to run on.

    Raises:
        PanokitError: a picture cannot be made or written, or two have one file.
    """
    ((path, count),) = Counter(task.path for task in tasks).most_common(1)
    if count > 1:
        raise SettingError(f"{count} pictures have one file, {path}: give each prompt once")
    sheet = Path(tasks[0].output.sheet) if tasks[0].output.sheet else None
    if sheet:
        check_format(sheet, sheet_size([task.plan.size for task in tasks]))
    painter = Painter(tasks, runtime)
    with painter.stopping():
        made = runtime.replicas(painter.one, len(tasks))
    if sheet and runtime.broadcast(lambda: _write_sheet(sheet, [panorama for panorama in made if panorama])):
        painter.report({"event": "sheet", "file": str(sheet)}, f"{sheet}: {counted(len(made), 'picture')}")


def announce(tasks: Sequence[Task], runtime: Runtime) -> None:
    """Print what the pictures of tasks are going to be, and make none.

    Args:
        tasks: the pictures.
        runtime: the devices that would make them.
    """
    for task in tasks if runtime.writes else ():
        event, line = forecast.data(task.path, task.plan), forecast.words(task.path, task.plan)
        print_line(json.dumps(event) if task.output.progress == "json" else line)


def paint_all(tasks: Sequence[Task], runtime: Runtime) -> int:
    """Make and write the pictures that do not exist yet. If one fails, its error goes to a file and the others are still made.

    Args:
        tasks: the pictures.
        runtime: the devices to run on.

    Returns:
        The number of pictures that failed.

    Raises:
        RankError: a rank is lost.
        OutputError: a picture cannot be written.
    """
    painter = Painter(tasks, runtime)
    with painter.stopping():
        ends = runtime.replicas(painter.attempt, len(tasks))
    painter.report(*summary(ends))
    return ends.count("failed")


def summary(ends: Sequence[str]) -> tuple[dict[str, Any], str]:
    """The ends of all tasks, counted: for a script, and for people."""
    counts = {end: ends.count(end) for end in ("made", "there already", "failed")}
    return {"event": "end", **counts}, ", ".join(f"{count} {end}" for end, count in counts.items())


_RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
"""Environment variables in which launchers count restarts of the same command."""


@final
class Tally:
    """Counts the pictures of a command that are finished, and says how long the others take.

    Args:
        pixels: the pixels of each picture.
    """

    def __init__(self, pixels: Iterable[int]) -> None:
        pixels = [*pixels]
        self._start, self._all, self._left = time.monotonic(), len(pixels), sum(pixels)
        self._done = self._painted = 0

    def skip(self, pixels: int) -> None:
        """Count a picture that was there already."""
        self._done += 1
        self._left -= pixels

    def finish(self, pixels: int) -> str:
        """Count a picture that was made or failed. Return what the line about it says of the others, if there are some."""
        self.skip(pixels)
        self._painted += pixels
        left = (time.monotonic() - self._start) / self._painted * self._left
        return f" ({self._done} of {self._all}{f', {left / 60:.0f} min left' * (left >= 60)})" if self._all > 1 else ""


@final
class Painter:
    """Makes the pictures of tasks one by one. The ranks share a picture, or each makes its own.

    Args:
        tasks: the pictures.
        runtime: the devices to run on.
        tell: takes the events that a script would read, instead of standard output; None prints lines.
    """

    def __init__(
        self, tasks: Sequence[Task], runtime: Runtime, tell: Callable[[Mapping[str, Any]], None] | None = None
    ) -> None:
        self._tasks, self._runtime, self._stopper = tasks, runtime, _Stopper()
        # Each rank has read the pictures and models of its tasks itself, and may make some tasks alone.
        runtime.require_same({str(k): task.plan.recipe for k, task in enumerate(tasks)})
        shared = len(tasks) < runtime.world_size
        self._own = range(len(tasks)) if shared else range(runtime.global_rank, len(tasks), runtime.world_size)
        self._tally = Tally(tasks[k].pixels for k in self._own)
        self._previews = [Preview(name) for name in {task.output.preview for task in tasks} if name]
        as_json = any(task.output.progress == "json" for task in tasks)
        self._tell = tell or (self._print_event if as_json else None)
        plans = {tasks[k].path: tasks[k].plan for k in self._own}
        quiet = bool(self._tell) or not runtime.writes or any(task.output.quiet for task in tasks)
        self._forecast = Forecast(plans, None if quiet else hint, self._tell)
        self._notes = Extra("the files of errors are not up to date")
        self._kept = Extra("the checkpoint is not deleted")

    def stopping(self) -> AbstractContextManager[None]:
        """While it is open, the first signal makes all ranks write a checkpoint and end, if a task asks for checkpoints."""
        return asking(self.stop) if any(task.output.checkpoint_every for task in self._tasks) else nullcontext()

    def stop(self) -> None:
        """Ask all ranks to write a checkpoint after their step, and to end."""
        self._stopper.stop()

    def one(self, k: int) -> Panorama | None:
        """Make and write the picture of task `k`. Return a small copy for the contact sheet, if there is one."""
        restarted = any(os.environ.get(name, "0") != "0" for name in _RESTARTS)
        return self._make(self._tasks[k], again=restarted)

    def attempt(self, k: int) -> str:
        """Make and write the picture of task `k`, unless it exists. Return the result in words."""
        runtime, task = self._runtime, self._tasks[k]
        problems = note_of(task.path)
        if runtime.broadcast(lambda: task.done):
            self._tally.skip(task.pixels)
            return "there already"
        try:
            self._make_on_all(task)
        except (RankError, OutputError):  # the other tasks would probably fail too
            raise
        except Exception as error:  # plugins raise errors of any type
            problem = f"{type(error).__name__}: {error}"
            runtime.broadcast(lambda: self._note(problems, problem))
            event = {"event": "failed", "file": str(task.path), "error": problem}
            self._finish(task, event, f"{task.path}: failed, {' '.join(problem.split())}")
            return "failed"
        runtime.broadcast(lambda: self._note(problems, None))
        return "made"

    def _make_on_all(self, task: Task) -> None:
        """Make and write a picture. If that fails on one rank, it fails on all."""
        with self._runtime.agreeing():
            self._make(task, again=True)
            self._runtime.barrier(lambda: None)

    def _make(self, task: Task, again: bool) -> Panorama | None:
        runtime, output, path = self._runtime, task.output, task.path
        self._forecast.begin(path)
        kept = Checkpoint(checkpoint_of(path), output.checkpoint_every, output.resume, again)
        try:
            shown = not (output.quiet or self._tell)
            panorama = task.plan.make(
                callbacks=[self._stopper, kept, *self._previews, self._forecast], progress=shown, out=path
            )
            if output.latents:
                runtime.broadcast(lambda: _write_latents(panorama, path))
        except (KeyboardInterrupt, RankError, OutputError) as error:
            if not (kept.useful and runtime.writes):
                raise
            how = "the same command goes on" if output.again else f"--resume {kept.path} goes on"
            raise type(error)(f"{str(error) or 'stopped'}; {how} from its checkpoint") from error
        runtime.broadcast(lambda: self._clear(kept))
        width, height = panorama.size
        event: dict[str, Any] = {"event": "done", "file": str(path), "width": width, "height": height}
        line = f"{path}: {width} x {height} pixels"
        if (frames := task.plan.frames) > 1:
            event, line = {**event, "frames": frames}, f"{line}, {frames} frames"
        self._finish(task, event, line)
        return _small(panorama) if output.sheet else None

    def _clear(self, kept: Checkpoint) -> None:
        with self._kept:
            kept.clear()

    def _note(self, path: Path, problem: str | None) -> None:
        with self._notes:
            note(path, problem)

    def report(self, event: Mapping[str, Any], line: str) -> None:
        """Print a line for people, or what it says for a script."""
        if self._tell:
            self._tell(event)
        elif self._runtime.writes:
            print_line(line)

    def _print_event(self, event: Mapping[str, Any]) -> None:
        if self._runtime.writes:
            print_line(json.dumps(event))

    def _finish(self, task: Task, event: Mapping[str, Any], line: str) -> None:
        """Report the end of a task. With many tasks, the line also gives the number of finished ones and the time left."""
        self.report(event, line + self._tally.finish(task.pixels))


@final
class _Stopper:
    """A callback that passes a signal on to the current run, and to the runs after it."""

    def __init__(self) -> None:
        self._asked = False
        self._run: Run | None = None

    def stop(self) -> None:
        """Ask the current run to end after its step."""
        self._asked = True
        if self._run:
            self._run.stop()

    def on_run_start(self, run: Run) -> None:
        """Remember the current run. Stop it at once if a signal came before."""
        self._run = run
        if self._asked:
            run.stop()


def _write_latents(panorama: Panorama, path: Path) -> None:
    try:
        panorama.save_latents(latents_of(path))
    except OutputError as error:
        raise OutputError(f"{error}; its picture is {path}") from error


def _write_sheet(path: Path, panoramas: Sequence[Panorama]) -> bool:
    """Write a contact sheet. Return whether it is there."""
    with Extra("there is no contact sheet"):
        write_picture(path, contact_sheet(panoramas))
        return True
    return False


def _small(panorama: Panorama) -> Panorama:
    """What a contact sheet shows of a panorama: a small copy, or frames of a film."""
    if panorama.frames is None:
        return replace(panorama, image=_thumbnail(panorama.image))
    frames = films.film_sheet(panorama.frames, fps=films.fps_of(panorama.recipe))
    return replace(panorama, image=frames, size=frames.size, frames=None)


def _thumbnail(image: Image) -> Image:
    """A copy of a picture that is small enough for a contact sheet."""
    small = image.copy()
    small.thumbnail((2048, 2048))
    return small


def note(path: Path, problem: str | None) -> None:
    """Write the error of a task into its file, or delete that of a task that has none any more.

    Args:
        path: the file.
        problem: the error; None if there is none.

    Raises:
        OutputError: the file cannot be written.
    """
    if problem is None:
        path.unlink(missing_ok=True)
        return
    with written_aside(path) as aside:
        aside.write_text(problem + "\n", encoding="utf-8", errors="replace")


def note_of(path: Path) -> Path:
    """The file of the error of a picture that could not be made."""
    return path.with_suffix(".error.txt")


def hint(line: str) -> None:
    """Print a line that is nice to know. Standard output is for results."""
    with Extra("no more lines are printed"):
        print(f"panokit: {line}", file=sys.stderr, flush=True)


def print_line(what: str, to: Any = None) -> None:
    """Print a line, if there is still somebody to read it.

    Args:
        what: the line.
        to: where it is printed; None for standard output.
    """
    to = to or sys.stdout
    encoding = to.encoding or "utf-8"
    with Extra("no more lines are printed"):
        try:
            print(what.encode(encoding, "replace").decode(encoding), file=to, flush=True)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), to.fileno())
            raise
