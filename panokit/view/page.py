"""The page: pictures, what their recipes say, and the viewers, in one HTML file that needs no network.

All that comes from files is data in JSON, which the script of the page sets as text. The page forbids every other script.
"""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from html import escape
from importlib.resources import files
from string import Template
from typing import Any, Literal

from panokit import recipe as recipes
from panokit.films import frames_of
from panokit.recipe_text import as_command, lacks_pictures
from panokit.view.picture import Picture

Form = Literal["pictures", "gallery", "cell"]
"""How the pictures are shown: all at once, small ones that open, or one in the cell of a notebook."""

_CLIP = 4000
"""The most letters of a recipe's value on a page."""
_NAMES = {"seed": "Seed", "steps": "Steps", "guidance_scale": "Guidance scale", "negative_prompt": "Avoid"}
_PARTS = ("model", "scheduler", "layout", "fuser")
_LAST = (*recipes.VERSIONS, *recipes.FACTS)


def page(pictures: Sequence[Picture], form: Form = "pictures", problems: Sequence[str] = ()) -> str:
    """Write the page.

    Args:
        pictures: the pictures, one or more.
        form: how they are shown.
        problems: what is wrong with files that are not shown.

    Returns:
        HTML.
    """
    names = [picture.name for picture in pictures]
    title = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
    data = {
        "form": form,
        "problems": [_clipped(problem) for problem in problems],
        "pictures": [_described(picture) for picture in pictures],
    }
    scripts = [_file("page.js")]
    styles = [_file("page.css")]
    licences = []
    if any(picture.sphere for picture in pictures):
        scripts.insert(0, _file("vendored/pannellum.min.js"))
        styles.insert(0, _file("vendored/pannellum.min.css"))
        licences.append(f"pannellum\n\n{_file('vendored/pannellum.LICENSE.txt')}")
    if any(not picture.sphere and not picture.film for picture in pictures):
        scripts.insert(0, _file("vendored/openseadragon.min.js"))
        licences.append(f"OpenSeadragon\n\n{_file('vendored/openseadragon.LICENSE.txt')}")
    contents = [
        f'<script type="{picture.data.kind};base64" id="picture-{k}">{picture.data.text}</script>'
        for k, picture in enumerate(pictures)
        if picture.data
    ]
    return Template(_file("page.html")).substitute(
        title=escape(title),
        form=form,
        policy=_policy(scripts),
        styles="\n".join(styles),
        data=_json(data),
        licences="\n".join(f"<!-- {licence} -->" for licence in licences),
        contents="\n".join(contents),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def _policy(scripts: Sequence[str]) -> str:
    """What the page may load: its own scripts by their hashes, and pictures."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    rules = {
        "default-src": "'none'",
        "script-src": " ".join(f"'sha256-{digest}'" for digest in hashes),
        "style-src": "'unsafe-inline'",
        "img-src": "data: blob: file: 'self'",
        "media-src": "blob: file: 'self'",
        "connect-src": "blob:",
        "worker-src": "blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {sources}" for name, sources in rules.items())


def _described(picture: Picture) -> dict[str, Any]:
    """What the script of the page needs to know of a picture."""
    vertical, horizontal = picture.wraps
    command = _command(picture.recipe) if picture.recipe else ""
    described = {
        "name": picture.name,
        "size": list(picture.size),
        "wrap": [horizontal, vertical],
        "film": picture.film,
        "loop": picture.loops,
        "sphere": picture.sphere,
        "url": picture.url,
        "tiles": picture.tiles,
        "thumbnail": picture.thumbnail and picture.thumbnail.url,
        "note": picture.note,
        "rows": [*_rows(picture)],
        "command": command,
        "lacks": bool(command) and lacks_pictures(picture.recipe or {}),
        "foreign": picture.recipe is not None and not _names_installed(picture.recipe),
    }
    return {name: value for name, value in described.items() if value not in (None, "", False)}


def _command(recipe: Mapping[str, Any]) -> str:
    """The command that makes a picture again; empty if its recipe is so damaged or so long that nobody can use it."""
    with suppress(Exception):  # anybody may have written the recipe
        command = as_command(recipe)
        return command if len(command) <= recipes.LONGEST else ""
    return ""


def _names_installed(recipe: Mapping[str, Any]) -> bool:
    """Whether a recipe names neither files nor classes, but installed plugins alone."""
    texts = ("prompt", "negative_prompt", *_LAST)
    with suppress(Exception):  # anybody may have written the recipe
        recipes.check_files(recipe)
        recipes.check_plain({name: value for name, value in recipe.items() if name not in texts})
        return True
    return False


def _rows(picture: Picture) -> Iterator[tuple[str, str]]:
    """The rows of the table beside a picture: pairs of a name and a text."""
    width, height = picture.size
    recipe = dict(picture.recipe or {})
    for name in ("width", "height"):
        recipe.pop(name, None)
    if (text := _text(recipe.pop("prompt", None))) != "":
        yield "Prompt", text
    frames = frames_of(recipe)
    yield "Size", f"{width} x {height} pixels" + (f", {frames} frames" if frames > 1 else "")
    recipe.pop("frames", None)
    if not picture.recipe:
        yield "Recipe", "none in this file"
        return
    for name, words in _NAMES.items():
        if (text := _text(recipe.pop(name, None))) != "":
            yield words, text
    guidances = recipe.pop("guidances", None)
    method = [recipe.get("fuser"), *(guidances if isinstance(guidances, list) else [guidances] if guidances else [])]
    if any(method):
        yield "Method", " + ".join(_name(part) for part in method if part)
    for name in _PARTS:
        if (text := _text(recipe.pop(name, None))) != "":
            yield name.capitalize(), text
    for guidance in method[1:]:
        yield f"Guidance {_clipped(_name(guidance), 40)}", _text(guidance)
    for name in sorted(recipe, key=lambda name: name in _LAST):
        if recipe[name] is not False and (text := _text(recipe[name])) != "":
            yield _clipped(name.replace("_", " ").capitalize(), 40), text


def _name(part: Any) -> str:
    return _clipped(str(part.get("plugin", "")) if isinstance(part, Mapping) else str(part))


def _text(value: Any) -> str:
    """A value of a recipe as text for people: `msd: weight 10, decay 2`. What is none or empty gives an empty text."""
    return _clipped(_words(value))


def _words(value: Any, depth: int = 0) -> str:
    if depth > recipes.DEEPEST:
        return "..."
    if value is None or value in ({}, []):
        return ""
    if isinstance(value, Mapping):
        texts = {name: _words(item, depth + 1) for name, item in value.items() if name != "plugin"}
        rest = ", ".join(f"{name} {text}" for name, text in texts.items() if text != "")
        return ": ".join(filter(None, (str(value.get("plugin", "")), rest)))
    if isinstance(value, list | tuple):
        return ("; " if any(isinstance(item, Mapping | list) for item in value) else ", ").join(
            _words(item, depth + 1) for item in value
        )
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _clipped(text: str, most: int = _CLIP) -> str:
    return text if len(text) <= most else f"{text[:most]} ..."


def _json(data: Any) -> str:
    """Data in JSON, of which no part ends the element that it stands in."""
    text = json.dumps(data)  # in ASCII alone
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def _file(name: str) -> str:
    """A file of this package, as it stands on the page."""
    return files("panokit.view").joinpath(name).read_text(encoding="utf-8")
