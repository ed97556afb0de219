"""Recipes in pictures: a picture's file holds everything that is needed to make it again.

PNG keeps the recipe as JSON in an `iTXt` chunk `panokit`. A second chunk `parameters` is for people and their tools, in the
format of the Stable Diffusion web UI. JPEG, WebP and TIFF keep the same two texts in Exif, as `ImageDescription` and
`UserComment`; a large TIFF has the first alone. A Deep Zoom picture keeps the recipe in a file among its tiles. Films keep the
two texts as `comment` and `description`, and a film as WebP keeps them in Exif. Beside the recipe stands what viewers must know
of an equirectangular picture: see `equirectangular`.

A recipe from a file is plain data, whoever wrote it. It is parsed as JSON, its length is bounded, its values are checked, and
nothing is imported for it.
"""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import Any, NamedTuple

from panokit import boxes, deepzoom, equirectangular
from panokit.errors import FallbackWarning, SettingError
from panokit.plain import walk

KEY, _PARAMETERS = "panokit", "parameters"
VERSIONS = ("panokit", "torch", "diffusers")
"""Entries of a recipe that do not count as part of the picture."""
FACTS = ("hashes", "projection")
"""Entries of a recipe that follow from its options: of the pictures that they name, and how the picture shows its canvas."""
_DESCRIPTION, _XMP, _EXIF, _COMMENT = 0x010E, 0x02BC, 0x8769, 0x9286
_UNICODE = b"UNICODE\0"
_EXIF_HOLDS = 65_000

LONGEST = 1 << 18
"""The most characters of a recipe."""
BOUNDS = {
    "height": 1 << 15,
    "width": 1 << 17,
    "frames": 1 << 12,
    "fps": 240,
    "frame_stride": 1 << 12,
    "steps": 10_000,
    "stride": 1 << 15,
    "micro_batch": 256,
    "guided_micro_batch": 256,
    "tile": 1 << 12,
    "tile_overlap": 1 << 12,
    "seed": (1 << 64) - 1,
}
"""The largest numbers in a recipe that is not trusted."""
AREA = 1 << 28
"""The most pixels of a picture from such a recipe, or of all frames of a film: 65,536 x 4,096."""
WORK = 1 << 21
"""The most windows times steps of such a picture."""
DEEPEST, PARTS, REGIONS, NUMBER = 8, 16, 64, 10_000
"""The deepest nesting of such a recipe, its most parts and regions, and the largest whole number among a part's settings."""

PICTURES = ("image", "mask", "control_image", "ip_adapter_image")
"""The settings that are pictures."""
MODEL_FILES = frozenset({"config", "controlnet", "embeddings", "ip_adapter", "loras", "vae"})
"""The settings of a model that name files, or models of the hub."""


class Source(NamedTuple):
    """Where settings that are not trusted come from, in words for errors.

    Attributes:
        name: what holds them.
        trust: how to trust it; empty if nobody can.
    """

    name: str = "the recipe"
    trust: str = "(--trust)"

    @property
    def most(self) -> str:
        """What a bound is."""
        return f"the most without trusting it {self.trust}" if self.trust else "the most"

    def advice(self, purpose: str = "") -> str:
        """The end of a message: that it works once the source is trusted.

        Args:
            purpose: what for, as `to read it`.
        """
        return f": trust it {self.trust} {purpose}".rstrip() if self.trust else ""


RECIPE = Source()
"""A recipe in a file."""
_PILLOW = Lock()
"""Whoever holds it may change Pillow's bound, which is one for all threads."""
_WORD = re.compile(r"[\w+-][\w+ .-]{0,63}")
"""A text that every parser reads as a text."""
_IMPORTABLE = re.compile(r".*\.\s*[^\W\d].*")
"""A text that a library might import: a name after a dot."""


def name_of(recipe: Mapping[str, Any]) -> str:
    """The name of a picture: its prompt, its seed, and a hash of its recipe without the versions of libraries."""
    words = words_of(recipe["prompt"] if isinstance(recipe["prompt"], str) else "regions")
    content = json.dumps({key: value for key, value in recipe.items() if key not in VERSIONS}, sort_keys=True)
    return f"{words}-{recipe['seed']}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def words_of(prompt: str) -> str:
    """A prompt as a part of a file name."""
    return re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:48].rstrip("-") or "panorama"


