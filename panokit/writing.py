"""Pictures that are written while they are made, a strip at a time, so that a whole one is never in the memory.

PNG is written here. libvips writes Deep Zoom pictures, and TIFF with smaller copies inside, which viewers open at once. It
reads the strips from a pipe, in a thread of its own, and encodes them while the next one is decoded.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, final

from panokit import deepzoom
from panokit.equirectangular import KEYWORD
from panokit.errors import OutputError, SettingError, reason_of
from panokit.files import check_output, explained, for_a_while, is_large, try_files
from panokit.recipe import KEY, texts

if TYPE_CHECKING:
    from panokit.png import Rows

_TIFF = (".tif", ".tiff")
_TILE = 256
"""Pixels along a side of a tile of TIFF."""
_NOTES = "vips-properties.xml"
"""What libvips notes beside tiles. The time is in it, and one recipe is to make the same files."""
_CLASSIC = 3 << 30
"""The most bytes of pixels in a classic TIFF. Its file ends at 4 GB, and the smaller copies are a third more."""


def is_streamed(path: Path, size: tuple[int, int]) -> bool:
    """Whether the picture of a file is written while it is decoded: Deep Zoom always is, PNG and TIFF if they are large.

    Args:
        path: the file, whose ending names the format.
        size: width and height of the picture, in pixels.
    """
    return deepzoom.is_deep_zoom(path) or (is_large(size) and path.suffix.lower() in (".png", *_TIFF))


def check_picture(path: str | os.PathLike[str], size: tuple[int, int] = (1, 1)) -> Path:
    """Check that a panorama can be written to a file. Call it before a long run, and again after it.

    Args:
        path: the file, whose ending names the format.
        size: width and height of the picture, in pixels.

    Returns:
        The path.

    Raises:
        OutputError: the ending is unknown, the format does not hold such a picture, the folder is missing, or a file cannot
            be written.
        SettingError: a package is missing that writes such a picture.
    """
    path = Path(path)
    deep = deepzoom.is_deep_zoom(path)
    if is_streamed(path, size) and path.suffix.lower() != ".png" and not _has_vips():
        what = "a Deep Zoom picture" if deep else f"a TIFF of {size[0]} x {size[1]} pixels"
        raise SettingError(
            f'cannot write {path}: {what} needs pyvips, which is not installed: pip install "panokit[tiles]", or write .png'
        )
    if not deep:
        return check_output(path, size)
    try_files({str(path): path})
    folder = deepzoom.folder_of(path)
    with explained(path):
        there = _is_there(folder)
    if there and not deepzoom.is_own(folder):
        raise OutputError(
            f"cannot write {path}: its tiles go into {folder}, which panokit did not write: remove it, or choose another name"
        )
    return path


@contextmanager
def writing(path: Path, size: tuple[int, int], recipe: Mapping[str, Any]) -> Iterator["Callable[[Rows], None]"]:
    """Write a picture as its rows come, aside. At the end it takes the place of an older one, or it is gone.

    Args:
        path: the file; see `is_streamed`.
        size: width and height of the picture, in pixels.
        recipe: what the file carries.

    Yields:
        A function that takes the next rows. What the body raises is left as it is.

    Raises:
        OutputError: the picture cannot be written.
    """
    aside = for_a_while(path)
    with ExitStack() as stack:
        stack.callback(_remove, aside)
        with explained(path):
            sink = _sink(path, aside, size, recipe)
        stack.callback(sink.abandon)

        def write(rows: "Rows") -> None:
            with explained(path):
                sink.write(rows)

        yield write
        with explained(path):
            sink.close()
            if deepzoom.is_deep_zoom(path):
                made = aside / f"new{deepzoom.ENDING}"
                tiles = deepzoom.folder_of(made)
                (tiles / _NOTES).unlink(missing_ok=True)
                (tiles / deepzoom.RECIPE).write_text(texts(recipe).get(KEY, ""), encoding="utf-8")
                deepzoom.put(made, path)
            else:
                aside.replace(path)


@final
class _Png:
    """The file of a PNG."""

    def __init__(self, aside: Path, size: tuple[int, int], recipe: Mapping[str, Any]) -> None:
        from panokit.png import PngWriter  # it imports numpy, for which a command without a picture does not wait

        self._file = aside.open("wb")
        self._png = PngWriter(self._file, size, texts(recipe))
        self.write = self._png.write

    def close(self) -> None:
        """Write what is left."""
        self._png.close()
        self._file.close()

    def abandon(self) -> None:
        """Free what is held; after `close` there is nothing."""
        with suppress(OSError):
            self._file.close()


@final
class _Vips:
    """A picture that libvips writes in a thread, from a pipe. A stored PNG goes through it, the one such format that it reads.

    Args:
        size: width and height of the picture, in pixels.
        save: writes the picture.
    """

    def __init__(self, size: tuple[int, int], save: Callable[[Any], None]) -> None:
        from panokit.png import STORED, PngWriter

        self._save, self._error = save, ""
        self._outlet, inlet = os.pipe()
        self._file = os.fdopen(inlet, "wb")
        self._thread = Thread(target=self._work, name="panokit writes", daemon=True)
        self._thread.start()
        self._png = PngWriter(self._file, size, {}, STORED)

    def _work(self) -> None:
        import pyvips

        try:
            source = pyvips.Source.new_from_descriptor(self._outlet)
            self._save(pyvips.Image.new_from_source(source, "", access="sequential", fail_on="truncated"))
        except Exception as error:  # it is raised in the thread that writes
            self._error = _reason(error)
        finally:
            while os.read(self._outlet, 1 << 20):  # so that nobody waits for a full pipe to be read
                pass
            os.close(self._outlet)

    def write(self, rows: "Rows") -> None:
        """Pass rows on.

        Raises:
            OSError: the picture cannot be written.
        """
        if not self._error:
            self._png.write(rows)
        if self._error:
            raise OSError(self._error)

    def close(self) -> None:
        """Pass the end on, and wait until everything is written."""
        self._png.close()
        self._file.close()
        self._thread.join()
        if self._error:
            raise OSError(self._error)

    def abandon(self) -> None:
        """End the thread."""
        with suppress(OSError):
            self._file.close()
        self._thread.join()


def _sink(path: Path, aside: Path, size: tuple[int, int], recipe: Mapping[str, Any]) -> _Png | _Vips:
    """What takes the rows of a picture, and writes them aside."""
    if path.suffix.lower() == ".png":
        return _Png(aside, size, recipe)
    if deepzoom.is_deep_zoom(path):
        aside.mkdir()
        return _Vips(size, lambda image: _save_tiles(image, aside / "new"))
    kept = texts(recipe)
    return _Vips(size, lambda image: _save_tiff(image, aside, kept))


def _save_tiles(image: Any, place: Path) -> None:
    image.dzsave(
        str(place),
        tile_size=deepzoom.TILE,
        overlap=deepzoom.OVERLAP,
        suffix=f".{deepzoom.FORMAT}[Q=90]",
    )


def _save_tiff(image: Any, place: Path, kept: Mapping[str, str]) -> None:
    import pyvips

    image = image.copy()
    if KEY in kept:
        image.set_type(pyvips.GValue.gstr_type, "image-description", kept[KEY])
    if KEYWORD in kept:
        image.set_type(pyvips.GValue.blob_type, "xmp-data", kept[KEYWORD].encode())
    image.tiffsave(
        str(place),
        tile=True,
        tile_width=_TILE,
        tile_height=_TILE,
        pyramid=True,
        compression="deflate",
        predictor="horizontal",
        bigtiff=3 * image.width * image.height > _CLASSIC,
    )


def _reason(error: Exception) -> str:
    """Why libvips cannot write: what the system says, if it is that."""
    system = re.search(r"(?:system|unix) error: (.*)", str(error))
    return system[1].strip() if system else reason_of(error)


def _has_vips() -> bool:
    """Whether pyvips is installed, and the library that it calls."""
    try:
        import_module("pyvips")
    except (ImportError, OSError):  # the package is missing, or the library
        return False
    return True


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _remove(aside: Path) -> None:
    with suppress(OSError):  # the first error is the one to report
        shutil.rmtree(aside) if aside.is_dir() else aside.unlink(missing_ok=True)
