"""Two ways to start processes: panokit's own launcher and torch's elastic agent.

Two ranks on the CPU paint a small picture, with one thread each. The benchmark measures the start, and the end after a signal
in the fourth step: the seconds until no process of the run is left, the exit status, the lines on stderr, and whether there is
a checkpoint. `python benchmarks/launchers.py` takes five minutes for each round and prints medians. `--scenarios start`
measures only the start. It needs Linux's `/proc`.
"""

import argparse
import logging
import os
import resource
import sys
import tempfile
import time
from collections import defaultdict
from itertools import product
from math import inf
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM, Signals
from statistics import median
from textwrap import indent
from typing import NamedTuple
from unittest.mock import patch

from panokit.testing.processes import Command, until

LAUNCHERS = {
    "panokit": ["-m", "panokit"],
    "agent": [__file__, "agent"],  # around the command
    "inside": [__file__, "inside"],  # where the sampler starts the other ranks, as in a user's own script
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=0", "-m", "panokit"],
}
WORDS = ["generate", "lake", "--model", "landscapes", "--height", "128", "--width", "256"]
WORDS += ["--micro_batch", "2", "--devices", "2", "--quiet"]
SIGNALS = {
    "SIGKILL rank 1": (SIGKILL, "rank 1"),
    "SIGKILL rank 0": (SIGKILL, "rank 0"),
    "SIGKILL parent": (SIGKILL, "parent"),
    **{f"{stop.name} {to}": (stop, to) for stop in (SIGINT, SIGTERM) for to in ("parent", "rank 1", "group")},
}
PATIENCE = 20.0
"""Seconds after which a process that still runs counts as left behind."""

MARKS = """
import os, time
from dataclasses import dataclass
from pathlib import Path
from panokit import Fuser
from panokit_multidiffusion import MultiDiffusion

@dataclass(frozen=True)
class Marks(Fuser):
    def fuse(self, rows, windows, level):
        rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))
        with Path(os.environ["MARKS"], f"rank {rank}").open("a") as file:
            print(os.getpid(), time.monotonic(), file=file)
        return MultiDiffusion().fuse(rows, windows, level)
"""
"""A fuser that writes its process and the time to a file, on each rank and after each step."""


class Measured(NamedTuple):
    """The result of one run: its times, memory, exit status and output."""

    seconds: float
    status: int | None
    lines: int
    line: float = inf
    """Seconds to the first line."""
    checkpoint: bool = False
    processes: int = 0
    cpu: float = 0.0
    memory: float = 0.0
    """Memory of all processes in GB. A shared page counts once."""


def agent(words: list[str]) -> int:
    """Start the ranks with the elastic agent, and print in one line how they ended."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable()  # otherwise it prints a warning for each process, and a traceback with a table at the end
    config = LaunchConfig(1, 1, 2, run_id="panokit", rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0)
    try:
        elastic_launch(config, sys.executable)("-m", "panokit", *words)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        print(f"panokit: rank {rank} has ended, with status {failure.exitcode}", file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 1
    except SignalException as error:
        return 128 + error.sigval.value
    return 0


def inside(words: list[str]) -> int:
    """Start the ranks with the elastic agent when a sampler asks for them."""
    from panokit.cli import main

    with patch("panokit.runtime.runtime.start", lambda *_: sys.exit(agent(words))):
        return main(words)


class Generate:
    """`panokit generate` with one of the launchers, and the marks of its ranks."""

    def __init__(self, launcher: str, folder: Path, steps: int) -> None:
        (folder / "marks.py").write_text(MARKS)
        words = [*WORDS, "--steps", str(steps), "--fuser", "marks:Marks"]
        words += ["--checkpoint_every", "1000", "--out", str(folder / "a.png")]
        self.folder = folder
        self.command = Command([*LAUNCHERS[launcher], *words], folder, {"MARKS": str(folder)})

    def marks(self, rank: int) -> list[list[str]]:
        """Process and time of the rank's steps."""
        path = self.folder / f"rank {rank}"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for_step(self, step: int) -> None:
        if not until(lambda: min(len(self.marks(0)), len(self.marks(1))) >= step, 120.0):
            raise TimeoutError(f"step {step} does not come: {self.command.stderr()}")


