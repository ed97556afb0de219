"""Broken model folders: a working model or one line, whatever is written into a file of one.

    python benchmarks/faults/models.py [NAME ...] [--seed 0] [--cases 200]

saves models in miniature and what may be added to them, changes one file at a time, loads the model, and paints two steps. Each
value of each JSON file is replaced by hostile ones and left out, files are cut, emptied and filled with other bytes, and
weights are renamed, doubled and reshaped. Each change is tried in a process of its own. A table counts the outcomes for each
kind of change. The exit status is 1 if some outcome is neither a picture nor one short line of an error of panokit with nothing
else on standard error and nothing imported that a good model does not import. Those are listed.
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
from PIL import Image
from safetensors.torch import load_file, save_file

from panokit import PanokitError, Runtime, Sampler, errors
from panokit.testing.families import (
    FAMILIES,
    save_tiny_embedding,
    save_tiny_ip_adapter,
    save_tiny_lora,
    tiny_controlnet,
    tiny_pipeline,
)
from panokit.testing.hostile import HOSTILE, places, with_value

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

    @property
    def words(self) -> str:
        """The change in words."""
        return " ".join(filter(None, (self.file, self.place, self.kind)))


class Outcome(NamedTuple):
    """What came of a change.

    Attributes:
        kind: `works`, the name of an error of panokit, or what is wrong.
        line: the message of the error, or what else is there to see.
    """

    kind: str
    line: str


class Target(NamedTuple):
    """What is changed, and the model that it is a part of.

    Attributes:
        folder: the folder whose files are changed.
        model: makes the model, as `Sampler` takes it, of the changed folder.
    """

    folder: Path
    model: Callable[[Path], dict[str, Any]]


def saved(name: str, home: Path) -> Target:
    """Save what is changed, in miniature.

    Args:
        name: one of `FAMILIES`; `plain`, a Stable Diffusion without an index, with the files of older tokenizers; or one of
            `ADDED`, which is added to a Stable Diffusion.
        home: the folder for all of it.
    """
    folder, pipe = home / name, tiny_pipeline(name if name in FAMILIES else "sd")
    if name in FAMILIES or name == "plain":
        pipe.save_pretrained(folder)
        if name == "plain":
            _make_older(folder)
        small = {} if name in ("plain", "sdxl") else {"window": 16}  # others paint 1024 pixels by themselves
        return Target(folder, lambda changed: {"plugin": str(changed), **small})
    ADDED[name](pipe, folder)
    pipe.save_pretrained(home / "sd")
    return Target(folder, lambda changed: _with_added(name, home / "sd", changed))


def _make_older(folder: Path) -> None:
    (folder / "model_index.json").unlink()
    tokenizer = folder / "tokenizer" / "tokenizer.json"
    words = json.loads(tokenizer.read_text())["model"]["vocab"]
    rare = next(word for word, number in words.items() if number == 255)
    words = {"la" if word == rare else word: number for word, number in words.items()}
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(words))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\nl a\n")
    tokenizer.unlink()


def _save_network(pipe: Any, folder: Path) -> None:
    folder.mkdir()
    save_file(pipe.unet.state_dict(), folder / "network.safetensors")


def _save_embedding(pipe: Any, folder: Path) -> None:
    folder.mkdir()
    save_tiny_embedding(pipe, folder)


ADDED: dict[str, Callable[[Any, Path], Any]] = {
    "lora": save_tiny_lora,
    "embedding": _save_embedding,
    "ip_adapter": save_tiny_ip_adapter,
    "controlnet": lambda pipe, folder: tiny_controlnet("sd").controlnet.save_pretrained(folder),
    "vae": lambda pipe, folder: pipe.vae.save_pretrained(folder),
    "file": _save_network,
}
"""What may be added to a model, and a single file of a network; each with what saves it in a folder."""


def _with_added(name: str, model: Path, changed: Path) -> dict[str, Any]:
    if name == "file":
        return {"plugin": str(changed / "network.safetensors"), "config": str(model)}
    several = {"lora": "loras", "embedding": "embeddings"}
    if name in several:
        return {"plugin": str(model), several[name]: [{"path": str(changed)}]}
    return {"plugin": str(model), name: {"path": str(changed)} if name == "ip_adapter" else str(changed)}


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
    def some(keys: list[Any]) -> list[Any]:
        return keys if len(keys) <= 80 else [keys[0], generator.choice(keys), keys[-1]]

    for place in places(content, some=some):
        for kind, raw in {**HOSTILE, "left out": None}.items():
            yield Change(file, kind, ".".join(map(str, place)), with_value(content, place, raw).encode())


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


def paint(model: dict[str, Any]) -> None:
    """Load a model and paint two steps.

    Args:
        model: its folder and settings, as `Sampler` takes them.

    Raises:
        PanokitError: it cannot be loaded, or its network cannot compute.
    """
    sampler = Sampler(model, runtime=Runtime(accelerator="cpu"))
    denoiser = sampler.model.denoiser
    high, wide = (cells * sampler.model.factor for cells in denoiser.window[-2:])
    pictures = dict.fromkeys(
        [*denoiser.fields, *["ip_adapter_image"] * denoiser.has_ip_adapter], Image.new("RGB", (wide, high))
    )
    sampler("a lake", height=high, width=wide, frames=1, steps=2, progress=False, **pictures)


def judged(error: BaseException | None, printed: str = "", seconds: float = 0.0) -> Outcome:
    """What an error, the prints and the time of a trial come to. Sound are `works` and the names of panokit's errors."""
    line = str(error or "")
    if error is not None and not isinstance(error, PanokitError):
        return Outcome(f"raises {type(error).__name__}", "".join(traceback.format_exception(error)[-3:]))
    if "\n" in line or len(line) > LINE:
        return Outcome("raises a long message", line)
    if printed.strip():
        return Outcome("prints", f"{printed} {line}")
    if seconds > SECONDS:
        return Outcome("takes long", f"{seconds:.0f} s {line}")
    return Outcome("works" if error is None else type(error).__name__, line)