def is_digest(name: object) -> bool:
    """Whether a recipe names a picture that was in no file, by the SHA-256 of its pixels.

    Args:
        name: what the recipe has in the place of a picture's file.
    """
    return isinstance(name, str) and name.startswith("sha256:")


def texts(recipe: Mapping[str, Any], stacklevel: int = 2) -> dict[str, str]:
    """The texts that a picture carries, by the keywords of their chunks in a PNG. `KEY` is that of the recipe, in ASCII.

    Args:
        recipe: the recipe.
        stacklevel: whose line a warning names.

    Returns:
        The texts; without those of the recipe, and with a warning, if it is too long.
    """
    xmp = equirectangular.packet_of(recipe)
    kept = {} if xmp is None else {equirectangular.KEYWORD: xmp}
    text = json.dumps(recipe)
    if len(text) > LONGEST:
        warnings.warn(f"the recipe is longer than {LONGEST} letters and is left out", FallbackWarning, stacklevel=stacklevel)
        return kept
    return {KEY: text, _PARAMETERS: _parameters(recipe), **kept}


def embedded(recipe: Mapping[str, Any], format: str) -> dict[str, Any]:
    """The arguments of Pillow's `save` that put a recipe, and the XMP of an equirectangular picture, into the file.

    Args:
        recipe: the recipe.
        format: Pillow's name of the format.

    Returns:
        The arguments; empty if the format has no place for a recipe. A recipe that is too long is left out, with a warning.
    """
    from PIL.PngImagePlugin import PngInfo

    if format not in ("PNG", "JPEG", "WEBP", "TIFF"):
        return {}
    kept = texts(recipe, stacklevel=4)
    if format == "PNG":
        chunks = PngInfo()
        for keyword, text in kept.items():
            chunks.add_itxt(keyword, text)
        return {"pnginfo": chunks} if kept else {}
    xmp = kept.get(equirectangular.KEYWORD, "").encode()
    exif = _exif(kept, xmp if format == "TIFF" else b"")
    if format == "JPEG" and len(exif) > _EXIF_HOLDS:
        warnings.warn("the recipe is longer than a JPEG holds and is left out: try .png", FallbackWarning, stacklevel=3)
        exif = b""
    return ({"exif": exif} if exif else {}) | ({"xmp": xmp} if xmp and format != "TIFF" else {})


