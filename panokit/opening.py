"""The files of pictures, opened. A file that would fill the memory is refused, unless it is a panorama of panokit's own.

Its recipe says whether it is one, and a recipe can be forged. A small file with a forged recipe costs 3 GB of memory when its
pixels are decoded, and 4 GB if they are transparent: three or four bytes for each of `LARGEST` pixels.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from panokit import recipe
from panokit.errors import SettingError, reason_of

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM")
"""The formats that are read, in Pillow's names: those that panokit writes. Others can start programs, as EPS does."""
LARGEST = 1 << 30
"""The most pixels of a panorama of panokit's own."""


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator["Image"]:
    """Open the file of a picture. Its pixels are decoded when they are asked for.

    Pillow refuses pictures of about 179 million pixels and more, because a small file may hold many pixels to fill the memory.
    A panorama may have more. It is opened if its recipe has the same size, as the recipe of a picture that panokit made does.

    Args:
        path: the file.

    Yields:
        The picture.

    Raises:
        SettingError: there is no such file, it is no picture, or it has too many pixels.
    """
    from PIL import Image

    try:
        with recipe.unbounded() as bound:
            image = Image.open(path, formats=FORMATS)
    except FileNotFoundError as cause:
        raise SettingError(f"there is no picture {path}") from cause
    except Exception as cause:  # a damaged file can break its reader anywhere
        kinds = "give a PNG, JPEG, WebP, TIFF, BMP or PPM file"
        why = f" ({cause.strerror})" if isinstance(cause, OSError) and cause.strerror else ""
        raise SettingError(f"{path} cannot be read as a picture{why}: {kinds}") from cause
    with image:
        width, height = image.size
        if bound is not None and width * height > 2 * bound and not _is_own(path, image.size):
            raise SettingError(
                f"{path} has {width} x {height} pixels, and {2 * bound} are the most of a picture that panokit did not make: "
                "save it smaller"
            )
        yield image


def _is_own(path: str | os.PathLike[str], size: tuple[int, int]) -> bool:
    """Whether a picture has the size that its recipe says, and no more pixels than any panorama."""
    try:
        kept = recipe.read(path)
    except SettingError:
        return False
    return size == (kept.get("width"), kept.get("height")) and size[0] * size[1] <= LARGEST


def decoded(image: "Image", path: str | os.PathLike[str]) -> "Image":
    """The same picture, with its pixels decoded.

    Args:
        image: the picture, as `opened` yields it.
        path: its file, for the error.

    Raises:
        SettingError: the file is damaged.
    """
    try:
        # Of a TIFF, Pillow looks at the size again when pixels are decoded.
        with recipe.unbounded() if image.format == "TIFF" else nullcontext():
            image.load()
    except Exception as cause:  # a damaged file can break its reader anywhere
        raise SettingError(f"{path} is damaged, and cannot be read to its end: {reason_of(cause)}") from cause
    return image
