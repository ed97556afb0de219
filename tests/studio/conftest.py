"""A studio in a process of its own, for tests that look at it from outside."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path


class Served(NamedTuple):
    """A studio that runs."""

    process: subprocess.Popen[str]
    line: str
    """The line that it printed."""

    @property
    def url(self) -> str:
        return self.line[self.line.index("http") :].strip()

    def interrupt(self) -> tuple[int, str]:
        """Press Ctrl-C; the exit status, and what it printed then."""
        self.process.send_signal(signal.SIGINT)
        _, rest = self.process.communicate(timeout=30)
        return self.process.returncode, rest


@pytest.fixture(scope="session")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for temporary files of the servers."""
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="session")
def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@pytest.fixture(scope="session")
def serve(temporary: Path) -> Callable[..., AbstractContextManager[Served]]:
    """A context in which a studio runs, with options of the command line."""
    pytest.importorskip("gradio", reason="the studio needs gradio, which is not installed")

    @contextmanager
    def serving(*options: str) -> Iterator[Served]:
        process = subprocess.Popen(
            [sys.executable, "-m", "panokit", "studio", "--no_open", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(temporary)},
        )
        try:
            assert process.stdout
            line = process.stdout.readline()
            assert "http://" in line, process.communicate(timeout=10)
            yield Served(process, line)
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()

    return serving


@pytest.fixture(scope="session")
def studio(serve: Callable[..., AbstractContextManager[Served]], free_port: int) -> Iterator[Served]:
    """A studio for this machine, with what the command takes by default."""
    with serve("--port", str(free_port)) as served:
        yield served