def started(run: Generate) -> Measured:
    """Measure the start."""
    run.wait_for_step(1)
    command = run.command
    seconds = max(float(run.marks(rank)[0][1]) for rank in range(2)) - command.begun
    pids = command.processes()
    memory = sum(map(pss, pids)) / 1e6
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    until(command.ended, PATIENCE)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)  # of the parent, and of the processes that it has waited for
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    lines = command.stderr().count("\n")
    return Measured(seconds, command.parent.returncode, lines, processes=len(pids), cpu=cpu, memory=memory)


def signalled(run: Generate, signal: Signals, to: str) -> Measured:
    """Measure the end after a signal to the parent, to a rank or to the parent's process group."""
    run.wait_for_step(3)
    command = run.command
    pid = int(run.marks(int(to[-1]))[0][0]) if to.startswith("rank") else command.parent.pid
    (os.killpg if to == "group" else os.kill)(pid, signal)
    moment = time.monotonic()
    until(lambda: bool(command.stderr()) or command.ended(), PATIENCE)
    line = time.monotonic() - moment if command.stderr() else inf
    seconds = time.monotonic() - moment if until(command.ended, PATIENCE) else inf
    checkpoint = (command.folder / "a.png.checkpoint").exists()
    return Measured(seconds, command.parent.poll(), command.stderr().count("\n"), line, checkpoint)


def pss(pid: int) -> int:
    """The memory of a process in KB, with its part of shared pages."""
    return int(Path(f"/proc/{pid}/smaps_rollup").read_text().partition("\nPss:")[2].split()[0])


def measure(launcher: str, scenario: str) -> tuple[Measured, str]:
    """Measure one run in one scenario."""
    with tempfile.TemporaryDirectory() as folder:
        run = Generate(launcher, Path(folder), steps=4 if scenario == "start" else 900)
        try:
            measured = started(run) if scenario == "start" else signalled(run, *SIGNALS[scenario])
            return measured, run.command.stderr()
        finally:
            run.command.end()


def summary(scenario: str, runs: list[Measured]) -> str:
    """The medians of all runs, with all exit statuses and numbers of lines."""
    seconds, line, cpu, memory = (median(getattr(one, name) for one in runs) for name in ("seconds", "line", "cpu", "memory"))
    statuses, lines = (" or ".join(sorted({str(getattr(one, name)) for one in runs})) for name in ("status", "lines"))
    text = f"{seconds:.2f} s, status {statuses}, lines on stderr: {lines}"
    if scenario == "start":
        return f"{text}, {runs[0].processes} processes, {cpu:.1f} s of CPU time, {memory:.2f} GB"
    return f"{text} after {line:.2f} s, {sum(one.checkpoint for one in runs)} of {len(runs)} with a checkpoint"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--launchers", nargs="+", choices=LAUNCHERS, default=["panokit", "agent"])
    parser.add_argument("--scenarios", nargs="+", choices=["start", *SIGNALS], default=["start", *SIGNALS])
    options = parser.parse_args()
    runs: dict[tuple[str, str], list[Measured]] = defaultdict(list)
    texts: dict[tuple[str, str], str] = {}
    for _ in range(options.rounds):
        for pair in product(options.scenarios, options.launchers):  # in turns, since the machine may be busy
            scenario, launcher = pair
            measured, texts[pair] = measure(launcher, scenario)
            runs[pair].append(measured)
            print(f"{scenario}, {launcher}: {measured}", file=sys.stderr, flush=True)
    for (scenario, launcher), text in texts.items():
        print(f"\n{scenario}, {launcher}: {summary(scenario, runs[scenario, launcher])}")
        print(indent(text, "    "), end="")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["agent", *words]:
            sys.exit(agent(words))
        case ["inside", *words]:
            sys.exit(inside(words))
        case _:
            main()
