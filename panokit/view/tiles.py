"""Tiles of a picture that is too large for a browser, in the Deep Zoom format, which libvips writes and OpenSeadragon reads."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from panokit.deepzoom import FORMAT, OVERLAP, TILE, DeepZoom
from panokit.errors import OutputError, SettingError, reason_of

if TYPE_CHECKING:
    from PIL.Image import Image

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
        The source of the tiles: see `source`.

    Raises:
        SettingError: the file is damaged, or the tiles cannot be written.
    """
    import pyvips

    try:
        image = pyvips.Image.new_from_file(str(path), fail_on="truncated").autorot()
        image.dzsave(str(folder / str(number)), tile_size=TILE, overlap=OVERLAP, suffix=f".{FORMAT}[Q=90]")
    except pyvips.Error as cause:
        shutil.rmtree(folder / f"{number}_files", ignore_errors=True)
        raise SettingError(f"{path} cannot be cut into tiles: {reason_of(cause)}") from cause
    made = DeepZoom(folder / f"{number}_files", (image.width, image.height), TILE, OVERLAP, FORMAT)
    return source(made, f"{quote(os.fsencode(folder_of(page).name))}/{number}_files/")


def source(picture: DeepZoom, url: str) -> dict[str, Any]:
    """A Deep Zoom picture as OpenSeadragon takes it in the place of a file, which a page without a server cannot read.

    Args:
        picture: what its file says.
        url: the address of the folder of its tiles, for a page.
    """
    return {
        "Image": {
            "xmlns": "http://schemas.microsoft.com/deepzoom/2008",
            "Url": url,
            "Format": picture.format,
            "Overlap": str(picture.overlap),
            "TileSize": str(picture.tile),
            "Size": {"Width": str(picture.size[0]), "Height": str(picture.size[1])},
        }
    }


def small(path: Path, side: int) -> "Image":
    """A small copy of a picture, which is never whole in the memory.

    Args:
        path: the file of the picture.
        side: pixels along the longer side of the copy.

    Raises:
        SettingError: the file is damaged.
    """
    import pyvips
    from PIL import Image

    try:
        image = pyvips.Image.thumbnail(str(path), side, height=side, fail_on="truncated").colourspace("srgb").cast("uchar")
        return Image.fromarray(image.numpy())
    except pyvips.Error as cause:
        raise SettingError(f"{path} is damaged, and cannot be read to its end: {reason_of(cause)}") from cause