def _exif(kept: Mapping[str, str], xmp: bytes) -> bytes:
    """The Exif of a picture; empty if there is nothing to keep. Pillow takes all entries of a TIFF as Exif, XMP too."""
    from PIL import Image

    exif = Image.Exif()
    if KEY in kept:
        exif[_DESCRIPTION] = kept[KEY]
        exif.get_ifd(_EXIF)[_COMMENT] = _UNICODE + kept[_PARAMETERS].encode("utf-16-be")
    if xmp:
        exif[_XMP] = xmp
    return exif.tobytes() if len(exif) else b""


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the recipe in a picture or a film, without checking its values: see `check`.

    Args:
        path: the file.

    Raises:
        SettingError: the file is no picture and no film, or holds no recipe.
    """
    if boxes.is_boxed(path):
        text: object = boxes.read(path).text
    else:
        text = _text_of_tiles(path) if deepzoom.is_deep_zoom(path) else _text_of(path)
    if not text:
        raise SettingError(f"{path} holds no recipe: give a picture that panokit wrote and nobody saved again")
    if not isinstance(text, str) or len(text) > LONGEST:
        raise SettingError(f"the recipe in {path} is longer than any that panokit writes")
    try:
        recipe = json.loads(text)
    except (ValueError, RecursionError) as cause:
        raise SettingError(f"the recipe in {path} is damaged, or is not panokit's") from cause
    if not isinstance(recipe, dict):
        raise SettingError(f"the recipe in {path} is damaged: it is a {type(recipe).__name__} and no mapping")
    return recipe


def _text_of(path: str | os.PathLike[str]) -> object:
    """The recipe in the file of a picture, as it stands there; nothing if there is none."""
    from PIL import Image

    try:
        with unbounded(), Image.open(path, formats=("PNG", "JPEG", "WEBP", "TIFF")) as image:
            # For a PNG, Pillow would decode all pixels to look for Exif.
            return image.info.get(KEY) if image.format == "PNG" else image.getexif().get(_DESCRIPTION)
    except FileNotFoundError as cause:
        raise SettingError(f"there is no picture {path}") from cause
    except Exception as cause:  # a damaged file can break its reader anywhere
        kinds = "PNG, JPEG, WebP, TIFF or Deep Zoom picture"
        raise SettingError(f"{path} cannot be read as a picture: give a {kinds} that panokit wrote") from cause


def _text_of_tiles(path: str | os.PathLike[str]) -> str:
    """The recipe among the tiles of a Deep Zoom picture; nothing if there is none."""
    try:
        with (deepzoom.read(path).folder / deepzoom.RECIPE).open("rb") as file:
            return file.read(LONGEST + 1).decode("utf-8", "replace")
    except OSError:
        return ""


@contextmanager
def unbounded() -> Iterator[int | None]:
    """Pillow opens pictures of any size while it is open. No pixel may be decoded before the size is checked.

    Yields:
        Pillow's own bound: it warns of more pixels, and refuses more than twice as many. None if there is none.
    """
    from PIL import Image

    with _PILLOW:
        bound, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield bound
        finally:
            Image.MAX_IMAGE_PIXELS = bound


def check(recipe: Mapping[str, Any], source: Source = RECIPE) -> None:
    """Check a recipe that is not trusted.

    Every value must have its right type before a library sees it. Otherwise a library could parse a text, in the place of a
    number or a list, into something else.

    Args:
        recipe: the recipe as `read` returned it.
        source: where it is from, for errors.

    Raises:
        SettingError: a value has a wrong type or is too large, or a text could be code.
    """
    for name, most in BOUNDS.items():
        value = recipe.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise SettingError(f"{name} came as {value!r:.80}: it must be a whole number")
        if value is not None and abs(value) > most:
            raise SettingError(f"{source.name} asks for {name} {value!s:.24}, and {most} is {source.most}")
    height, width, frames = (recipe.get(name) or 0 for name in ("height", "width", "frames"))
    if height * width * max(1, frames) > AREA:
        film = f" in {frames} frames" * (frames > 1)
        raise SettingError(f"{source.name} asks for {width} x {height} pixels{film}, and {AREA} is {source.most}")
    kinds: dict[str, Any] = {
        "prompt": str | dict,
        "negative_prompt": str,
        "guidance_scale": int | float,
        "guidance_end": int | float,
        "strength": int | float,
        "at": list,
        "guidances": list,
        "model": str | dict,
        "layout": str | dict,
        "fuser": str | dict,
        "scheduler": str | dict,
        "checkpointing": bool,
        "channels_last": bool,
        "compile": bool,
    }
    for name, kind in kinds.items():
        if recipe.get(name) is not None and not isinstance(recipe[name], kind):
            raise SettingError(f"{name} came as {recipe[name]!r:.80}: {source.name} is damaged, or is not panokit's")
    check_files(recipe, source)
    prompt = recipe.get("prompt")
    lists = (value for value in prompt.values() if isinstance(value, list)) if isinstance(prompt, Mapping) else ()
    if sum(map(len, lists)) > REGIONS:
        raise SettingError(f"{source.name} has more than {REGIONS} regions, {source.most}")
    plain = {name: value for name, value in recipe.items() if name not in ("prompt", "negative_prompt")}
    check_plain(plain, source)
    parts = [node.value for node in walk(plain) if isinstance(node.value, Mapping) and node.depth]
    if len(parts) > PARTS:
        raise SettingError(f"{source.name} has more than {PARTS} plugins, {source.most}")
    for value in (value for part in parts for value in part.values()):
        if isinstance(value, int) and abs(value) > NUMBER:
            raise SettingError(f"{source.name} sets a plugin to {value!s:.24}, and {NUMBER} is {source.most}")


def check_files(recipe: Mapping[str, Any], source: Source = RECIPE) -> None:
    """Check that a recipe that is not trusted reads no file of this machine.

    Args:
        recipe: the recipe, or a job.
        source: where it is from, for errors.

    Raises:
        SettingError: it names a picture, or a region of its prompt has a mask.
    """
    regions = [node.value for node in walk(recipe.get("prompt")) if isinstance(node.value, Mapping)]
    of_regions = (region.get(name) for region in regions for name in ("mask", "ip_adapter_image"))
    for file in (*(recipe.get(name) for name in PICTURES), *of_regions):
        if file is not None:
            raise SettingError(
                f"{source.name} names the picture {file!r:.80}, a file of this machine{source.advice('to read it')}"
            )


def check_names(job: Mapping[str, Any]) -> None:
    """Check that a job that is not trusted names installed plugins alone.

    Args:
        job: the job. Its model is never a class by `module:Class`, so its name may be any path.

    Raises:
        SettingError: it names a plugin by `module:Class`, whose module would be imported.
    """
    for part in ("model", "scheduler", "layout", "fuser", "guidances"):
        for path, value, _ in walk(job.get(part), part):
            names_a_plugin = path.endswith(".plugin") or re.fullmatch(r"scheduler|layout|fuser|guidances(\.\d+)?", path)
            if isinstance(value, str) and ":" in value and names_a_plugin and not re.fullmatch(r"(model\.)+plugin", path):
                raise SettingError(
                    f"{path} is {value!r:.80}, which is code and no installed plugin's name: trust the file of jobs (--trust)"
                )


def check_work(calls: int, source: Source = RECIPE) -> None:
    """Check the amount of work in a recipe that is not trusted.

    Args:
        calls: windows times steps.
        source: where it is from, for errors.

    Raises:
        SettingError: it is more than `WORK`.
    """
    if calls > WORK:
        raise SettingError(f"{source.name} asks for {calls} windows, all steps together, and {WORK} is {source.most}")


def check_plain(data: Any, source: Source = RECIPE) -> None:
    """Check that nested data hold no text that a library could import.

    Args:
        data: mappings, lists and values, at most `DEEPEST` containers deep.
        source: where they are from, for errors.

    Raises:
        SettingError: they are nested too deep, or hold a text or a key that could be code.
    """
    for _, value, depth in walk(data):
        if isinstance(value, Mapping | list) and depth >= DEEPEST:
            raise SettingError(f"{source.name} is nested more than {DEEPEST} deep: it is damaged, or is not panokit's")
        if isinstance(value, Mapping) and "class_path" in value:
            raise SettingError(
                f"{source.name} asks for a class_path, which is code and no installed plugin's name{source.advice()}"
            )
        for text in value if isinstance(value, Mapping) else [value]:
            if isinstance(text, str) and text and (not _WORD.fullmatch(text) or _IMPORTABLE.fullmatch(text)):
                raise SettingError(
                    f"{source.name} asks for {text!r:.80}, which is code and no installed plugin's name"
                    f"{source.advice('if you trust whom it is from')}"
                )


def _parameters(recipe: Mapping[str, Any]) -> str:
    """The recipe in the format of the Stable Diffusion web UI, as far as that has words for it."""
    prompt = recipe.get("prompt", "")
    texts = [prompt if isinstance(prompt, str) else json.dumps(prompt)]
    if recipe.get("negative_prompt"):
        texts.append(recipe["negative_prompt"])
    # Its readers look for this word anywhere, so no text may hold it.
    lines = "\nNegative prompt: ".join(re.sub("Negative prompt:+", "Negative prompt", text) for text in texts)
    words = {
        "Steps": recipe.get("steps"),
        "Sampler": recipe.get("scheduler", {}).get("plugin"),
        "CFG scale": recipe.get("guidance_scale"),
        "Seed": recipe.get("seed"),
        "Size": f"{recipe.get('width')}x{recipe.get('height')}",
        "Model": model.get("plugin") if isinstance(model := recipe.get("model"), dict) else model,
        "Version": f"panokit {recipe.get('panokit')}",
    }
    block = f"{lines}\n{', '.join(f'{key}: {value}' for key, value in words.items())}"
    return block.encode("utf-8", "replace").decode()  # a model's folder may have a name that is no UTF-8
