"""A killer: signals to the processes of a run, in each of its phases, and what comes of it.

A run paints a small picture: in one process, in two ranks of panokit, or in two of torchrun. A signal comes to one of its
processes or to all of them. Then the run must end with a known exit status and one line of panokit, or go on; no process may
be left; no file may be there under its own name unless it is whole; and the same command, from the checkpoint if there is one,
must make the picture of the undisturbed run to the bit.

`python benchmarks/faults/kills.py --kills 100 --seed 0` takes an hour, goes on where it was stopped, and prints a table. It
needs Linux's `/proc`. The exit status is 1 if anything came that must not.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from signal import SIGCONT, SIGINT, SIGKILL, SIGSTOP, SIGTERM, Signals, default_int_handler
from signal import signal as handle

from panokit.testing.processes import Command, Processes, until

MODES = {
    "one process": (["-m", "panokit"], ["parent"]),
    "panokit": (["-m", "panokit"], ["rank 0", "rank 1", "all"]),  # rank 0 is the parent
    "torchrun": (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=0", "-m", "panokit"],
        ["rank 0", "rank 1", "parent", "all"],
    ),
}
"""How each mode starts, and whom a signal goes to."""

PHASES = ("start", "coarse canvas", "step", "checkpoint", "decode", "picture")
SIGNALS = (SIGKILL, SIGTERM, SIGINT, SIGSTOP)

TIMEOUT = 10
"""Seconds that ranks wait for each other."""

PATIENCE = 150.0
"""Seconds after which a process that still runs counts as left behind. Ranks that never started are given up after a minute."""

WORDS = (
    "generate lake --model landscapes --height 256 --width 256 --stride 128 --steps 5 --micro_batch 2 --checkpoint_every 2 "
    f"--guidances+=msd --guidances.until=0.2 --fuser marks:Marks --timeout {TIMEOUT} --quiet --out a.png"
).split()

MARKS = """
import os, time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from panokit import Fuser, checkpoint, files, sampler
from panokit_multidiffusion import MultiDiffusion

def reached(phase):
    if os.environ.get("PHASE") == phase:
        Path(f"{phase} {os.environ.get('RANK', os.environ.get('LOCAL_RANK', '0'))}").write_text(str(os.getpid()))
        time.sleep(1.0)

@dataclass(frozen=True)
class Marks(Fuser):
    def fuse(self, rows, windows, level):
        reached("coarse canvas" if len(windows) == 1 else "step" if level.step == 2 else "")
        return MultiDiffusion().fuse(rows, windows, level)

def pausing(module, phase):
    written_aside = module.written_aside

    @contextmanager
    def paused(path):
        with written_aside(path) as aside:
            yield aside
            reached(phase)

    module.written_aside = paused

def picture_of(*args, picture_of=sampler.picture_of):
    reached("decode")
    return picture_of(*args)

sampler.picture_of = picture_of
pausing(checkpoint, "checkpoint")
pausing(files, "picture")
"""
"""A fuser whose module says in files which phase a rank has reached, and makes that phase a second longer."""


@dataclass(frozen=True)
class Cell:
    """What is done.

    Attributes:
        mode: how the run is started.
        phase: when the signal comes.
        signal: its name.
        target: whom it goes to.
    """

    mode: str
    phase: str
    signal: str
    target: str

    @property
    def waits(self) -> bool:
        """Whether nobody can notice that processes are stopped: the run goes on with them."""
        return self.signal == "SIGSTOP" and self.target in ("parent", "all")

    @property
    def late(self) -> bool:
        """Whether all steps are made, so that nothing is left to stop."""
        return self.phase in ("decode", "picture")

    @property
    def rank(self) -> int:
        """The rank that the signal waits for."""
        return int(self.target[-1]) if self.target.startswith("rank") else 0


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        status: the exit status of the program that the user started; None if it did not end.
        lines: panokit's lines on stderr, without warnings.
        others: other lines on stderr.
        seconds: from the signal, or from SIGCONT, to the end of all processes.
        left: processes that did not end.
        files: what is there after the end.
        whole: whether the picture, if there is one, is the undisturbed one.
        resumed: whether the run then went on from a checkpoint.
        same: whether the picture is the undisturbed one after that.
    """

    status: int | None
    lines: list[str]
    others: int
    seconds: float
    left: int
    files: list[str]
    whole: bool = True
    resumed: bool = False
    same: bool = False


