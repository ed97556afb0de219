"""Paints jobs into files: it writes checkpoints and pictures, prints a line for each, and continues if one fails."""

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from PIL.Image import Image

from panokit import recipe
from panokit.callbacks import Preview
from panokit.checkpoint import Checkpoint
from panokit.errors import OutputError, PanokitError, RankError, SettingError
from panokit.jobs import Job, Worker
from panokit.output import Output, written_aside
from panokit.panorama import Panorama, contact_sheet
from panokit.run import Run
from panokit.runtime import Runtime
from panokit.sampler import Plan
from panokit.signals import asking


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
        """The pixels of the picture: a measure of its work, compared with other tasks."""
        width, height = self.plan.size
        return width * height


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
    output.check_size(plan.size)
    if not worker.trusted:
        recipe.check_work(plan.passes)
    plan.check()
    return Task(plan, output, output.path(plan.recipe))


def prepare_all(path: str, jobs: Mapping[int, Job], wrong: Mapping[int, str], worker: Worker, output: Output) -> list[Task]:
    """Check all jobs of a file, and make their tasks.

    Args:
        path: the file, for the error.
        jobs: the jobs, by line number.
        wrong: what is wrong with other lines, by line number.
        worker: makes the plans.
        output: where the pictures go.

    Returns:
        The tasks, in the order of the file.

    Raises:
        SettingError: some jobs cannot be done, or two are the same. The error names their lines.
    """
    problems = dict(wrong)
    tasks: dict[Path, tuple[int, Task]] = {}
    for line, job in jobs.items():
        try:
            task = prepare(job, worker, output)
        except PanokitError as error:
            problems[line] = str(error)
            continue
        first, _ = tasks.setdefault(task.path, (line, task))
        if first != line:
            problems[line] = f"it is the same job as line {first}: keep one of them"
    if problems:
        shown = "; ".join(f"line {line}: {problems[line]}" for line in sorted(problems)[:5])
        raise SettingError(f"{path}, {shown}" + (f"; and {len(problems) - 5} more" if len(problems) > 5 else ""))
    return [task for _, task in tasks.values()]


def paint(tasks: Sequence[Task], runtime: Runtime) -> None:
    """Make and write every picture, and a contact sheet of all if the first task asks for one.

    Args:
        tasks: the pictures, one or more.
        runtime: the devices to run on.

    Raises:
        PanokitError: a picture cannot be made or written.
    """
    painter = _Painter(tasks, runtime)
    with painter.stopping():
        made = runtime.replicas(painter.one, len(tasks))
    if name := tasks[0].output.sheet:
        sheet = Path(name)
        runtime.broadcast(lambda: _write_sheet(sheet, [panorama for panorama in made if panorama]))
        _print(runtime, f"{sheet}: {len(made)} pictures")


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
    painter = _Painter(tasks, runtime)
    with painter.stopping():
        ends = runtime.replicas(painter.attempt, len(tasks))
    counts = {end: ends.count(end) for end in ("made", "there already", "failed")}
    _print(runtime, ", ".join(f"{count} {end}" for end, count in counts.items()))
    return counts["failed"]


_RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
"""Environment variables in which launchers count restarts of the same command."""


@final
class _Painter:
    """Makes the pictures of tasks one by one. The ranks share a picture, or each makes its own."""

    def __init__(self, tasks: Sequence[Task], runtime: Runtime) -> None:
        self._tasks, self._runtime, self._stopper = tasks, runtime, _Stopper()
        self._start, self._done, self._painted = time.monotonic(), 0, 0
        # Each rank has read the pictures and models of its tasks itself, and may make some tasks alone.
        runtime.require_same({str(k): task.plan.recipe for k, task in enumerate(tasks)})
        shared = len(tasks) < runtime.world_size
        self._own = range(len(tasks)) if shared else range(runtime.global_rank, len(tasks), runtime.world_size)
        self._left = sum(tasks[k].pixels for k in self._own)

    def stopping(self) -> AbstractContextManager[None]:
        """While it is open, the first signal makes all ranks write a checkpoint and end, if a task asks for checkpoints."""
        return asking(self._stopper.stop) if any(task.output.checkpoint_every for task in self._tasks) else nullcontext()

    def one(self, k: int) -> Panorama | None:
        """Make and write the picture of task `k`. Return a small copy for the contact sheet, if there is one."""
        restarted = any(os.environ.get(name, "0") != "0" for name in _RESTARTS)
        return self._make(self._tasks[k], again=restarted)

    def attempt(self, k: int) -> str:
        """Make and write the picture of task `k`, unless it exists. Return the result in words."""
        runtime, task = self._runtime, self._tasks[k]
        note = task.path.with_suffix(".error.txt")
        if runtime.broadcast(task.path.exists):
            self._count(task)
            return "there already"
        try:
            self._make(task, again=True)
        except (RankError, OutputError):  # the other tasks would probably fail too
            raise
        except Exception as error:  # plugins raise errors of any type
            problem = f"{type(error).__name__}: {error}"
            runtime.broadcast(lambda: _write_note(note, problem))
            self._report(task, f"{task.path}: failed, {' '.join(problem.split())}")
            return "failed"
        runtime.broadcast(lambda: note.unlink(missing_ok=True))
        return "made"

    def _make(self, task: Task, again: bool) -> Panorama | None:
        runtime, output, path = self._runtime, task.output, task.path
        kept = Checkpoint(path.with_name(f"{path.name}.checkpoint"), output.checkpoint_every, output.resume, again)
        callbacks: list[object] = [self._stopper, kept, *([Preview(output.preview)] if output.preview else [])]
        try:
            panorama = task.plan.make(callbacks=callbacks, progress=not output.quiet)
        except (KeyboardInterrupt, RankError) as error:
            if not (kept.useful and runtime.writes):
                raise
            how = "the same command goes on" if output.again else f"--resume {kept.path} goes on"
            raise type(error)(f"{str(error) or 'stopped'}; {how} from its checkpoint") from error
        runtime.broadcast(lambda: _write(panorama, path, latents=output.latents))
        runtime.broadcast(kept.clear)
        self._report(task, f"{path}: {panorama.image.width} x {panorama.image.height} pixels")
        return replace(panorama, image=_thumbnail(panorama.image)) if output.sheet else None

    def _report(self, task: Task, what: str) -> None:
        """Print a line. With many tasks, it also gives the number of finished ones and the time left."""
        self._count(task)
        self._painted += task.pixels
        left = (time.monotonic() - self._start) / self._painted * self._left
        count = len(self._own)
        many = f" ({self._done} of {count}{f', {left / 60:.0f} min left' * (left >= 60)})" if count > 1 else ""
        _print(self._runtime, what + many)

    def _count(self, task: Task) -> None:
        self._done += 1
        self._left -= task.pixels


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


def _write(panorama: Panorama, path: Path, *, latents: bool) -> None:
    panorama.save(path)
    if latents:
        panorama.save_latents(path.with_suffix(".safetensors"))


def _write_sheet(path: Path, panoramas: Sequence[Panorama]) -> None:
    with written_aside(path) as aside:
        contact_sheet(panoramas).save(aside)


def _write_note(path: Path, what: str) -> None:
    with written_aside(path) as aside:
        aside.write_text(what + "\n", encoding="utf-8")


def _thumbnail(image: Image) -> Image:
    """A copy of a picture that is small enough for a contact sheet."""
    small = image.copy()
    small.thumbnail((2048, 2048))
    return small


def _print(runtime: Runtime, what: str) -> None:
    if runtime.writes:
        print(what, flush=True)
