"""Tiles of a picture that is too large for a browser, in the Deep Zoom format, which libvips writes and OpenSeadragon reads."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from urllib.parse import quote

from panokit.errors import OutputError, SettingError, reason_of

_SIDE, _OVERLAP, _ENDING = 510, 1, "jpg"
_MARK = "tiles of panokit view"
"""A file in each folder of tiles. A folder without it is somebody else's, and is not replaced."""


def can_be_made() -> bool:
    """Whether the package that writes tiles is installed."""
    return find_spec("pyvips") is not None


def folder_of(page: Path) -> Path:
    """The folder of the tiles of a page, beside it."""
    return page.with_name(f"{page.stem}_files")


def check_folder(page: Path) -> None:
    """Check that the folder of tiles is not somebody else's.

    Raises:
        OutputError: it is.
    """
    folder = folder_of(page)
    if folder.exists() and not (folder / _MARK).exists():
        raise OutputError(f"the tiles go into {folder}, which holds other files: remove it, or give another --out")


@contextmanager
def folder_aside(page: Path) -> Iterator[Path]:
    """A folder to write tiles to. At the end it takes the place of the folder of the page, or it is gone.

    Args:
        page: the file of the page.

    Raises:
        OutputError: the folder cannot be written.
    """
    check_folder(page)
    try:
        aside = Path(mkdtemp(dir=page.parent, prefix=".panokit-"))
    except OSError as cause:
        raise OutputError(f"the tiles cannot be written beside {page}: {cause.strerror}") from cause
    try:
        yield aside
        if any(aside.iterdir()):
            (aside / _MARK).touch()
            aside.chmod(0o755)
            shutil.rmtree(folder_of(page), ignore_errors=True)
            aside.replace(folder_of(page))
    except OSError as cause:
        if isinstance(cause, OutputError):
            raise
        raise OutputError(f"the tiles cannot be written beside {page}: {cause.strerror or cause}") from cause
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def tiled(path: Path, folder: Path, number: int, page: Path) -> dict[str, Any]:
    """Write the tiles of a picture.

    Args:
        path: the file of the picture.
        folder: where they are written, which becomes the folder of the page.
        number: which picture of the page it is.
        page: the file of the page.

    Returns:
        The source of the tiles, as OpenSeadragon takes it in the place of a file, which a page without a server cannot read.

    Raises:
        SettingError: the file is damaged, or the tiles cannot be written.
    """
    import pyvips

    try:
        image = pyvips.Image.new_from_file(str(path), fail_on="truncated").autorot()
        image.dzsave(str(folder / str(number)), tile_size=_SIDE, overlap=_OVERLAP, suffix=f".{_ENDING}[Q=90]")
    except pyvips.Error as cause:
        shutil.rmtree(folder / f"{number}_files", ignore_errors=True)
        raise SettingError(f"{path} cannot be cut into tiles: {reason_of(cause)}") from cause
    return {
        "Image": {
            "xmlns": "http://schemas.microsoft.com/deepzoom/2008",
            "Url": f"{quote(os.fsencode(folder_of(page).name))}/{number}_files/",
            "Format": _ENDING,
            "Overlap": str(_OVERLAP),
            "TileSize": str(_SIDE),
            "Size": {"Width": str(image.width), "Height": str(image.height)},
        }
    }
