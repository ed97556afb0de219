"""The files that a command writes: pictures, previews, latents and checkpoints."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

from panokit import boxes, films
from panokit.errors import OutputError, SettingError
from panokit.files import beside, check_format, check_output, try_files
from panokit.recipe import name_of
from panokit.writing import check_picture


@final
@dataclass(frozen=True, kw_only=True)
class Output:
    """Output files.

    Attributes:
        out: The file of the picture or film; its ending sets the format, and .dzi makes tiles for a viewer. Films are .mp4,
            .webm or .webp. Or a folder, in which prompt and seed name the files.
        sheet: A file for a contact sheet, which shows all pictures, smaller and side by side.
        latents: Also write the latents of each picture, in a safetensors file next to it.
        preview: A file that shows the panorama after each step. For a film it is a sheet of frames, or a film too.
        resume: A checkpoint to continue from. Use it with the command that wrote the checkpoint.
        checkpoint_every: Steps from one checkpoint to the next; 0 writes none. The default is one checkpoint each minute. An
            interrupted run writes one more.
        quiet: Show no progress.
        progress: How progress is shown. bar is a bar in a terminal; json is a line of JSON for each picture and step on
            standard output, which a script can read.
        dry_run: Say what the pictures are going to be, and how much work they are, and make none.
        again: Whether the same command, started again, keeps the pictures that exist and makes the others.
    """

    out: str | None = None
    sheet: str | None = None
    latents: bool = False
    preview: str | None = None
    resume: str | None = None
    checkpoint_every: int | None = None
    quiet: bool = False
    progress: Literal["bar", "json"] = "bar"
    dry_run: bool = False
    again: bool = False

    @property
    def folder(self) -> Path | None:
        """The folder of pictures that are named by prompt and seed, the current one by default; None if `out` is one file."""
        return Path(self.out or ".") if self.out is None or self.out.endswith("/") or os.path.isdir(self.out) else None

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
        if self.folder and not self.folder.is_dir():
            raise OutputError(f"cannot write to {self.out}: there is no such folder; make it first")
        self.check_files(self.folder / ".panokit.png" if self.folder else Path(str(self.out)))

    def check_files(self, path: Path, size: tuple[int, int] = (1, 1), frames: int | None = None) -> None:
        """Check that a picture and all that is written beside it can be written, each to a file of its own.

        Args:
            path: the file of the picture.
            size: width and height of the picture, in pixels.
            frames: those of a film; 1 for a picture, and None if it is not known yet which it is.

        Raises:
            OutputError: a file cannot be written, or its format does not hold the picture.
            SettingError: two options name one file, or a package is missing.
        """
        check_file(path, size, frames)
        if self.preview:
            check_preview(Path(self.preview), size, frames)
        if self.sheet:
            check_format(Path(self.sheet))
        try_files(self._files(path))

    def _files(self, path: Path) -> dict[str, Path]:
        """The files that are written for one picture, by the option that asks for each."""
        files = {"--out": path}
        if self.latents:
            files["--latents"] = latents_of(path)
        files |= {f"--{name}": Path(file) for name in ("sheet", "preview") if (file := getattr(self, name))}
        if self.checkpoint_every != 0:
            files["the checkpoint of --out"] = checkpoint_of(path)
            files["the checkpoint of --out before the last"] = before(checkpoint_of(path))
        return files

    def path(self, recipe: Mapping[str, Any]) -> Path:
        """The file of the picture or film that a recipe makes."""
        if not self.folder:
            return Path(str(self.out))
        return self.folder / f"{name_of(recipe)}{films.ending() if films.frames_of(recipe) > 1 else '.png'}"


def check_file(path: Path, size: tuple[int, int] = (1, 1), frames: int | None = None) -> None:
    """Check that a picture or a film can be written to a file. Call it before a long run.

    Args:
        path: the file, whose ending names the format.
        size: width and height in pixels.
        frames: those of a film; 1 for a picture, and None if it is not known yet which it is.

    Raises:
        OutputError: the format does not hold it, or the file cannot be written.
        SettingError: a package is missing that writes it.
    """
    if frames is None and boxes.is_boxed(path):
        films.check_film(path, (2, 2), 1)
    elif frames is None or frames == 1:
        check_picture(path, size)
    else:
        films.check_film(path, size, frames)


def check_preview(path: Path, size: tuple[int, int] = (1, 1), frames: int | None = None) -> None:
    """Check that a preview can be written to a file: of a film it may be a film, or a sheet of its frames.

    Args:
        path: the file, whose ending names the format.
        size: width and height of the panorama, in pixels.
        frames: those of a film; 1 for a picture, and None if it is not known yet which it is.

    Raises:
        OutputError: the format does not hold it, or the file cannot be written.
        SettingError: a package is missing that writes it.
    """
    if boxes.is_boxed(path):
        check_file(path, size, frames)
    else:
        check_output(path, (1, 1) if frames and frames > 1 else size)


def latents_of(path: Path) -> Path:
    """The file of the latents of a picture."""
    return path.with_suffix(".safetensors")


def checkpoint_of(path: Path) -> Path:
    """The file of the last checkpoint of a picture."""
    return beside(path, ".checkpoint")


def before(path: Path) -> Path:
    """The file that keeps the checkpoint before the last one."""
    return beside(path, ".before")
