"""Recipes in pictures: everything needed to make one again, in the file itself.

PNG keeps the recipe as JSON in an `iTXt` chunk `panokit`, and a `parameters` chunk as the Stable Diffusion web UI writes it,
for people and their tools; JPEG and WebP keep the same two in Exif, as `ImageDescription` and `UserComment`.

What is read from a file is data, whoever wrote it: it is parsed as JSON, bounded, and checked, and nothing is imported for it.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

from panokit.errors import SettingError

_KEY = "panokit"
_DESCRIPTION, _EXIF, _COMMENT = 0x010E, 0x8769, 0x9286
_UNICODE = b"UNICODE\0"

LONGEST = 1 << 18
"""Characters that a recipe may have."""
BOUNDS = {"height": 1 << 15, "width": 1 << 17, "steps": 10_000, "stride": 1 << 15, "micro_batch": 1 << 12}
"""The largest numbers that a recipe may ask for without being trusted."""
AREA = 1 << 27
"""The most pixels: 8,192 x 16,384."""


def embedded(recipe: Mapping[str, Any], format: str) -> dict[str, Any]:
    """What to pass to Pillow's `save` so that the file holds the recipe; nothing for formats that have no place for it."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    text, parameters = json.dumps(recipe), _parameters(recipe)
    if format == "PNG":
        chunks = PngInfo()
        chunks.add_itxt(_KEY, text)
        chunks.add_itxt("parameters", parameters)
        return {"pnginfo": chunks}
    if format in ("JPEG", "WEBP"):
        exif = Image.Exif()
        exif[_DESCRIPTION] = text
        exif.get_ifd(_EXIF)[_COMMENT] = _UNICODE + parameters.encode("utf-16-be")
        return {"exif": exif.tobytes()}
    return {}


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The recipe in a picture; not checked yet: see `check`.

    Raises:
        SettingError: the file is no picture, or holds no recipe.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
            found = image.info.get(_KEY) or image.getexif().get(_DESCRIPTION)
    except FileNotFoundError as cause:
        raise SettingError(f"there is no picture {path}") from cause
    except Exception as cause:  # a mangled file can break its reader anywhere
        raise SettingError(f"{path} is no picture that can be read: give a PNG, JPEG or WebP that panokit wrote") from cause
    if not found:
        raise SettingError(f"{path} holds no recipe: give a picture that panokit wrote and nobody saved again")
    if not isinstance(found, str) or len(found) > LONGEST:
        raise SettingError(f"the recipe in {path} is longer than any that panokit writes")
    try:
        recipe = json.loads(found)
    except (ValueError, RecursionError) as cause:
        raise SettingError(f"the recipe in {path} is damaged, or is not panokit's") from cause
    if not isinstance(recipe, dict):
        raise SettingError(f"the recipe in {path} is damaged: it is a {type(recipe).__name__} and no mapping")
    return recipe


def check(recipe: Mapping[str, Any]) -> None:
    """Raise a SettingError if a recipe out of a file asks for more than a stranger may ask for."""
    for name, most in BOUNDS.items():
        value = recipe.get(name)
        if isinstance(value, int) and value > most:
            raise SettingError(f"the recipe asks for {name} {value}, and {most} is the most without trusting it (--trust)")
    height, width = recipe.get("height"), recipe.get("width")
    if isinstance(height, int) and isinstance(width, int) and height * width > AREA:
        raise SettingError(f"the recipe asks for {width} x {height} pixels, more than without trusting it (--trust)")


def _parameters(recipe: Mapping[str, Any]) -> str:
    """The recipe as the Stable Diffusion web UI would write it, as far as it has words for it."""
    prompt = recipe.get("prompt", "")
    lines = [prompt if isinstance(prompt, str) else json.dumps(prompt)]
    if recipe.get("negative_prompt"):
        lines.append(f"Negative prompt: {recipe['negative_prompt']}")
    words = {
        "Steps": recipe.get("steps"),
        "Sampler": recipe.get("scheduler", {}).get("plugin"),
        "CFG scale": recipe.get("guidance_scale"),
        "Seed": recipe.get("seed"),
        "Size": f"{recipe.get('width')}x{recipe.get('height')}",
        "Model": recipe.get("model"),
        "Version": f"panokit {recipe.get('panokit')}",
    }
    return "\n".join([*lines, ", ".join(f"{key}: {value}" for key, value in words.items())])
