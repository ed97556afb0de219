"""Equirectangular pictures in files."""

from pathlib import Path
from typing import TYPE_CHECKING

from panokit import SettingError, recipe
from panokit.deepzoom import is_deep_zoom
from panokit.equirectangular import PROJECTION, check_size
from panokit.opening import decoded, opened
from panokit.view.picture import size_of, sphere_of, upright

if TYPE_CHECKING:
    from PIL.Image import Image


def read(path: Path) -> "Image":
    """Read an equirectangular picture, from any program.

    Args:
        path: the file.

    Returns:
        The picture, in RGB.

    Raises:
        SettingError: there is no such file, it is no picture, or it does not show all directions.
    """
    if is_deep_zoom(path):
        raise SettingError(f"{path} is a picture in tiles: write the panorama as .png or .tif, and give that file")
    with opened(path) as image:
        check_size(size_of(image), str(path))
        angles = sphere_of(image)
        if angles and (angles["haov"], angles["vaov"]) != (360, 180):
            raise SettingError(f"{path} shows a part of the sphere, as its XMP says: give a picture of all directions")
        if angles is None and _is_flat(path):
            raise SettingError(f"{path} is a flat panorama, as its recipe says: make an equirectangular one, --layout sphere")
        return upright(decoded(image, path)).convert("RGB")


def _is_flat(path: Path) -> bool:
    """Whether the recipe of a picture says that it is flat. Without a recipe nobody knows."""
    try:
        return recipe.read(path).get("projection") != PROJECTION
    except SettingError:
        return False
