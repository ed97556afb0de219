"""The command: all sections, each within its time, and the results after each check."""

import argparse
import faulthandler
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from diffusers.utils import logging

from gpu import checks, processes, speed
from gpu.bench import Bench, warnings_kept
from gpu.card import Card
from gpu.report import Entry, Outcome, Report, Skipped, Status
from panokit.errors import OutOfMemoryError, reason_of

HERE = Path(__file__).parent


@final
class Section(NamedTuple):
    """Checks that share a time.

    Attributes:
        seconds: the time, on a card.
        checks: what is checked or measured, by name.
    """

    seconds: float
    checks: Mapping[str, Callable[[Bench], Outcome]]


def _named(*functions: Callable[[Bench], Outcome]) -> dict[str, Callable[[Bench], Outcome]]:
    return {function.__name__.replace("_", " "): function for function in functions}


SECTIONS: Mapping[str, Section] = {
    "correctness": Section(180, _named(*checks.CHECKS)),
    "speed": Section(170, speed.MEASUREMENTS),
    "families": Section(70, speed.FAMILIES),
    "processes": Section(
        150,
        _named(processes.two_processes_on_one_device_make_the_same_bits, processes.compiled_blocks_move_a_picture_by_rounding),
    ),
}


MEASURED = ("speed", "families")
"""The sections in which a card without enough memory is no fault."""


def check(bench: Bench, section: str, name: str, function: Callable[[Bench], Outcome]) -> Entry:
    """Make one check. Whatever it raises is its result.

    Args:
        bench: makes models and runs.
        section: the section that it is in.
        name: its name.
        function: the check.
    """
    if bench.left <= 0:
        return Entry(section, name, "skipped", note="the time of its section is over")
    began = time.monotonic()
    status: Status
    try:
        with warnings_kept():
            passed, numbers, note = function(bench)
        status = "noted" if passed is None else "passed" if passed else "failed"
    except Skipped as reason:
        status, numbers, note = "skipped", {}, str(reason)
    except Exception as error:  # of any library: it must not end the checks that follow
        small = section in MEASURED and isinstance(error, torch.OutOfMemoryError | OutOfMemoryError)
        note = f"{type(error).__name__}: {reason_of(error, 400)}"
        status, numbers = "skipped" if small else "failed", {}
    bench.card.clear()
    return Entry(section, name, status, numbers, note, time.monotonic() - began)


def run(bench: Bench, report: Report, limit: float, chosen: list[str]) -> None:
    """Make all checks, section after section.

    Args:
        bench: makes models and runs.
        report: gets the results.
        limit: seconds for all sections.
        chosen: the sections that are made. The others are reported as skipped.
    """
    end = time.monotonic() + limit
    for name, section in SECTIONS.items():
        bench.until = min(end, time.monotonic() + section.seconds * limit / sum(part.seconds for part in SECTIONS.values()))
        bench.forget()
        for what, function in section.checks.items():
            if name in chosen:
                report.add(check(bench, name, what, function))
            else:
                report.add(Entry(name, what, "skipped", note="the section was not asked for"))


def facts(card: Card, tiny: bool) -> dict[str, Any]:
    """What a reader must know of the machine and the versions."""
    packages = ("panokit", "torch", "diffusers", "transformers", "lightning")
    return {
        **card.facts(),
        "models": "in miniature" if tiny else "of real size, with random weights",
        "python": sys.version.partition(" ")[0],
        **{name: version(name) for name in packages},
        "commit": os.environ.get("PANOKIT_COMMIT") or _commit(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "CUBLAS_WORKSPACE_CONFIG": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    }


def _commit() -> str | None:
    try:
        words = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(words, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks/gpu/run.sh", description="Check panokit on one GPU, and measure its speed."
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="models in miniature: does this program work?")
    parser.add_argument("--out", type=Path, help="the files to write, without .json and .md; by default named after the card")
    parser.add_argument("--limit", type=float, default=570.0, help="seconds for all sections")
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    options = parser.parse_args(words)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device: use --device cpu --tiny to see whether this program works")
    if options.device == "cpu" and not options.tiny:
        parser.error("models of real size take hours on a CPU: add --tiny")
    logging.set_verbosity_error()
    card = Card.of(options.device)
    out = options.out or HERE / "results" / re.sub(r"[^\w.-]+", "-", f"{card.name}{' tiny' * options.tiny}")
    report = Report(out, facts(card, options.tiny))
    faulthandler.dump_traceback_later(options.limit + 30, exit=True)  # if a kernel hangs; what is written by then is kept
    run(Bench(card, options.tiny), report, options.limit, options.sections)
    faulthandler.cancel_dump_traceback_later()
    counts = {
        status: sum(entry.status == status for entry in report.entries) for status in ("passed", "failed", "skipped", "noted")
    }
    print(f"{', '.join(f'{count} {status}' for status, count in counts.items())}: {out}.json and {out}.md")
    return int(report.failed)


if __name__ == "__main__":
    sys.exit(main())
