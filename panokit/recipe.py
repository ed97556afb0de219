"""Recipes in pictures: everything needed to make one again, in the file itself.

PNG keeps the recipe as JSON in an `iTXt` chunk `panokit`, and a `parameters` chunk as the Stable Diffusion web UI writes it,
for people and their tools; JPEG and WebP keep the same two in Exif, as `ImageDescription` and `UserComment`.

What is read from a file is data, whoever wrote it: it is parsed as JSON, bounded, and checked, and nothing is imported for it.
"""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from panokit.errors import FallbackWarning, SettingError

_KEY = "panokit"
VERSIONS = ("panokit", "torch", "diffusers")
"""What is in a recipe and makes no other picture."""
_DESCRIPTION, _EXIF, _COMMENT = 0x010E, 0x8769, 0x9286
_UNICODE = b"UNICODE\0"
_EXIF_HOLDS = 65_000

LONGEST = 1 << 18
"""Characters that a recipe may have."""
BOUNDS = {
    "height": 1 << 15,
    "width": 1 << 17,
    "steps": 10_000,
    "stride": 1 << 15,
    "micro_batch": 256,
    "guided_micro_batch": 256,
    "seed": (1 << 64) - 1,
}
"""The largest numbers that a recipe may ask for without being trusted."""
AREA = 1 << 27
"""The most pixels: 8,192 x 16,384."""
WORK = 1 << 21
"""The most windows times steps."""
DEEPEST, PARTS, NUMBER = 8, 16, 10_000
"""How deep a part may be nested, how many there may be, and the largest whole number that one may be set to."""

_WORD = re.compile(r"[\w+-][\w+ .-]{0,63}")
"""A text that no parser takes for anything else."""
_IMPORTABLE = re.compile(r".*\.\s*[^\W\d].*")
"""What a library might take for something to import: a name after a dot."""


def name_of(recipe: Mapping[str, Any]) -> str:
    """What a picture is called: its prompt, its seed, and a hash of all that makes it but the versions of libraries."""
    words = words_of(recipe["prompt"] if isinstance(recipe["prompt"], str) else "regions")
    content = json.dumps({key: value for key, value in recipe.items() if key not in VERSIONS}, sort_keys=True)
    return f"{words}-{recipe['seed']}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def words_of(prompt: str) -> str:
    """A prompt as part of a file's name."""
    return re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:48].rstrip("-") or "panorama"


def embedded(recipe: Mapping[str, Any], format: str) -> dict[str, Any]:
    """What to pass to Pillow's `save` so that the file holds the recipe; nothing for formats that have no place for it."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    text, parameters = json.dumps(recipe), _parameters(recipe)
    if len(text) > LONGEST:
        warnings.warn(f"the recipe is longer than {LONGEST} letters and is left out", FallbackWarning, stacklevel=3)
        return {}
    if format == "PNG":
        chunks = PngInfo()
        chunks.add_itxt(_KEY, text)
        chunks.add_itxt("parameters", parameters)
        return {"pnginfo": chunks}
    if format in ("JPEG", "WEBP"):
        exif = Image.Exif()
        exif[_DESCRIPTION] = text
        exif.get_ifd(_EXIF)[_COMMENT] = _UNICODE + parameters.encode("utf-16-be")
        if format == "JPEG" and len(exif.tobytes()) > _EXIF_HOLDS:
            warnings.warn("the recipe is longer than a JPEG holds and is left out: try .png", FallbackWarning, stacklevel=3)
            return {}
        return {"exif": exif.tobytes()}
    return {}


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The recipe in a picture; not checked yet: see `check`.

    Raises:
        SettingError: the file is no picture, or holds no recipe.
    """
    from PIL import Image

    bound, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # no pixel is decoded here, however many there are
    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
            # Of a PNG Pillow would decode all pixels to look for Exif.
            found = image.info.get(_KEY) if image.format == "PNG" else image.getexif().get(_DESCRIPTION)
    except FileNotFoundError as cause:
        raise SettingError(f"there is no picture {path}") from cause
    except Exception as cause:  # a mangled file can break its reader anywhere
        raise SettingError(f"{path} is no picture that can be read: give a PNG, JPEG or WebP that panokit wrote") from cause
    finally:
        Image.MAX_IMAGE_PIXELS = bound
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
    """Raise a SettingError if a recipe out of a file is no plain data, or asks for more than a stranger may ask for.

    Every value must have the type that it needs before any library sees it: a text in the place of a number or a list could
    be parsed into something else.
    """
    for name, most in BOUNDS.items():
        value = recipe.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise SettingError(f"{name} came as {value!r:.80}: it must be a whole number")
        if value is not None and abs(value) > most:
            raise SettingError(
                f"the recipe asks for {name} {value!s:.24}, and {most} is the most without trusting it (--trust)"
            )
    height, width = recipe.get("height") or 0, recipe.get("width") or 0
    if height * width > AREA:
        raise SettingError(f"the recipe asks for {width} x {height} pixels, more than without trusting it (--trust)")
    kinds: dict[str, Any] = {
        "prompt": str | dict,
        "negative_prompt": str,
        "guidance_scale": int | float,
        "guidances": list,
        "fuser": str | dict,
        "scheduler": str | dict,
        "checkpointing": bool,
        "channels_last": bool,
        "compile": bool,
    }
    for name, kind in kinds.items():
        if recipe.get(name) is not None and not isinstance(recipe[name], kind):
            raise SettingError(f"{name} came as {recipe[name]!r:.80}: the recipe is damaged, or is not panokit's")
    plain = {name: value for name, value in recipe.items() if name not in ("prompt", "negative_prompt")}
    check_plain(plain)
    if sum(1 for _ in _parts(recipe)) > PARTS:
        raise SettingError(f"the recipe has more than {PARTS} plugins, the most without trusting it (--trust)")
    for part in _parts(recipe):
        for value in part.values():
            if isinstance(value, int) and abs(value) > NUMBER:
                raise SettingError(f"the recipe sets a plugin to {value!s:.24}, more than without trusting it (--trust)")


def check_work(calls: int) -> None:
    """Raise a SettingError if a recipe out of a file keeps the machine busy for longer than a stranger may."""
    if calls > WORK:
        raise SettingError(
            f"the recipe asks for {calls} windows, all steps together, and {WORK} is the most without trusting it (--trust)"
        )


def check_plain(value: Any, depth: int = DEEPEST) -> None:
    """Raise a SettingError unless data are flat enough, and their texts are words."""
    if isinstance(value, str) and value and (not _WORD.fullmatch(value) or _IMPORTABLE.fullmatch(value)):
        raise SettingError(
            f"the recipe asks for {value!r:.80}, which is code and no installed plugin's name: "
            "trust it, if you trust whom the file is from (--trust)"
        )
    if isinstance(value, list | dict):
        if depth == 0:
            raise SettingError(f"the recipe is nested more than {DEEPEST} deep: it is damaged, or is not panokit's")
        if isinstance(value, dict) and "class_path" in value:
            raise SettingError(
                "the recipe asks for a class_path, which is code and no installed plugin's name: trust it (--trust)"
            )
        for item in [*value.keys(), *value.values()] if isinstance(value, dict) else value:
            check_plain(item, depth - 1)


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """All mappings in the data, which is no deeper than `DEEPEST`, but for the whole and the prompt."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(item, dict | list) and key != "prompt":
            if isinstance(item, dict):
                yield item
            yield from _parts(item)


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
