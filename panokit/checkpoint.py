"""Runs that can be killed: all that the rest of a run depends on, in a file.

A checkpoint is a safetensors file: the tensors of `Run.state`, and in its metadata everything else as JSON, with the recipe. It
is written aside and renamed, and the one before is kept, so that there is a whole one at any moment.
"""

import json
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from panokit.errors import FallbackWarning, SettingError
from panokit.output import written_aside
from panokit.plain import differences
from panokit.run import Run

_MINUTE = 60.0


@final
class Checkpoint:
    """A callback that writes a run to a file while it is made, and takes it up again where it was.

    The resumed picture is that of the unbroken run, bit for bit, on any number of devices. The first rank writes and reads.

    Args:
        path: the file; beside it `PATH.before` keeps the one before.
        every: after how many steps; None: about once a minute, and not before the run has taken one. It is written, too, when
            the run is asked to stop. 0: never.
        resume: the checkpoint that a run starts from, the same file or another.
        again: whether a run starts from `path` where that is a checkpoint of the same panorama, and otherwise from `resume` or
            the beginning: for programs that start themselves again.

    Attributes:
        useful: whether `path` is a checkpoint of the last run.

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
        self._last = 0.0

    def on_run_start(self, run: Run) -> None:
        """Take the run up again.

        Raises:
            SettingError: there is no checkpoint `resume`, it is of another recipe, or it is damaged and so is the one before.
        """
        self._last, self.useful = time.monotonic(), False
        if state := run.runtime.broadcast(lambda: self._state(run.recipe)):
            run.restore(state)

    def on_step_end(self, run: Run) -> None:
        """Write it, where it is due."""
        if run.done or not run.runtime.writes or self.every == 0:
            return
        due = time.monotonic() - self._last >= _MINUTE if self.every is None else run.level.step % self.every == 0
        if due or run.stopping:
            self.write(run)
            self._last = time.monotonic()

    def write(self, run: Run) -> None:
        """Write it now.

        Raises:
            OutputError: the place cannot be written to.
        """
        tensors: dict[str, Tensor] = {}
        said = {"recipe": dict(run.recipe), "state": _plain(run.state(), tensors)}
        with written_aside(self.path) as aside:
            aside.write_bytes(save(tensors, {"panokit": json.dumps(said)}))
            if self.useful:  # a damaged one must not take the place of the one before
                self.path.replace(_before(self.path))
        self.useful = True

    def clear(self) -> None:
        """Delete what has served its purpose."""
        self.path.unlink(missing_ok=True)
        _before(self.path).unlink(missing_ok=True)

    def _state(self, recipe: Mapping[str, Any]) -> Any:
        """What to go on with; None to begin at the beginning."""
        if self.again and (self.path.exists() or _before(self.path).exists()):
            try:
                state = self._read(self.path, recipe)
            except SettingError as error:
                warnings.warn(f"{error}; it is left aside", FallbackWarning, stacklevel=2)
            else:
                return state
        if self.resume is None:
            return None
        try:
            return self._read(Path(self.resume), recipe)
        except SettingError as error:
            raise SettingError(f"{error}: give a checkpoint of this panorama, or start without one") from error

    def _read(self, last: Path, recipe: Mapping[str, Any]) -> Any:
        """The state in a checkpoint, or in the one before where it is damaged or missing."""
        problem = f"there is no checkpoint {last}"
        for path in (last, _before(last)):
            if not path.exists():
                continue
            try:
                said, state = read(path)
            except SettingError as error:
                problem = str(error)
                continue
            if found := differences(json.loads(json.dumps(recipe)), said):
                raise SettingError(
                    f"the checkpoint {path} is of another panorama: what is asked for and what was written differ, "
                    f"{'; '.join(found[:6])}"
                )
            if path != last:
                warnings.warn(f"{problem}; the one before it is used", FallbackWarning, stacklevel=2)
            self.useful = path == self.path
            return state
        raise SettingError(problem)


def _before(path: Path) -> Path:
    """The checkpoint before the last."""
    return path.with_name(f"{path.name}.before")


def read(path: Path) -> tuple[dict[str, Any], Any]:
    """The recipe and the state in a checkpoint.

    Raises:
        SettingError: it is none, or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            said = json.loads((file.metadata() or {})["panokit"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
        return said["recipe"], _whole(said["state"], tensors)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as cause:
        why = " ".join(str(cause).split())[:200]
        raise SettingError(f"the checkpoint {path} is damaged, or is none ({why})") from cause


def _plain(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Nested data as JSON takes it, with tensors put aside, each under a number."""
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
        f"what is a {type(value).__name__} cannot be kept in a checkpoint: a plugin's memory must hold tensors, numbers, text, "
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
