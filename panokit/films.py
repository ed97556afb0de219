"""Films in files: animated WebP."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from panokit.errors import OutputError
from panokit.files import check_output, written_aside
from panokit.recipe import embedded

ENDINGS = (".webp",)
"""The endings of the files that hold films."""


def is_film(path: str | os.PathLike[str]) -> bool:
    """Whether a file's ending is that of films."""
    return Path(path).suffix.lower() in ENDINGS


def check_film(path: str | os.PathLike[str], size: tuple[int, int], frames: int) -> None:
    """Check that a film can be written to a file.

    Args:
        path: the file.
        size: width and height in pixels.
        frames: how many there are.

    Raises:
        OutputError: it cannot.
    """
    if not is_film(path):
        raise OutputError(f"cannot write {path}: its ending {Path(path).suffix!r} holds no film: use {', '.join(ENDINGS)}")
    check_output(path, size)


def write(path: Path, frames: "np.ndarray[Any, np.dtype[np.uint8]]", fps: float, recipe: Mapping[str, Any]) -> None:
    """Write a film to a file.

    Args:
        path: the file.
        frames: `T H W 3`.
        fps: frames a second.
        recipe: how it is made, as plain data.
    """
    from PIL import Image

    first, *rest = (Image.fromarray(frame) for frame in frames)
    options = {**embedded(recipe, "WEBP"), "save_all": True, "append_images": rest, "duration": round(1000 / fps), "loop": 0}
    with written_aside(Path(path)) as aside:
        first.save(aside, format="WEBP", lossless=True, **options)
