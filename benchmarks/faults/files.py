"""Mangled recipes, files of jobs and configurations: each makes its picture, or is refused in one line.

    python benchmarks/faults/files.py [--cases 4000] [--first 0]

A case is a number. It decides the kind of file, the places that get hostile values (`panokit.testing.hostile`), and the damage
to the text. Pictures are not painted, so a case takes a few hundredths of a second. The script prints a table of what happened,
and the cases that broke a rule. `tests/test_untrusted.py` tries some, and those in `ONCE_FAILED`.
"""

import argparse
import io
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from unittest.mock import patch

import psutil
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from panokit import Panorama
from panokit.cli import main
from panokit.jobs import JOB
from panokit.models import load_model
from panokit.sampler import Plan
from panokit.testing.hostile import HOSTILE, places, with_value

ONCE_FAILED = (669,)
"""Cases that once broke a rule."""

KINDS = ("recipe", "trusted recipe", "jobs", "configuration")
STATUSES = (0, 1, 2)
"""1 is for jobs that fail, and models that break their contract; 2 is for mistakes in what came."""

RECIPE: dict[str, Any] = {
    "prompt": "a lake",
    "negative_prompt": "fog",
    "height": 256,
    "width": 512,
    "steps": 2,
    "guidance_scale": 5.0,
    "guidance_end": 0.5,
    "stride": 64,
    "wrap": "x",
    "seed": 3,
    "model": "landscapes",
    "scheduler": {"plugin": "ddim", "options": {"eta": 0.5}},
    "layout": {"plugin": "spotdiffusion", "unit": 2},
    "fuser": {"plugin": "multidiffusion", "weights": "gaussian", "spread": 0.2},
    "guidances": [{"plugin": "msd", "weight": 10.0, "levels": None}, {"plugin": "syncdiffusion", "metric": "efficientnet"}],
}
REGIONS = {
    "regions": [
        {"box": [0, 0, 0.5, 1], "text": "a lake", "weight": 1.0, "negative_prompt": "fog"},
        {"box": [0.5, 0, 1, 1], "text": "hills", "weight": 1.0},
    ],
    "elsewhere": "a meadow",
}
NUMERICS = {
    "precision": "32-true",
    "micro_batch": 8,
    "tile": 512,
    "tile_overlap": 64,
    "guided_micro_batch": 4,
    "checkpointing": False,
    "attention": "auto",
    "channels_last": False,
    "compile": False,
    "panokit": "0.1.0",
    "torch": "2.10.0",
    "diffusers": "0.36.0",
    "hashes": {},
}


SOUND = ("null", "1", "2", "0.5", "true", '"a lake"', '"ddim"', "[]") * 2
"""Values that fit in many places, as raw JSON."""


class Outcome(NamedTuple):
    """What a case came to.

    Attributes:
        kind: one of `KINDS`.
        status: the exit status.
        line: what was printed to stderr.
        problems: the rules that it broke.
    """

    kind: str
    status: int
    line: str
    problems: list[str]


def mangled(random: Random, data: dict[str, Any]) -> bytes:
    """A file that is to hold some data, with up to three strange values, and perhaps with damage to its text."""
    data = json.loads(json.dumps(data))
    for _ in range(random.choice([0, 0, 1, 2])):
        if random.random() < 0.5:
            data.pop(random.choice([*data]))
        else:
            data[random.choice([*data, "class_path", "devices", ""])] = random.choice([None, [], {}, "text", -1, 2**70, 0.5])
    text = with_value(data, random.choice([*places(data)]), random.choice([*HOSTILE.values(), *SOUND]))
    raw = text.encode("utf-8", "surrogatepass")
    match random.randrange(12):
        case 0:
            raw = raw[: random.randrange(len(raw))]
        case 1:
            k = random.randrange(len(raw))
            raw = raw[:k] + bytes([random.randrange(256)]) + raw[k + 1 :]
        case 2:
            raw = random.choice([b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"%", b"---\n", b"[" * 3000]) + raw
        case 3:
            raw = raw.replace(b'"seed"', b'"steps"')  # a key twice
    return raw


def picture_with(raw: bytes, path: Path) -> None:
    """A picture that says it has that recipe."""
    chunks = PngInfo()
    chunks.add_itxt("panokit", raw.decode("utf-8", "replace"))
    Image.new("RGB", (4, 4)).save(path, pnginfo=chunks)


def words_of(kind: str, raw: bytes, folder: Path) -> list[str]:
    """The command line that reads a mangled file. It says nothing of long runs, so that what it prints is about the file."""
    out = f"{folder / 'out'}/"
    Path(out).mkdir()
    if "recipe" in kind:
        picture_with(raw, folder / "stranger.png")
        trust = ["--trust"] if kind == "trusted recipe" else []
        return ["rerun", str(folder / "stranger.png"), "--out", f"{out}again.png", "--quiet", *trust]
    name = "jobs" if kind == "jobs" else "config"
    (folder / name).write_bytes(raw)
    return ["generate", f"--{name}", str(folder / name), "--out", out, "--quiet"]


