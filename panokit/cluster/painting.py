"""Jobs on a cluster: crews of actors take them one after another, and a job whose crew is lost goes on from its checkpoint."""

import json
import os
import queue
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from secrets import token_hex
from threading import Event, Lock, Thread
from typing import Any, Literal, final

from panokit.cluster.crew import Crew, EndedError, LostError, Start, threads_for
from panokit.cluster.joining import Cluster, joined
from panokit.cluster.member import News, Planned
from panokit.cluster.showing import Showing
from panokit.errors import FallbackWarning, RankError
from panokit.jobs import Job, part_of
from panokit.models import bytes_of
from panokit.output import Output, latents_of
from panokit.painting import leave_out
from panokit.panorama import is_whole
from panokit.signals import asking
from panokit.wording import counted

_GRACE = 2.0
"""Seconds in which threads may end whose calls of Ray nobody answers any more."""
_TRIES = 3
"""How often actors may end at one job, or one after another at their start, before it is given up."""


def paint(
    jobs: Sequence[Mapping[str, Any]],
    out: str | os.PathLike[str],
    *,
    devices: int | Literal["auto"] = 1,
    devices_per_picture: int = 1,
    address: str | None = None,
    **runtime: Any,
) -> list[Path | None]:
    """Make panoramas on Ray, as `panokit generate --jobs --engine ray` does.

    Actors that end are replaced, and their pictures go on from checkpoints. Pictures that exist are not made again.

    Args:
        jobs: a mapping of options for each picture, as in a file of jobs.
        out: the folder of the pictures, which all machines share.
        devices: number of actors; each has a GPU, or a CPU in a cluster without GPUs. `"auto"` takes all.
        devices_per_picture: number of actors that share a picture.
        address: `"auto"`, `"HOST:PORT"` or `"ray://HOST:PORT"` of a cluster; None starts one on this machine, unless this
            program has joined one already.
        runtime: further arguments of `Runtime`, such as `precision`.

    Returns:
        The file of each picture, in the order of the jobs; None for one that failed, or that could not be done.

    Raises:
        SettingError: the cluster cannot be used, or no job can be done.
        RankError: actors cannot be started.
        OutputError: a picture cannot be written.
        KeyboardInterrupt: the run was interrupted. Checkpoints are kept.
    """
    output = Output(out=os.path.join(out, ""), quiet=True, again=True)
    output.check(len(jobs))
    numbered = {number: Job.of(job) for number, job in enumerate(jobs, start=1)}
    made = paint_jobs(
        "the list of jobs",
        numbered,
        {},
        output,
        runtime=runtime,
        devices=devices,
        devices_per_picture=devices_per_picture,
        address=address,
    )
    return [made.get(number) for number in numbered]