def is_sound(outcome: Outcome) -> bool:
    """Whether a trial ended as it must."""
    return outcome.kind == "works" or hasattr(errors, outcome.kind)


def tried(model: dict[str, Any], known: frozenset[str]) -> Outcome:
    """Load a changed model and paint two steps in a process of its own, and judge what came of it.

    Args:
        model: its folder and settings.
        known: the packages that a good model imports.
    """
    reader, writer = os.pipe()
    with tempfile.TemporaryFile() as printed:
        child = os.fork()
        if child == 0:
            os.close(reader)
            _try(model, known, writer, printed.fileno())
        os.close(writer)
        if not select.select([reader], [], [], 3 * SECONDS)[0]:
            os.kill(child, signal.SIGKILL)
        with open(reader, "rb") as pipe:
            answer = pipe.read()
        status = os.waitpid(child, 0)[1]
        printed.seek(0)
        text = printed.read().decode(errors="replace")
    return Outcome(*json.loads(answer)) if answer else Outcome(f"ends with status {status}", text[-2000:])


def _try(model: dict[str, Any], known: frozenset[str], writer: int, printed: int) -> NoReturn:
    """The child of `tried`: it writes an outcome into a pipe."""
    for stream in (1, 2):
        os.dup2(printed, stream)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    began, error = time.monotonic(), None
    warnings.simplefilter("ignore")
    try:
        paint(model)
    except BaseException as caught:  # whatever it is, it is judged
        error = caught
    seconds = time.monotonic() - began
    sys.stdout.flush()
    sys.stderr.flush()
    size = os.lseek(printed, 0, os.SEEK_END)
    outcome = judged(error, os.pread(printed, size, 0).decode(errors="replace"), seconds)
    strangers = {name.partition(".")[0] for name in sys.modules} - known
    if strangers and is_sound(outcome):
        outcome = Outcome("imports", f"{', '.join(sorted(strangers))} {outcome.line}")
    with open(writer, "w") as pipe:
        json.dump(outcome, pipe)
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
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", default=["plain", *FAMILIES, *ADDED], help="what is changed; by default all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=200, help="changes of each, drawn by the seed; 0 for all")
    parser.add_argument("--only", default="", help="a pattern that is looked for in the words of a change")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[tuple[Change, Outcome]] = []
    for name in options.names:
        generator = random.Random(options.seed)
        with tempfile.TemporaryDirectory() as home:
            target = saved(name, Path(home))
            paint(target.model(target.folder))
            known = frozenset(module.partition(".")[0] for module in sys.modules)
            some = [change for change in changes(target.folder, generator) if re.search(options.only, change.words)]
            if 0 < options.cases < len(some):
                some = generator.sample(some, options.cases)
            for change in some:
                rows.append((change, tried(target.model(written(change, target.folder, Path(home, "changed"))), known)))
                if not is_sound(rows[-1][1]):
                    print(
                        f"{name}: {change.words}: {rows[-1][1].kind}: {' '.join(rows[-1][1].line.split())[-300:]}", flush=True
                    )
    print(table(rows))
    return 0 if all(is_sound(outcome) for _, outcome in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
