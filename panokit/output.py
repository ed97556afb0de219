"""Where pictures go, and what else is written."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from panokit.errors import OutputError, SettingError
from panokit.recipe import name_of


@final
@dataclass(frozen=True, kw_only=True)
class Output:
    """Where pictures go, and what else is written.

    Attributes:
        out: The picture to write, whose ending names the format; or a folder, where pictures are named by prompt and seed.
        sheet: A picture of all pictures, smaller and side by side, to write as well.
        latents: Write the latents too, beside each picture, as safetensors.
        preview: A picture to write again after each step: what the panorama will look like.
        resume: A checkpoint to go on from, with the command that wrote it.
        checkpoint_every: Steps from one checkpoint to the next, and one when interrupted; 0 for none. Unless given, once a
            minute.
        quiet: Show no progress.
        again: Whether the same command, given again, leaves what is there and goes on with the rest.
    """

    out: str | None = None
    sheet: str | None = None
    latents: bool = False
    preview: str | None = None
    resume: str | None = None
    checkpoint_every: int | None = None
    quiet: bool = False
    again: bool = False

    @property
    def folder(self) -> Path | None:
        """Where pictures are named after their jobs, if they are; the current folder unless `out` is given."""
        return Path(self.out or ".") if self.out is None or self.out.endswith("/") or Path(self.out).is_dir() else None

    def check(self, count: int) -> None:
        """Raise a PanokitError if so many pictures cannot be written so."""
        if self.folder is None and count > 1:
            raise SettingError(
                f"{count} pictures do not go into one file {self.out}: name a folder, {Path(self.out or '.').parent}/"
            )
        if self.resume and count > 1:
            raise SettingError(f"a checkpoint is of one picture, not of {count}: --jobs takes up all of them by itself")
        if self.checkpoint_every is not None and self.checkpoint_every < 0:
            raise SettingError(f"checkpoint_every is {self.checkpoint_every}: it must be a number of steps, or 0 for never")
        self._check_formats((self._picture, self.sheet, self.preview))

    def check_size(self, size: tuple[int, int]) -> None:
        """Raise an OutputError if the formats do not hold a picture of that width and height."""
        self._check_formats((self._picture, self.preview), size)

    def _check_formats(self, targets: tuple[str | None, ...], size: tuple[int, int] = (1, 1)) -> None:
        for target in targets:
            if target:
                check_output(target, size)

    @property
    def _picture(self) -> str:
        return str(self.folder / "picture.png") if self.folder else str(self.out)

    def path(self, recipe: Mapping[str, Any]) -> Path:
        """The file of a picture."""
        return self.folder / f"{name_of(recipe)}.png" if self.folder else Path(str(self.out))


_FORMATS: dict[str | None, int] = {
    "PNG": 1 << 31,
    "JPEG": 65_500,
    "WEBP": 16_383,
    "TIFF": 1 << 31,
    "BMP": 1 << 31,
    "PPM": 1 << 31,
}
"""What pictures are written as, and how many pixels a side each format holds."""


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place when all is written; never half a file.

    Raises:
        OutputError: it cannot be written.
    """
    aside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield aside
        aside.replace(path)
    except (OSError, ValueError) as cause:
        reason = cause.strerror if isinstance(cause, OSError) else None
        raise OutputError(f"cannot write {path}: {reason or cause}") from cause
    finally:
        aside.unlink(missing_ok=True)


def check_output(path: str | os.PathLike[str], size: tuple[int, int] = (1, 1)) -> Path:
    """The path, if a picture of `size`, (width, height), can be written there; asked before a long run as well as after it.

    Raises:
        OutputError: the ending is unknown, its format does not hold such a picture, the folder is missing, or it cannot be
            written to.
    """
    from PIL import Image

    path = Path(path)
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in _FORMATS:
        raise OutputError(f"cannot write {path}: its ending {path.suffix!r} names no picture format; try .png, .jpg or .webp")
    largest = _FORMATS[kind]
    if max(size) > largest:
        raise OutputError(f"cannot write {path}: {kind} holds {largest} pixels a side, and the picture is {size}; try .png")
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; name a file in it")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise OutputError(f"cannot write {path}: permission denied; choose another place")
    return path