def paint_jobs(
    file: str,
    jobs: Mapping[int, Job],
    wrong: Mapping[int, str],
    output: Output,
    *,
    runtime: Mapping[str, Any],
    devices: int | Literal["auto"] = 1,
    devices_per_picture: int = 1,
    address: str | None = None,
    part: str = "1/1",
) -> dict[int, Path | None]:
    """Make the pictures of the jobs of a file, on a cluster.

    Args:
        file: the file, for messages.
        jobs: the jobs, by line number.
        wrong: what is wrong with other lines of the file.
        output: where the pictures go, and what is shown.
        runtime: arguments of a `Runtime`.
        devices: number of actors; each has a device.
        devices_per_picture: number of actors that share a picture.
        address: where the cluster is; None starts one on this machine.
        part: which part of the jobs to make.

    Returns:
        For each job of the part its picture, and None if it failed; and None for each line that is left out.

    Raises:
        SettingError: the cluster cannot be used, or no job can be done.
        RankError: actors cannot be started.
        OutputError: a picture cannot be written.
        KeyboardInterrupt: the command was interrupted. Checkpoints are kept.
    """
    if not jobs:
        leave_out(file, wrong, some=False)
    models = {json.dumps(job.composition.model, default=repr): job.composition.model for job in jobs.values()}

    def weights() -> int:
        return max(map(bytes_of, models.values()), default=0)

    folder, showing = output.folder or Path(), Showing(output)
    with joined(address, devices, devices_per_picture, weights) as cluster, _marked(folder) as mark:
        start = Start(devices_per_picture, cluster.kind, runtime, threads_for(cluster.devices), str(folder), mark)
        work = _Work(file, jobs, wrong, output, part, showing)
        with asking(work.stop) if output.checkpoint_every != 0 else nullcontext():
            return work.run(start, min(cluster.devices // devices_per_picture, len(jobs)), cluster)


@contextmanager
def _marked(folder: Path) -> Iterator[str]:
    """Inside, there is an empty file in the folder. Its name is yielded."""
    mark = folder / f".panokit-{token_hex(8)}"
    mark.touch()
    try:
        yield mark.name
    finally:
        mark.unlink(missing_ok=True)


@final
class _Work:
    """All jobs of a command, and the crews that make them. A thread serves each crew, and the main thread shows what happens.

    Args:
        file: the file of the jobs, for messages.
        jobs: the jobs, by line number.
        wrong: what is wrong with other lines.
        output: where the pictures go.
        part: which part of the jobs to make.
        showing: shows what happens.
    """

    def __init__(
        self,
        file: str,
        jobs: Mapping[int, Job],
        wrong: Mapping[int, str],
        output: Output,
        part: str,
        showing: Showing,
    ) -> None:
        self._showing = showing
        self._file, self._jobs, self._wrong, self._output, self._part = file, jobs, wrong, output, part
        self._theirs = replace(output, quiet=True, progress="bar")  # the driver alone shows something
        self._stopping, self._lock, self._planning = Event(), Lock(), Lock()
        self._planned: dict[int, Planned] | None = None
        self._waiting: deque[int] = deque()
        self._running: set[int] = set()
        self._lost: Counter[int] = Counter()
        self._error: Exception | None = None
        self._stopped: list[str] = []
        self._news: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()

    def stop(self) -> None:
        """Ask all crews to write checkpoints and to end."""
        self._stopping.set()

    def run(self, start: Start, count: int, cluster: Cluster) -> dict[int, Path | None]:
        """Make all pictures.

        Args:
            start: how crews are started.
            count: the number of crews.
            cluster: the cluster.
        """
        crews = [Crew(start, self._ends, lambda line: self._tell("hint", line)) for _ in range(count)]
        threads = [Thread(target=self._serve, args=(crew,), daemon=True, name="panokit-crew") for crew in crews]
        showing = self._showing
        made: dict[int, Path | None] = dict.fromkeys(self._wrong)
        try:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads) or not self._news.empty():
                try:
                    kind, value = self._news.get(timeout=0.2)
                except queue.Empty:
                    if cluster.lives:
                        continue
                    if self._stopping.is_set():  # who terminates all processes at once also means those of Ray
                        raise KeyboardInterrupt("Ray was ended too; the same command goes on") from None
                    raise RankError("Ray has ended on this machine: the same command goes on from the checkpoints") from None
                if kind == "plan":
                    planned, there, problems, some = value
                    leave_out(self._file, {**self._wrong, **problems}, some=some)
                    made |= {**dict.fromkeys(problems), **{line: planned[line].path for line in there}}
                    showing.begin([planned[line] for line in planned], [planned[line] for line in there])
                elif kind == "end":
                    line, how, problem = value
                    task = (self._planned or {})[line]
                    made[line] = None if how == "failed" else task.path
                    showing.end(task, how, problem)
                elif kind == "hint":
                    showing.hint(value)
                elif kind == "warning":
                    warnings.warn(value[1], value[0], stacklevel=2)
                else:
                    showing.event(value)
        finally:
            showing.close()
            self._stopping.set()
            for crew in crews:
                if cluster.lives:
                    crew.end()
                else:
                    crew.abandon()
            for thread in threads:
                if thread.ident:
                    thread.join(None if cluster.lives else _GRACE)
        if self._error:
            raise self._error
        if self._waiting or self._planned is None:
            raise KeyboardInterrupt(self._how_it_stopped())
        showing.summary()
        return made

    def _how_it_stopped(self) -> str:
        if len(self._stopped) < 2:
            return next(iter(self._stopped), "the same command goes on")
        return f"{counted(len(self._stopped), 'picture')} stopped; the same command goes on from their checkpoints"

    def _tell(self, kind: str, value: Any) -> None:
        self._news.put((kind, value))

    def _ends(self) -> bool:
        """Whether crews are to end: the user has asked, or nothing is left to do."""
        return self._stopping.is_set() or (self._planned is not None and not self._waiting and not self._running)

    def _serve(self, crew: Crew) -> None:
        """Start a crew, again if it is lost, and let it work until nothing is left to do."""
        line: int | None = None
        losses = 0
        try:
            while not self._ends():
                try:
                    crew.start()
                    self._plan(crew)
                    losses = 0
                    while (line := self._take()) is not None:
                        ended = crew.work("make", self._jobs[line], self._theirs, tell=self._pass_on)
                        self._end(line, ended)
                    return
                except LostError as lost:
                    crew.end()
                    if line is not None:
                        self._give_back(line, lost)
                        line = None
                        continue
                    losses += 1
                    if losses == _TRIES:
                        raise RankError(f"{lost}; so it went {_TRIES} times, one after another") from lost
        except EndedError:
            pass
        except Exception as error:  # the main thread raises it
            self._error = self._error or error
            self._stopping.set()
        finally:
            crew.end()

    def _plan(self, crew: Crew) -> None:
        """Let a crew check all jobs, unless another one has."""
        while not self._planning.acquire(timeout=0.5):
            if self._ends():
                raise EndedError
        try:
            if self._planned is not None:
                return
            news = crew.work("plan", self._jobs, self._theirs)
            if news.kind == "error":
                raise news.value
            if news.kind != "result":
                raise EndedError
            planned, problems = news.value
            chosen: dict[int, Planned] = dict(part_of([*planned.items()], self._part))
            there = [line for line, task in chosen.items() if self._is_there(task)]
            self._waiting.extend(line for line in chosen if line not in {*there})
            self._planned = chosen
            self._tell("plan", (chosen, there, problems, bool(planned)))
        finally:
            self._planning.release()

    def _is_there(self, task: Planned) -> bool:
        return is_whole(task.path, latents_of(task.path) if self._output.latents else None)

    def _take(self) -> int | None:
        """The next job; None if there is none, or no more are to be made."""
        with self._lock:
            if self._stopping.is_set() or not self._waiting:
                return None
            self._running.add(line := self._waiting.popleft())
            return line

    def _end(self, line: int, news: News) -> None:
        """Note how a job has ended."""
        if news.kind == "error":
            raise news.value
        with self._lock:
            self._running.discard(line)
            if news.kind == "stopped":
                self._stopped.append(str(news.value))
                self._waiting.appendleft(line)
                return
        how, problem = news.value
        if how == "there already" and self._lost[line]:  # it was made by actors that ended a moment later
            how = "made"
        self._tell("end", (line, how, problem))

    def _give_back(self, line: int, lost: LostError) -> None:
        """Give a job whose actors ended to the next crew. If that happens again and again, the job is to blame."""
        with self._lock:
            self._running.discard(line)
            self._lost[line] += 1
            given_up = self._lost[line] == _TRIES and not self._stopping.is_set()
            if not given_up:
                self._waiting.appendleft(line)
        if given_up:
            self._tell("end", (line, "failed", f"RankError: {lost}; so it went {_TRIES} times with this job"))
        elif not self._stopping.is_set():
            self._tell("warning", (FallbackWarning, f"{lost}; its picture goes on with other actors"))

    def _pass_on(self, news: News) -> None:
        self._tell(news.kind, news.value)