def cells() -> list[Cell]:
    """All that can be done."""
    return [
        Cell(mode, phase, signal.name, target)
        for mode, (_, targets) in MODES.items()
        for phase, signal, target in product(PHASES, SIGNALS, targets)
    ]


def chosen(count: int, seed: int) -> list[Cell]:
    """So many of them, in a random order; all of them before one comes again."""
    chance, rows = random.Random(seed), list[Cell]()
    while len(rows) < count:
        rows += chance.sample(cells(), len(cells()))
    return rows[:count]


@contextmanager
def folder_of_marks() -> Iterator[Path]:
    """A folder for a run, with the module that marks its phases."""
    with tempfile.TemporaryDirectory() as name:
        Path(name, "marks.py").write_text(MARKS)
        yield Path(name)


def begin(mode: str, folder: Path, phase: str) -> Command:
    """Start a run in a folder."""
    devices = ["--devices", "2"] if mode == "panokit" else []
    return Command([*MODES[mode][0], *WORDS, *devices], folder, {"PHASE": phase})


def undisturbed(folder: Path, more: Iterable[str] = ()) -> bytes:
    """The picture of one process to which nothing happens. It starts quickly."""
    started = Processes(1, Path(__file__).resolve(), "run", (str(folder), [*WORDS, *more]), folder)
    if started.wait(300.0) != [0]:
        raise RuntimeError(f"the undisturbed run failed: {started.outputs()[0]}")
    return (folder / "a.png").read_bytes()


def run(folder: str, words: list[str]) -> int:
    """The command line in a folder, in a process of its own."""
    from panokit.cli import main as command_line

    os.chdir(folder)
    sys.path.insert(0, folder)
    return command_line(words)


def strike(cell: Cell, folder: Path, chance: random.Random) -> Outcome:
    """Start a run, send the signal, and wait for the end."""
    command = begin(cell.mode, folder, cell.phase)
    try:
        pids = _targets(cell, command, chance)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, Signals[cell.signal])
        if cell.waits:
            time.sleep(TIMEOUT + 5)
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, SIGCONT)
        moment = time.monotonic()
        until(command.ended, PATIENCE)
        seconds, left = time.monotonic() - moment, len(command.processes())
        text = [line for line in command.stderr().splitlines() if not line.startswith("panokit: warning:")]
        lines = [line for line in text if line.startswith("panokit: ")]
        files = sorted(path.name for path in folder.glob("*a.*png*"))
        return Outcome(command.parent.poll(), lines, len(text) - len(lines), round(seconds, 1), left, files)
    finally:
        command.end()


def _targets(cell: Cell, command: Command, chance: random.Random) -> list[int]:
    """The processes that get the signal, once the phase is reached."""

    def ranks() -> dict[str, int]:
        pids = {"0": command.parent.pid} if cell.mode != "torchrun" else {}
        for pid, environment in command.processes().items():
            if "LOCAL_RANK" in environment:
                pids[environment["LOCAL_RANK"]] = pid
        return pids

    if cell.phase == "start":
        there = until(lambda: len(ranks()) == (1 if cell.mode == "one process" else 2), 120.0)
        time.sleep(chance.uniform(1.0, 6.0))  # from the imports to the meeting of the ranks
    else:
        rank = 0 if cell.phase in ("checkpoint", "picture") else cell.rank  # rank 0 writes, and the other waits
        there = until(lambda: (command.folder / f"{cell.phase} {rank}").exists(), 120.0)
        time.sleep(chance.uniform(0.0, 0.8))
    if not there:
        raise RuntimeError(f"{cell} is not reached: {command.stderr()}")
    match cell.target:
        case "parent":
            return [command.parent.pid]
        case "all":
            return [*command.processes()]
        case _:
            return [ranks()[str(cell.rank)]]


def resume(outcome: Outcome, picture: bytes, folder: Path) -> None:
    """Continue the run, and compare its picture."""
    if "a.png" in outcome.files:
        outcome.whole = (folder / "a.png").read_bytes() == picture
    outcome.resumed = any(name.startswith("a.png.checkpoint") for name in outcome.files)
    try:
        outcome.same = undisturbed(folder, ["--resume", "a.png.checkpoint"] if outcome.resumed else []) == picture
    except RuntimeError as error:
        print(error, file=sys.stderr)


