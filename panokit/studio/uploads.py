"""Pictures that people upload: to start from, or for the recipe in them. Nothing in them is trusted."""

import os
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from panokit import recipe
from panokit.errors import SettingError
from panokit.jobs import options_in
from panokit.pixels import FORMATS
from panokit.studio.asked import check

BYTES = 32 << 20
"""The most bytes of a file that is uploaded."""
PIXELS = 1 << 25
"""The most pixels of a picture that is uploaded. A small file may hold any number of them."""


def picture_of(path: str | os.PathLike[str]) -> Image.Image:
    """Read an uploaded picture.

    Args:
        path: the file.

    Raises:
        SettingError: it is no picture, or has more bytes or pixels than the studio takes.
    """
    _check_bytes(path)
    name = Path(path).name
    try:
        with recipe.unbounded():  # Pillow's own bound says nothing that its users could act on
            opened = Image.open(path, formats=FORMATS)
        with opened as image:
            if image.width * image.height > PIXELS:
                raise SettingError(
                    f"{name:.80} has {image.width} x {image.height} pixels: the studio takes up to {PIXELS}, make it smaller"
                )
            upright = ImageOps.exif_transpose(image)
            return upright.convert("RGBA" if upright.has_transparency_data else "RGB")
    except SettingError:
        raise
    except Exception as cause:  # a damaged file can break its reader anywhere
        raise SettingError(f"{name:.80} is no picture that can be read: give a PNG, JPEG or WebP file") from cause


def recipe_of(path: str | os.PathLike[str], offered: object = None) -> tuple[dict[str, Any], list[str]]:
    """Read the recipe in an uploaded picture, and check it as `panokit rerun` does for a file that is not trusted.

    Args:
        path: the file.
        offered: a model besides the installed ones.

    Returns:
        The options that it names; and the names of the pictures that it was made from, which no recipe holds.

    Raises:
        SettingError: the file holds no recipe; or one that names what is not installed, reads files, or is too large.
    """
    _check_bytes(path)
    name = Path(path).name
    try:
        kept = recipe.read(path)
    except SettingError as error:
        raise SettingError(str(error).replace(str(path), f"{name:.80}")) from error
    wanted = options_in(kept, f"the recipe in {name:.80}")
    missing = [key for key in recipe.PICTURES if recipe.is_digest(wanted.get(key))]
    wanted = {key: value for key, value in wanted.items() if key not in missing}
    prompt = wanted["prompt"]
    regions = prompt.get("regions") if isinstance(prompt, dict) else None
    if isinstance(regions, list):
        left = [region for region in regions if not (isinstance(region, dict) and recipe.is_digest(region.get("mask")))]
        missing += ["painted regions"] if len(left) < len(regions) else []
        wanted["prompt"] = {**prompt, "regions": left} if left else prompt.get("elsewhere", "")
    check(wanted, offered)
    return wanted, missing


def _check_bytes(path: str | os.PathLike[str]) -> None:
    size = Path(path).stat().st_size
    if size > BYTES:
        raise SettingError(f"{Path(path).name:.80} has {size} bytes: the studio takes up to {BYTES}, make it smaller")
