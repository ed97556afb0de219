"""Checkpoints: files that hold everything that the rest of a run depends on, so that a killed run can continue.

A checkpoint is a safetensors file. It holds the tensors of `Run.state`, and in its metadata the rest of the state and the
recipe as JSON, and a SHA-256 of all of it. It is written under another name and then renamed, and the checkpoint before it is
kept. So at any moment there is a complete one, and a damaged one is noticed.
"""

import hashlib
import json
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from panokit.errors import FallbackWarning, SettingError, reason_of
from panokit.extra import Extra
from panokit.files import written_aside
from panokit.output import before
from panokit.plain import differences
from panokit.run import Run

_MINUTE = 60.0


@final
class Checkpoint:
    """A callback that writes checkpoints of a run, and continues a run from one.

    A continued run makes the picture of the unbroken one, bit for bit, on any number of devices. Rank 0 writes and reads. If a
    checkpoint cannot be written, the run goes on, with a warning, and the one before stays.

    Args:
        path: the file. The checkpoint before it is kept beside it, as `PATH.before`.
        every: steps from one checkpoint to the next; None for about once a minute; 0 for never. With None or a number, one is
            also written when the run is asked to stop.
        resume: the checkpoint to start from, `path` or another file; None for none.
        again: whether to start from `path` if it is a checkpoint of the same panorama, and otherwise from `resume` or from
            noise. It is for programs that start themselves again.

    Attributes:
        useful: whether `path` is a checkpoint of the current or last run.

    Raises:
        SettingError: `every` is negative.
    """

    def __init__(
        self, path: str | Path, every: int | None = None, resume: str | Path | None = None, again: bool = False
    ) -> None:
        if every is not None and every < 0:
            raise SettingError(f"every is {every}: it must be a number of steps, 0 for never, or None for once a minute")
        self.path, self.every, self.resume, self.again = Path(path), every, resume, again
        self.useful = False
        self._last, self._extra = 0.0, Extra("the run goes on without a new checkpoint")

    def on_run_start(self, run: Run) -> None:
        """Continue the run from its checkpoint, if there is one to start from.

        Raises:
            SettingError: the checkpoint `resume` has another recipe, or it and the one before are missing or damaged.
        """
        self._last, self.useful = time.monotonic(), False
        if state := run.runtime.broadcast(lambda: self._state(run.recipe)):
            run.restore(state)

    def on_step_end(self, run: Run) -> None:
        """Write a checkpoint, if one is due."""
        if not run.done:
            self._write_if_due(run, run.level.step)

    def on_inner_step_end(self, run: Run) -> None:
        """Write a checkpoint, if one is due, while a guidance paints another canvas."""
        innermost = run
        while innermost.inner:
            innermost = innermost.inner
        self._write_if_due(run, innermost.level.step)

    def _write_if_due(self, run: Run, step: int) -> None:
        if not run.runtime.writes or self.every == 0:
            return
        due = time.monotonic() - self._last >= _MINUTE if self.every is None else step % self.every == 0
        if due or run.stopping:
            with self._extra:
                self.write(run)
            self._last = time.monotonic()

    def write(self, run: Run) -> None:
        """Write a checkpoint now.

        Args:
            run: the run to write.

        Raises:
            OutputError: the file cannot be written.
            SettingError: a plugin's memory holds something that a checkpoint cannot hold.
        """
        tensors: dict[str, Tensor] = {}
        content = json.dumps({"recipe": dict(run.recipe), "state": _plain(run.state(), tensors)})
        with written_aside(self.path) as aside:
            aside.write_bytes(save(tensors, {"panokit": content, "sha256": _checksum(content, tensors)}))
            if self.useful and self.path.exists():  # a damaged checkpoint must not replace the one before
                self.path.replace(before(self.path))
        self.useful = True

    def clear(self) -> None:
        """Delete the checkpoint and the one before."""
        self.path.unlink(missing_ok=True)
        before(self.path).unlink(missing_ok=True)

    def _state(self, recipe: Mapping[str, Any]) -> Any:
        """The state to start from; None to start from noise."""
        if self.again and (self.path.exists() or before(self.path).exists()):
            try:
                state = self._read(self.path, recipe)
            except SettingError as error:
                warnings.warn(f"{error}; it is not used", FallbackWarning, stacklevel=2)
            else:
                return state
        if self.resume is None:
            return None
        try:
            return self._read(Path(self.resume), recipe)
        except SettingError as error:
            raise SettingError(f"{error}: give a checkpoint of this panorama, or start without one") from error

    def _read(self, last: Path, recipe: Mapping[str, Any]) -> Any:
        """The state in a checkpoint; in the one before, if the last one is damaged or missing."""
        problem = f"there is no checkpoint {last}"
        for path in (last, before(last)):
            if not path.exists():
                continue
            try:
                written, state = read(path)
            except SettingError as error:
                problem = str(error)
                continue
            if differing := differences(json.loads(json.dumps(recipe)), written):
                raise SettingError(
                    f"the checkpoint {path} is of another panorama: this run and the checkpoint differ, "
                    f"{'; '.join(differing[:6])}"
                )
            if path != last:
                warnings.warn(f"{problem}; the one before it is used", FallbackWarning, stacklevel=2)
            self.useful = path == self.path
            return state
        raise SettingError(problem)


def read(path: Path) -> tuple[dict[str, Any], Any]:
    """The recipe and the state in a checkpoint.

    Args:
        path: the file.

    Raises:
        SettingError: the file is damaged, or is no checkpoint.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a safetensors file is no mapping
        if metadata.get("sha256") != _checksum(metadata["panokit"], tensors):
            raise ValueError("its checksum differs")
        content = json.loads(metadata["panokit"])
        return content["recipe"], _whole(content["state"], tensors)
    except Exception as cause:  # a damaged file can break its reader anywhere
        raise SettingError(f"the checkpoint {path} is damaged, or is no checkpoint ({reason_of(cause)})") from cause


def _checksum(content: str, tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of a checkpoint's JSON and tensors: their names, types, shapes and bytes."""
    digest = hashlib.sha256(content.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _plain(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Nested data as JSON takes it. Tensors are put into `tensors`, under numbers."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"items": [[_plain(key, tensors), _plain(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_plain(item, tensors) for item in value]}
    if isinstance(value, bool | int | float | str | None):
        return value
    raise SettingError(
        f"a checkpoint cannot hold a {type(value).__name__}: a plugin's memory must hold tensors, numbers, text, "
        "and lists and dicts of them"
    )


def _whole(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `_plain`."""
    match value:
        case {"tensor": name}:
            return tensors[name]
        case {"items": items}:
            return {_whole(key, tensors): _whole(item, tensors) for key, item in items}
        case {"list": items}:
            return [_whole(item, tensors) for item in items]
        case {"tuple": items}:
            return tuple(_whole(item, tensors) for item in items)
        case _:
            return value
