"""Files: they are tried before a long run, and written whole or not at all."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from panokit.errors import OutputError, SettingError

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE, AREA = 16_384, 1 << 27
"""The most pixels of a side, and of all, of an ordinary picture. Browsers show no larger ones, and they fill the memory."""
_FORMATS: dict[str | None, int] = {
    "PNG": 1 << 31,
    "JPEG": 65_500,
    "WEBP": 16_383,
    "TIFF": 1 << 31,
    "BMP": 1 << 31,
    "PPM": 1 << 31,
}
"""The formats of pictures, and the most pixels along a side that each holds."""
ENDINGS = ".png, .jpg, .webp, .tiff, .bmp or .ppm"
"""The endings of their files, in words."""
FILMS = ".mp4, .webm or .webp"
"""The endings of films' files, in words."""
_LONGEST = 255
"""The most bytes of a name. No file system in common use has longer ones."""
_TEMPORARY = ".panokit-"
"""How the names of files and folders begin that last only while others are written or tried."""


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Write a file under another name and rename it at the end, so there is never half a file.

    Args:
        path: the file.

    Yields:
        The path to write to, in the same folder. Its name is short, so it fits wherever that of the file does.

    Raises:
        OutputError: the file cannot be written.
    """
    aside = for_a_while(path)
    try:
        with explained(path):
            yield aside
            aside.replace(path)
    finally:
        with suppress(OSError):  # the first error is the one to report
            aside.unlink(missing_ok=True)


def for_a_while(path: Path) -> Path:
    """A new name in the folder of a file, for what lasts only while that file is written. It is short, so it fits."""
    return path.parent / f"{_TEMPORARY}{token_hex(8)}"


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Inside, an error of the file system, or of a library that writes, becomes one of panokit that names the file.

    Args:
        path: the file.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        yield
    except (OSError, ValueError) as cause:
        raise _unwritable(path, cause) from cause


def write_picture(path: Path, image: "Image", **options: Any) -> None:
    """Write a picture whole, or not at all.

    Args:
        path: the file, whose ending names the format.
        image: the picture.
        options: further arguments of Pillow's `save`.

    Raises:
        OutputError: the ending is unknown, or the file cannot be written.
    """
    kind = check_format(path, image.size)
    with written_aside(path) as aside:
        image.save(aside, kind, **options)


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
    path = Path(path)
    check_format(path, size)
    try_files({str(path): path})
    return path


def check_format(path: Path, size: tuple[int, int] = (1, 1)) -> str:
    """Find the format that the ending of a file names.

    Args:
        path: the file of a picture.
        size: width and height of the picture, in pixels.

    Returns:
        Pillow's name of the format.

    Raises:
        OutputError: the ending is unknown, or the format does not hold such a picture.
    """
    from PIL import Image

    kind = Image.registered_extensions().get(path.suffix.lower())
    if path.suffix.lower() in (".mp4", ".webm"):
        raise OutputError(f"cannot write {path}: its ending {path.suffix!r} is of films, and this is a picture: use {ENDINGS}")
    if kind is None or kind not in _FORMATS:
        raise OutputError(
            f"cannot write {path}: its ending {path.suffix!r} names no picture format: use {ENDINGS}; films are {FILMS}"
        )
    largest = _FORMATS[kind]
    if max(size) > largest:
        raise OutputError(
            f"cannot write {path}: {kind} holds {largest} pixels a side, and the picture is {size}; try .png, .tif or .dzi"
        )
    return kind


def is_large(size: tuple[int, int]) -> bool:
    """Whether a picture of this width and height is written while it is decoded: above 16,384 a side, or 134 million pixels."""
    return max(size) > SIDE or size[0] * size[1] > AREA


def try_files(files: Mapping[str, Path]) -> None:
    """Check that files can be written, and that no two of them are one file.

    Each name is tried in an empty folder beside the file. So the file system itself says whether it takes the name, and whether
    two names are one to it, as `A.png` and `a.png` are to some. Files that exist are compared by what they are: a link is the
    same as its file.

    Args:
        files: the files, by the option that names each.

    Raises:
        OutputError: a file cannot be written.
        SettingError: two options name one file.
    """
    folders: dict[tuple[int, int], Path] = {}
    options: dict[tuple[int, int], str] = {}
    with ExitStack() as stack:
        for option, path in files.items():
            _check_place(path)
            try:
                folder = _identity(path.parent)
                if folder not in folders:
                    trial = TemporaryDirectory(dir=path.parent, prefix=_TEMPORARY, ignore_cleanup_errors=True)
                    folders[folder] = Path(stack.enter_context(trial))
                tried = folders[folder] / path.name
                tried.touch()
                same = [options.setdefault(_identity(file), option) for file in (tried, path) if file.exists()]
            except (OSError, ValueError) as cause:
                raise _unwritable(path, cause) from cause
            for other in same:
                if other != option:
                    raise SettingError(f"{other} and {option} name one file, {path}: give one of them another name")


def beside(path: Path, ending: str) -> Path:
    """The file beside another one whose name has an ending more. If that is too long for a name, a hash takes its place."""
    name = f"{path.name}{ending}"
    if len(name.encode(errors="surrogatepass")) > _LONGEST:
        name = hashlib.sha256(path.name.encode(errors="surrogatepass")).hexdigest()[:16] + ending
    return path.with_name(name)


def _check_place(path: Path) -> None:
    """Raise an OutputError that says what to do, if a file cannot be at its place. It never raises anything else."""
    folder = path.parent
    if os.path.isdir(path):
        raise OutputError(f"cannot write {path}: it is a folder; name a file in it")
    if not os.path.isdir(folder):
        raise OutputError(f"cannot write {path}: there is no folder {folder}; make it first")
    if not os.access(folder, os.W_OK) or (os.path.exists(path) and not os.access(path, os.W_OK)):
        raise OutputError(f"cannot write {path}: permission denied; choose another place")


def _identity(path: Path) -> tuple[int, int]:
    """What a file is, whatever its name."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _unwritable(path: Path, cause: OSError | ValueError) -> OutputError:
    reason = cause.strerror if isinstance(cause, OSError) else None
    return OutputError(f"cannot write {path}: {reason or cause}")
