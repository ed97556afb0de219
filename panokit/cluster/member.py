"""What runs inside an actor: it makes pictures, alone or as one of several ranks, and tells the driver about them."""

import os
import queue
import socket
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, final

from panokit import launcher
from panokit.errors import (
    FallbackWarning,
    OutputError,
    PromptWarning,
    RankError,
    RankFailedError,
    SettingError,
    ShardingWarning,
    in_words,
)
from panokit.jobs import Job, Worker
from panokit.output import Output
from panokit.painting import Painter, prepare, prepared

_POLL = 1.0
"""The most seconds that the driver waits for news."""


@final
@dataclass(frozen=True)
class Planned:
    """A picture to make, as the driver knows it.

    Attributes:
        path: the file of the picture.
        width, height: its size in pixels.
        steps: the steps of its run.
    """

    path: Path
    width: int
    height: int
    steps: int


@final
@dataclass(frozen=True)
class News:
    """What a member tells the driver.

    Attributes:
        kind: `event` for an event of `--progress json`; `warning`; or how work ended: `result`, `stopped` by request, `lost`
            because another rank ended, or `error`.
        value: the event, the warning, the result, or the error.
    """

    kind: Literal["event", "warning", "result", "stopped", "lost", "error"]
    value: Any

    @property
    def last(self) -> bool:
        """Whether the work has ended."""
        return self.kind not in ("event", "warning")


@final
class Member:
    """One actor. Its methods are called by the driver, several at once.

    Args:
        folder: the folder that the command runs in. Relative names of files are meant in it.
        threads: threads of the CPU, which are part of what decides the bits of a picture.
    """

    def __init__(self, folder: str, threads: int) -> None:
        import torch

        with suppress(OSError):  # files with whole names may be seen all the same
            os.chdir(folder)
        torch.set_num_threads(threads)
        self._threads = threads
        self._news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self._painter: Painter | None = None
        self._asked = False
        warnings.showwarning = self._show

    def place(self) -> tuple[str, int]:
        """The address of this machine, and a port that is free: where the ranks meet, if this is the first of them."""
        import ray

        with socket.create_server(("", 0)) as server:
            return ray.util.get_node_ip_address(), int(server.getsockname()[1])

    def enter(self, rank: int, size: int, place: tuple[str, int], runtime: Mapping[str, Any]) -> str:
        """Become a rank, and meet the others.

        Args:
            rank: the number of this rank.
            size: the number of ranks.
            place: what `place` of the first rank returned.
            runtime: arguments of a `Runtime`.

        Returns:
            The name of the machine.
        """
        launcher.become(rank, size, *place)
        self._worker = Worker({**runtime, "devices": 1, "num_nodes": 1})
        self._worker.runtime.launch()
        return socket.gethostname()

    def work(self, what: Literal["plan", "make"], *args: Any) -> None:
        """Do one piece of work. `news` tells how it ends.

        Args:
            what: the name of a method.
            args: its arguments.
        """
        import torch

        torch.set_num_threads(self._threads)
        try:
            self._news.put(News("result", getattr(self, f"_{what}")(*args)))
        except KeyboardInterrupt as stopped:
            self._news.put(News("stopped", str(stopped)))
        except RankError as error:
            self._news.put(News("lost", str(error)))
        except (OutputError, SettingError) as error:
            self._news.put(News("error", type(error)(f"{error} (on {socket.gethostname()})")))
        except Exception as error:  # of any type: the driver may not be able to read it
            self._news.put(News("error", RankFailedError(in_words(error))))

    def news(self) -> list[News]:
        """What is new. It waits for something, but not for long."""
        news = []
        with suppress(queue.Empty):
            news.append(self._news.get(timeout=_POLL))
            while not news[-1].last:
                news.append(self._news.get_nowait())
        return news

    def stop(self) -> None:
        """End the current work, and all later work, after its step and with a checkpoint."""
        self._asked = True
        if self._painter:
            self._painter.stop()

    def _plan(self, jobs: Mapping[int, Job], output: Output) -> tuple[dict[int, Planned], dict[int, str]]:
        """Check all jobs. Return those that can be done by their lines, and what is wrong with the others."""
        tasks, problems = prepared(jobs, self._worker, output)
        planned = {line: Planned(task.path, *task.plan.size, task.plan.settings.steps or 0) for line, task in tasks.items()}
        return planned, problems

    def _make(self, job: Job, output: Output) -> tuple[str, str]:
        """Make a picture. Return `made`, `there already` or `failed`, and the error."""
        runtime = self._worker.runtime
        try:
            task = runtime.barrier(partial(prepare, job, self._worker, output))
        except (RankError, OutputError):
            raise
        except Exception as error:  # what this machine does not have, such as a picture
            return "failed", f"{type(error).__name__}: {error} (on {socket.gethostname()})"
        problem = ""

        def tell(event: Mapping[str, Any]) -> None:
            nonlocal problem
            if event["event"] in ("begin", "step"):
                self._news.put(News("event", event))
            problem = event.get("error", problem)

        self._painter = Painter([task], runtime, tell)
        if self._asked:
            self._painter.stop()
        return self._painter.attempt(0), problem

    def _show(self, message: Warning | str, category: type[Warning], *args: Any, **options: Any) -> None:
        """Tell a warning for the user. Those of libraries are for their developers."""
        if issubclass(category, (PromptWarning, FallbackWarning, ShardingWarning)):
            self._news.put(News("warning", (category, str(message))))
