"""Real ranks: processes over gloo, as a launcher starts them, but in a moment.

They are forked from a process that has imported everything and computed nothing, so that starting two takes a tenth of a second
and not ten.
"""

import multiprocessing
import os
import runpy
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

PRELOAD = ["panokit.cli", "panokit.painting", "panokit.runtime.strategy", "panokit.testing.tiny", "panokit.testing.toys"]


@final
class Processes:
    """As many ranks as asked for, which run a function of a script, one thread each.

    Args:
        size: how many ranks.
        script: a Python file.
        function: the name of a function in it; what it returns is the exit status, 0 if it is None.
        args: its arguments.
        folder: where `RANK.txt` keeps what each rank says.
        environment: what is added to the environment of all.
        port: of the ranks' store; one that is free unless given.
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
        """The exit statuses, when all have ended; minus the signal's number where one was killed.

        Raises:
            TimeoutError: they have not; they are killed.
        """
        end = time.monotonic() + timeout
        for rank in self.ranks:
            rank.join(max(0.0, end - time.monotonic()))
        if any(rank.is_alive() for rank in self.ranks):
            for rank in self.ranks:
                rank.kill()
            raise TimeoutError(f"ranks still run after {timeout} s; they said: {self.said()}")
        return [rank.exitcode for rank in self.ranks]

    def said(self) -> list[str]:
        """What each rank has written to standard output and standard error."""
        paths = [self._folder / f"{rank}.txt" for rank in range(len(self.ranks))]
        return [path.read_text() if path.exists() else "" for path in paths]


def free_port() -> int:
    """A port that nobody listens on."""
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
