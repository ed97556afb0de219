"""The files that a command writes: pictures, previews, latents and checkpoints."""

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
    """Output files.

    Attributes:
        out: The file of the picture; its ending sets the format. Or a folder, in which prompt and seed name the files.
        sheet: A file for a contact sheet, which shows all pictures, smaller and side by side.
        latents: Also write the latents of each picture, in a safetensors file next to it.
        preview: A file that shows the panorama after each step.
        resume: A checkpoint to continue from. Use it with the command that wrote the checkpoint.
        checkpoint_every: Steps from one checkpoint to the next; 0 writes none. The default is one checkpoint each minute. An
            interrupted run writes one more.
        quiet: Show no progress.
        again: Whether the same command, started again, keeps the pictures that exist and makes the others.
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
        """The folder of pictures that are named by prompt and seed, the current one by default; None if `out` is one file."""
        return Path(self.out or ".") if self.out is None or self.out.endswith("/") or Path(self.out).is_dir() else None

    def check(self, count: int) -> None:
        """Check that the pictures can be written.

        Args:
            count: number of pictures.

        Raises:
            SettingError: the settings do not fit that many pictures.
            OutputError: a file cannot be written.
        """
        if self.folder is None and count > 1:
            raise SettingError(
                f"{count} pictures cannot be written to one file {self.out}: name a folder, {Path(self.out or '.').parent}/"
            )
        if self.resume and count > 1:
            raise SettingError(
                f"a checkpoint is of one picture, not of {count}: leave --resume out, --jobs continues by itself"
            )
        if self.checkpoint_every is not None and self.checkpoint_every < 0:
            raise SettingError(f"checkpoint_every is {self.checkpoint_every}: it must be a number of steps, or 0 for never")
        self._check_formats((self._picture, self.sheet, self.preview))

    def check_size(self, size: tuple[int, int]) -> None:
        """Check that the formats hold a picture of that size.

        Args:
            size: width and height in pixels.

        Raises:
            OutputError: a format does not hold it.
        """
        self._check_formats((self._picture, self.preview), size)

    def _check_formats(self, targets: tuple[str | None, ...], size: tuple[int, int] = (1, 1)) -> None:
        for target in targets:
            if target:
                check_output(target, size)

    @property
    def _picture(self) -> str:
        return str(self.folder / "picture.png") if self.folder else str(self.out)

    def path(self, recipe: Mapping[str, Any]) -> Path:
        """The file of the picture that a recipe makes."""
        return self.folder / f"{name_of(recipe)}.png" if self.folder else Path(str(self.out))


_FORMATS: dict[str | None, int] = {
    "PNG": 1 << 31,
    "JPEG": 65_500,
    "WEBP": 16_383,
    "TIFF": 1 << 31,
    "BMP": 1 << 31,
    "PPM": 1 << 31,
}
"""The formats of pictures, and the most pixels along a side that each holds."""


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Write a file under another name and rename it at the end, so there is never half a file.

    Args:
        path: the file.

    Yields:
        The path to write to, in the same folder.

    Raises:
        OutputError: the file cannot be written.
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
    """Check that a picture can be written to a file. Call it before a long run, and again after it.

    Args:
        path: the file, whose ending names the format.
        size: width and height of the picture, in pixels.

    Returns:
        The path.

    Raises:
        OutputError: the ending is unknown, the format does not hold such a picture, the folder is missing, or the file cannot
            be written.
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
