"""A panorama in a notebook: the same page as `panokit view` writes, as an element in a cell."""

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from panokit import films
from panokit.equirectangular import PROJECTION
from panokit.files import AREA, SIDE
from panokit.view.page import page
from panokit.view.picture import SPHERE, WHOLE, Data, Picture, encoded, within

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

_TOOLS = "3rem"
"""The height of the buttons above the picture."""


def cell(
    image: "Image",
    recipe: Mapping[str, Any],
    size: tuple[int, int],
    frames: "np.ndarray[Any, np.dtype[np.uint8]] | None" = None,
) -> str:
    """The element that shows a panorama in a notebook. It is as high as the picture needs where the notebook is wide enough.

    Args:
        image: the picture, or a smaller copy of it.
        recipe: its recipe.
        size: width and height of the picture, in pixels.
        frames: all frames of a film, `T H W 3`; None for a picture.
    """
    width, height = size
    sphere = WHOLE if recipe.get("projection") == PROJECTION else None
    shown = within(image, SPHERE if sphere else SIDE, AREA)
    note = "" if shown.size == size else f"its {width} x {height} pixels are shown as {shown.width} x {shown.height}"
    if frames is None:
        picture = Picture(name="panorama", size=size, recipe=recipe, sphere=sphere, data=encoded(shown), note=note)
    else:
        data = Data("image/webp", films.as_webp(frames, films.fps_of(recipe)))
        picture = Picture(name="panorama", size=size, recipe=recipe, film="image", data=data)
    high = f"calc(min(100vw, 70rem) * {height / width:.4f} + {_TOOLS})"
    style = f"width: 100%; max-width: 70rem; height: {high}; min-height: 14rem; max-height: 48rem; border: 0"
    return f'<iframe srcdoc="{escape(page([picture], "cell"))}" style="{style}" allow="fullscreen; clipboard-write"></iframe>'
