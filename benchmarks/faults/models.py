"""Broken model folders: a working model or one line, whatever is written into a file of one.

    python benchmarks/faults/models.py [FAMILY ...] [--seed 0] [--cases 200]

saves models in miniature, changes one value in one file at a time, loads the folder, and paints two steps. Each value of each
JSON file is replaced by hostile ones and left out, files are cut, emptied and filled with other bytes, and weights are renamed,
doubled and reshaped. `--cases` draws so many changes of each family by the seed; 0 makes all of them. Each change is tried in a
process of its own. A table counts the outcomes for each kind of change. The exit status is 1 if some outcome is neither a
picture nor one short line of an error of panokit, and those are listed.
"""

import argparse
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from safetensors.torch import load_file, save_file

from panokit import PanokitError, Runtime, Sampler
from panokit.testing.families import FAMILIES, tiny_pipeline

HOSTILE: dict[str, Any] = {
    "null": None,
    "text": "abc",
    "0": 0,
    "-5": -5,
    "1e30": 1e30,
    "a number of 400 digits": 10**400,
    "NaN": float("nan"),
    "true": True,
    "[]": [],
    "{}": {},
    "[null]": [None],
    "3 million": 3_000_000,
    "0.5": 0.5,
}
"""What takes the place of a value."""

SECONDS, LINE, MEMORY = 20, 400, 8 << 30
"""The most that a change may take: seconds, letters of the message, bytes of address space beside the weights."""


class Change(NamedTuple):
    """A change of one file of a model.

    Attributes:
        file: the path of the file in the model's folder.
        kind: what is done to it, for the table.
        place: where in the file.
        content: what the file then holds; None where it is gone.
    """

    file: str
    kind: str
    place: str
    content: bytes | None


class Outcome(NamedTuple):
    """What came of a change.

    Attributes:
        kind: `works`, `refused`, or what is wrong.
        line: the message of the error, or what else is there to see.
    """

    kind: str
    line: str


