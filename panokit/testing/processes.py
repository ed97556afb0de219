"""Real processes for tests and benchmarks: ranks that start quickly, and commands with all processes that come of them.

Ranks are forked from a process that has imported everything and computed nothing. So two of them start in a tenth of a second
instead of ten seconds.
"""

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL
from typing import Any, final

_FOLDER = "PANOKIT_TEST_FOLDER"
"""The environment variable with the folder of a `Command`."""

PRELOAD = ["panokit.cli", "panokit.painting", "panokit.runtime.strategy", "panokit.testing.tiny", "panokit.testing.toys"]


@final
class Processes:
    """Ranks that run a function of a script, with one thread each.

    Args:
        size: number of ranks.
        script: a Python file.
        function: the name of a function in it. It returns the exit status of its rank; None is 0.
        args: the arguments of the function, the same on every rank.
        folder: a folder for the output of the ranks, `RANK.txt`.
        environment: variables to add to the environment of every rank.
        port: the port of the ranks' store; None takes a free one.
    """

    def __init__(
        self,
        size: int,
        script: Path,
        function: str,
        args: Sequence[Any],
        folder: Path,
        environment: Mapping[str, str] | None = None,
        port: int | None = None,
    ) -> None:
        self._folder = folder
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        common = {
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port or free_port()),
            "TORCHELASTIC_RUN_ID": "test",
            **(environment or {}),
        }
        self.ranks = []
        for rank in range(size):
            own = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            work = (str(script), function, args, folder / f"{rank}.txt", own)
            self.ranks.append(context.Process(target=_run, args=work, daemon=True))
            self.ranks[rank].start()

    def wait(self, timeout: float = 60.0) -> list[int | None]:
        """Wait for all ranks to end.

        Args:
            timeout: seconds to wait. After that, the ranks are killed.

        Returns:
            The exit statuses. A rank that was killed has the negative number of the signal.

        Raises:
            TimeoutError: a rank did not end in time.
        """
        end = time.monotonic() + timeout
        for rank in self.ranks:
            rank.join(max(0.0, end - time.monotonic()))
        if any(rank.is_alive() for rank in self.ranks):
            for rank in self.ranks:
                rank.kill()
            raise TimeoutError(f"ranks still run after {timeout} s; their output: {self.outputs()}")
        return [rank.exitcode for rank in self.ranks]

    def outputs(self) -> list[str]:
        """The standard output and standard error of each rank."""
        paths = [self._folder / f"{rank}.txt" for rank in range(len(self.ranks))]
        return [path.read_text() if path.exists() else "" for path in paths]


@final
class Command:
    """A Python program, and all processes that come of it, in a folder of its own. It needs Linux's `/proc`.

    The program runs in the folder, and can import modules from it. Its standard error goes to the file `stderr` there.

    Args:
        words: the words after `python`.
        folder: the folder. Its name, in the environment, tells the processes from others.
        environment: further variables of the environment.
    """

    def __init__(self, words: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.folder, self.begun = folder, time.monotonic()
        with (folder / "stderr").open("w") as stderr:
            self.parent = subprocess.Popen(
                [sys.executable, *words],
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    _FOLDER: str(folder),
                    "PYTHONPATH": str(folder),
                    **(environment or {}),
                },
                cwd=folder,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,  # as a shell gives each command a group
            )

    def processes(self) -> dict[int, dict[str, str]]:
        """The environments that the processes were started with, by their numbers. Those that have ended are left out."""
        environments: dict[int, dict[str, str]] = {}
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # the process has ended, or belongs to another user
                lines = (path / "environ").read_bytes().decode(errors="replace").split("\0")
                environment = dict(line.split("=", 1) for line in lines if "=" in line)
                if environment.get(_FOLDER) == str(self.folder):
                    environments[int(path.name)] = environment
        return environments

    def ended(self) -> bool:
        """Whether the program and all of its processes have ended."""
        return self.parent.poll() is not None and not self.processes()

    def stderr(self) -> str:
        """The standard error so far, without the folder's name."""
        return (self.folder / "stderr").read_text(errors="replace").replace(f"{self.folder}/", "")

    def end(self) -> None:
        """Kill what has not ended."""
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, SIGKILL)
        self.parent.wait()


def until(true: Callable[[], bool], patience: float) -> bool:
    """Wait until something is true, for so many seconds. Return whether it is."""
    end = time.monotonic() + patience
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return true()


def free_port() -> int:
    """Find a port that no process uses."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _run(script: str, function: str, args: Sequence[Any], output: Path, environment: Mapping[str, str]) -> None:
    import torch

    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.exit(runpy.run_path(script)[function](*args))