def attempt(case: int, folder: Path, known: set[str]) -> Outcome:
    """Try one case.

    Args:
        case: its number.
        folder: an empty folder.
        known: the modules that sound files import.
    """
    random = Random(case)
    kind = random.choice(KINDS)
    data = {**RECIPE, **({"prompt": REGIONS} if random.random() < 0.3 else {})}
    if "recipe" in kind:
        data |= NUMERICS
    if random.random() < 0.2 and kind != "recipe":
        data |= {"image": str(folder / "start.png"), "strength": 0.5}
        Image.new("RGB", (512, 256)).save(folder / "start.png")
    raw = mangled(random, {key: value for key, value in data.items() if "recipe" in kind or key in JOB})
    error, before = io.StringIO(), _processes()
    known = known | {name.partition(".")[0] for name in sys.modules}
    with redirect_stderr(error), redirect_stdout(io.StringIO()):
        try:
            status = main(words_of(kind, raw, folder))
        except BaseException as escaped:
            return Outcome(kind, -1, repr(escaped), [f"{type(escaped).__name__} escaped"])
    problems = [*_problems(status, error.getvalue(), folder, known), *["left a process"] * bool(_processes() - before)]
    return Outcome(kind, status, error.getvalue(), problems)


def _processes() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


def _problems(status: int, printed: str, folder: Path, known: set[str]) -> Iterator[str]:
    """The rules that a case broke."""
    lines = printed.splitlines()
    errors = [line for line in lines if not line.startswith("panokit: warning: ")]
    if status not in STATUSES:
        yield f"status {status}"
    if status == 2 and len(errors) != 1:
        yield f"{len(errors)} lines"
    if "panokit: unexpected" in printed or not all(line.startswith("panokit: ") and len(line) < 700 for line in lines):
        yield "no line of panokit's own"
    if more := {name.partition(".")[0] for name in sys.modules} - known:
        yield f"imported {', '.join(sorted(more))}"
    for path in (folder / "out").iterdir():
        if path.suffix != ".txt":
            try:
                Image.open(path).load()
            except Exception:
                yield f"left {path.name}, which is no whole picture"


@contextmanager
def unpainted() -> Iterator[None]:
    """Inside, pictures are planned and written, and not painted. Models are read once."""

    def make(plan: Plan, **options: Any) -> Panorama:
        return Panorama(torch.zeros(4, 2, 3), Image.new("RGB", (4, 4)), json.loads(json.dumps(plan.recipe)))

    read = cache(load_model)

    def read_once(name: Any, **settings: Any) -> Any:
        return read(name) if isinstance(name, str) and not settings else load_model(name, **settings)

    with patch.object(Plan, "make", make), patch("panokit.models.load_model", read_once):
        yield


def modules_of_sound_files() -> set[str]:
    """The modules that files import which nothing is wrong with."""
    for kind in KINDS:
        data = {**RECIPE, **({**NUMERICS, "compile": True} if "recipe" in kind else {})}  # torch's compiler is imported late
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
            raw = json.dumps(data).encode()
            if status := main(words_of(kind, raw, Path(folder))):
                raise SystemExit(f"a sound {kind} ended with status {status}")
    return {name.partition(".")[0] for name in sys.modules}


def run(cases: range) -> list[tuple[int, Outcome]]:
    """Try many cases, and return those that broke a rule. A table of all outcomes is printed."""
    failed: list[tuple[int, Outcome]] = []
    counts: Counter[tuple[str, int]] = Counter()
    with unpainted():
        known = modules_of_sound_files()
        for case in cases:
            with tempfile.TemporaryDirectory() as folder:
                outcome = attempt(case, Path(folder), known)
            counts[outcome.kind, outcome.status] += 1
            if outcome.problems:
                failed.append((case, outcome))
    print("| file | tried | made | refused in one line | other |\n|---|---|---|---|---|")
    for kind in KINDS:
        made, refused = counts[kind, 0], counts[kind, 2]
        tried = sum(count for (of, _), count in counts.items() if of == kind)
        print(f"| {kind} | {tried} | {made} | {refused} | {tried - made - refused} |")
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=4000)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    broken = run(range(options.first, options.first + options.cases))
    for case, outcome in broken:
        print(f"case {case}, {outcome.kind}: {'; '.join(outcome.problems)}: {outcome.line[:400]!r}")
    raise SystemExit(1 if broken else 0)