def saved(family: str, folder: Path) -> Path:
    """Save a model in miniature.

    Args:
        family: one of `FAMILIES`; or `plain`, a Stable Diffusion without an index, with the files of older tokenizers.
        folder: where it goes.
    """
    tiny_pipeline("sd" if family == "plain" else family).save_pretrained(folder)
    if family == "plain":
        (folder / "model_index.json").unlink()
        tokenizer = folder / "tokenizer" / "tokenizer.json"
        words = json.loads(tokenizer.read_text())["model"]["vocab"]
        rare = next(word for word, number in words.items() if number == 255)
        words = {"la" if word == rare else word: number for word, number in words.items()}
        (folder / "tokenizer" / "vocab.json").write_text(json.dumps(words))
        (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\nl a\n")
        tokenizer.unlink()
    return folder


def changes(folder: Path, generator: random.Random) -> Iterator[Change]:
    """All changes of a model's files; of long lists and mappings, those of three values.

    Args:
        folder: the model.
        generator: draws the three.
    """
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        file = str(path.relative_to(folder))
        content = path.read_bytes()
        yield from _changed_bytes(file, content)
        if path.suffix == ".json":
            yield from _changed_values(file, json.loads(content), generator)
        elif path.suffix == ".safetensors":
            yield from _changed_weights(path, file)


def _changed_bytes(file: str, content: bytes) -> Iterator[Change]:
    yield Change(file, "is gone", "", None)
    yield Change(file, "is empty", "", b"")
    yield Change(file, "is cut", "", content[: len(content) // 2])
    yield Change(file, "is cut", "at its end", content[:-3])
    yield Change(file, "is not UTF-8", "", b"\xff\xfe" + content)
    yield Change(
        file, "is not UTF-8", "in its middle", content[: len(content) // 2] + b"\xff\xfe" + content[len(content) // 2 :]
    )
    yield Change(file, "is another file", "", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    yield Change(file, "is a list", "", b"[]")
    yield Change(file, "is nested", "500 deep", b"[" * 500 + b"]" * 500)
    yield Change(file, "is nested", "200000 deep", b"[" * 200_000)


def _changed_values(file: str, content: Any, generator: random.Random) -> Iterator[Change]:
    nested: Any = 1
    for _ in range(500):
        nested = [nested]
    for place in _places(content, (), generator):
        name = ".".join(map(str, place))
        for kind, value in {**HOSTILE, "nested 500 deep": nested}.items():
            yield Change(
                file, kind, name, _with(content, place, lambda holder, key, value=value: holder.__setitem__(key, value))
            )
        yield Change(file, "left out", name, _with(content, place, lambda holder, key: holder.__delitem__(key)))


def _places(value: Any, place: tuple[Any, ...], generator: random.Random) -> Iterator[tuple[Any, ...]]:
    keys = [*(value if isinstance(value, dict) else range(len(value)))] if isinstance(value, dict | list) else []
    some = keys if len(keys) <= 80 else [keys[0], generator.choice(keys), keys[-1]]
    for key in some:
        yield (*place, key)
        yield from _places(value[key], (*place, key), generator)


def _with(content: Any, place: tuple[Any, ...], change: Callable[[Any, Any], None]) -> bytes:
    copy = json.loads(json.dumps(content))
    holder = copy
    for key in place[:-1]:
        holder = holder[key]
    change(holder, place[-1])
    return json.dumps(copy).encode()


def _changed_weights(path: Path, file: str) -> Iterator[Change]:
    tensors = load_file(path)
    first, last = min(tensors), max(tensors)

    def saved_with(kind: str, place: str, other: dict[str, torch.Tensor]) -> Change:
        temporary = path.with_suffix(".changed")
        save_file({key: value.contiguous() for key, value in other.items()}, temporary, {"format": "pt"})
        content = temporary.read_bytes()
        temporary.unlink()
        return Change(file, kind, place, content)

    for key in (first, last):
        rest = {name: value for name, value in tensors.items() if name != key}
        yield saved_with("has no such weight", key, rest)
        yield saved_with("has a renamed weight", key, {**rest, f"{key}_": tensors[key]})
        yield saved_with("has a weight of other shape", key, {**rest, key: torch.ones(3, 5)})
        yield saved_with("has an empty weight", key, {**rest, key: torch.ones(0)})
        yield saved_with("has whole numbers", key, {**rest, key: tensors[key].long()})
        yield saved_with("has complex numbers", key, {**rest, key: tensors[key].to(torch.complex64)})
        yield saved_with("has NaN", key, {**rest, key: tensors[key] * float("nan")})
        yield saved_with("has a weight more", f"model.{key}", {**tensors, f"model.{key}": tensors[key].clone()})
        yield saved_with("has a weight more", f"text_model.{key}", {**tensors, f"text_model.{key}": tensors[key].clone()})
        yield saved_with("has a weight more", f"{key}.1", {**tensors, f"{key}.1": tensors[key].clone()})
    yield saved_with("has no weights", "", {})
    yield saved_with("has a prefix", "text_model.", {f"text_model.{key}": value for key, value in tensors.items()})
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    for place, value in {
        "its length": (1 << 40).to_bytes(8, "little") + content[8:],
        "offsets": _with_header({**header, first: {**header[first], "data_offsets": [0, 1 << 40]}}, content[8 + size :]),
        "shape": _with_header({**header, first: {**header[first], "shape": [-1, 1 << 62]}}, content[8 + size :]),
        "dtype": _with_header({**header, first: {**header[first], "dtype": "F99"}}, content[8 + size :]),
        "metadata": _with_header({**header, "__metadata__": [1]}, content[8 + size :]),
        "no metadata": _with_header({k: v for k, v in header.items() if k != "__metadata__"}, content[8 + size :]),
    }.items():
        yield Change(file, "has a header that lies", place, value)


def _with_header(header: dict[str, Any], rest: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + rest


def written(change: Change, folder: Path, into: Path) -> Path:
    """The folder of a model with one change. The other files are links."""
    shutil.rmtree(into, ignore_errors=True)
    shutil.copytree(folder, into, copy_function=os.link)
    (into / change.file).unlink()
    if change.content is not None:
        (into / change.file).write_bytes(change.content)
    return into


def paint(source: str) -> None:
    """Load a model and paint two steps.

    Raises:
        PanokitError: it cannot be loaded, or its network cannot compute.
    """
    sampler = Sampler(source, runtime=Runtime(accelerator="cpu"))
    high, wide = (cells * sampler.model.factor for cells in sampler.model.denoiser.window)
    sampler("a lake", height=high, width=wide, steps=2, progress=False)


def judged(error: BaseException | None, printed: str, seconds: float) -> Outcome:
    """What an error and the prints of a trial come to."""
    if error is not None and not isinstance(error, PanokitError):
        where = "".join(traceback.format_exception(error)[-3:])
        return Outcome(f"raises {type(error).__name__}", where)
    line = str(error or "")
    if "\n" in line or len(line) > LINE:
        return Outcome("raises a long message", line)
    if printed.strip():
        return Outcome("prints", f"{printed} {line}")
    if seconds > SECONDS:
        return Outcome("takes long", f"{seconds:.0f} s {line}")
    if error is None:
        return Outcome("works", "")
    return Outcome("refused" if type(error).__name__ in ("ModelError", "SettingError") else type(error).__name__, line)


def tried(source: Path, known: frozenset[str]) -> Outcome:
    """Load a changed model and paint two steps in a process of its own, and judge what came of it.

    Args:
        source: the folder.
        known: the packages that a good model imports.
    """
    reader, writer = os.pipe()
    printed = tempfile.TemporaryFile()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _try(source, known, writer, printed.fileno())
    os.close(writer)
    said, ended = b"", time.monotonic() + 3 * SECONDS
    while select.select([reader], [], [], max(0.0, ended - time.monotonic()))[0]:
        more = os.read(reader, 65536)
        said += more
        if not more:
            break
    else:
        os.kill(child, signal.SIGKILL)
    os.close(reader)
    status = os.waitpid(child, 0)[1]
    printed.seek(0)
    text = printed.read().decode(errors="replace")
    if not said:
        return Outcome("hangs" if status == signal.SIGKILL else f"ends with status {status}", text[-2000:])
    return Outcome(*json.loads(said))


def _try(source: Path, known: frozenset[str], writer: int, printed: int) -> NoReturn:
    """The child of `tried`: it writes an outcome into a pipe."""
    for stream in (1, 2):
        os.dup2(printed, stream)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    began, error = time.monotonic(), None
    warnings.simplefilter("ignore")
    try:
        paint(str(source))
    except BaseException as caught:  # whatever it is, it is judged
        error = caught
    seconds = time.monotonic() - began
    sys.stdout.flush()
    sys.stderr.flush()
    size = os.lseek(printed, 0, os.SEEK_END)
    outcome = judged(error, os.pread(printed, size, 0).decode(errors="replace"), seconds)
    strangers = {name.partition(".")[0] for name in sys.modules} - known
    if strangers and outcome.kind in ("works", "refused"):
        outcome = Outcome("imports", f"{', '.join(sorted(strangers))} {outcome.line}")
    os.write(writer, json.dumps(outcome).encode())
    os._exit(0)


def table(rows: Iterable[tuple[Change, Outcome]]) -> str:
    """How often each kind of change had each outcome."""
    counts = Counter((change.kind, outcome.kind) for change, outcome in rows)
    kinds = dict.fromkeys(kind for kind, _ in counts)
    outcomes = sorted(dict.fromkeys(outcome for _, outcome in counts))
    lines = [f"{'change':32}" + "".join(f"{outcome:>24}" for outcome in outcomes)]
    lines += [f"{kind:32}" + "".join(f"{counts[kind, outcome] or '':>24}" for outcome in outcomes) for kind in kinds]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("families", nargs="*", default=["plain", *FAMILIES])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--only", default="", help="a pattern that file, kind and place match")
    parser.add_argument("--log")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[tuple[Change, Outcome]] = []
    log = open(options.log, "w") if options.log else None
    with tempfile.TemporaryDirectory() as home:
        for family in options.families:
            generator = random.Random(options.seed)
            folder = saved(family, Path(home, family))
            paint(str(folder))
            known = frozenset(name.partition(".")[0] for name in sys.modules)
            all_changes = [c for c in changes(folder, generator) if re.search(options.only, f"{c.file} {c.kind} {c.place}")]
            if options.cases and options.cases < len(all_changes):
                all_changes = generator.sample(all_changes, options.cases)
            for change in all_changes:
                outcome = tried(written(change, folder, Path(home, "changed")), known)
                rows.append((change, outcome))
                if log:
                    print(json.dumps([family, change.file, change.kind, change.place, *outcome]), file=log, flush=True)
    print(table(rows))
    wrong = [(change, outcome) for change, outcome in rows if outcome.kind not in ("works", "refused")]
    for change, outcome in wrong:
        print(f"{change.file}: {change.place} {change.kind}: {outcome.kind}: {' '.join(outcome.line.split())[-300:]}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