def wrong(cell: Cell, outcome: Outcome) -> list[str]:
    """What must not be."""
    done = outcome.status == 0 or (cell.late and "a.png" in outcome.files)
    nobody = cell.target == "all" or cell.mode == "one process"  # is left to say it
    torchrun = cell.mode == "torchrun" and cell.phase == "start"  # says it, and ends the others before they know each other
    alone = cell.signal == "SIGKILL" and (nobody or torchrun)
    lines = len(outcome.lines)
    problems = {
        "the picture is not whole": not outcome.whole,
        "another picture": not outcome.same,
        f"{outcome.left} processes left": outcome.left > 0,
        f"status {outcome.status}": outcome.status not in _statuses(cell),
        f"{lines} lines of panokit": lines > 1 or (lines == 0 and not (done or alone)),
        f"{outcome.others} lines of others": outcome.others > 0 and cell.mode != "torchrun",
    }
    return [problem for problem, there in problems.items() if there]


def _statuses(cell: Cell) -> set[int]:
    """The exit statuses that may come of a signal. 0 is one of a run that was done, or that goes on."""
    if cell.waits:
        return {0}
    own = {"SIGKILL": {-9}, "SIGTERM": {143}, "SIGINT": {130}, "SIGSTOP": {-9}}[cell.signal]
    late = {0} if cell.late else set[int]()
    if cell.mode == "torchrun":  # its status is 1 whatever its ranks end with, or that of its own signal
        return {1, *late, *(own if cell.target in ("parent", "all") else ())}
    if cell.target == "rank 1":  # the first rank says that it has ended, hangs, or was asked to stop
        return {1, 130, *late}
    return own | (late if cell.signal in ("SIGTERM", "SIGINT") else set())


def table(rows: Iterable[tuple[Cell, Outcome]]) -> str:
    """The outcomes as a table in Markdown, a line for each mode, signal and target."""
    groups: dict[tuple[str, str, str], list[tuple[Cell, Outcome]]] = defaultdict(list)
    for cell, outcome in rows:
        groups[cell.mode, cell.signal, cell.target].append((cell, outcome))
    titles = "run, signal, to, tried in, status, what panokit says, ended after, left, from a checkpoint, same picture, wrong"
    lines = [f"| {titles.replace(', ', ' | ')} |", "|---" * (titles.count(",") + 1) + "|"]
    for (mode, signal, target), group in sorted(groups.items()):
        outcomes = [outcome for _, outcome in group]
        phases = ", ".join(f"{phase} {count}" for phase, count in Counter(cell.phase for cell, _ in group).items())
        statuses = ", ".join(sorted({str(outcome.status) for outcome in outcomes}))
        printed = Counter(line.removeprefix("panokit: ") for outcome in outcomes for line in outcome.lines)
        text = printed.most_common(1)[0][0] if printed else "nothing"
        seconds = f"{min(outcome.seconds for outcome in outcomes):.0f} to {max(outcome.seconds for outcome in outcomes):.0f} s"
        same, count = sum(outcome.same for outcome in outcomes), len(outcomes)
        resumed, left = sum(outcome.resumed for outcome in outcomes), sum(outcome.left for outcome in outcomes)
        problems = "; ".join({problem for cell, outcome in group for problem in wrong(cell, outcome)}) or "nothing"
        lines.append(
            f"| {mode} | {signal} | {target} | {phases} | {statuses} | {text} | {seconds} | {left} | {resumed} of {count} | "
            f"{same} of {count} | {problems} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=Path("kills.jsonl"), help="outcomes, one on each line; those there are kept"
    )
    options = parser.parse_args()
    handle(SIGINT, default_int_handler)  # ignored in the background of a shell, it would be ignored by the runs, too
    done = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    rows = [(Cell(**row["cell"]), Outcome(**row["outcome"])) for row in done]
    with folder_of_marks() as folder:
        picture = undisturbed(folder)
    for k, cell in enumerate(chosen(options.kills, options.seed)):
        if k < len(rows):
            continue
        with folder_of_marks() as folder:
            outcome = strike(cell, folder, random.Random(f"{options.seed} {k}"))
            resume(outcome, picture, folder)
        rows.append((cell, outcome))
        with options.out.open("a") as file:
            print(json.dumps({"cell": asdict(cell), "outcome": asdict(outcome)}), file=file)
        print(f"{k + 1} of {options.kills}: {cell} {outcome} {wrong(cell, outcome)}", file=sys.stderr, flush=True)
    print(table(rows[: options.kills]))
    bad = sum(bool(wrong(cell, outcome)) for cell, outcome in rows[: options.kills])
    print(f"\n{options.kills} kills, of which {bad} ended as they must not")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
