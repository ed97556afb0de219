"""A recipe as text for people: a command, a configuration in YAML, or a program in Python. Each makes the picture again.

A recipe holds no pictures. Where it has the hash of one that was in no file, the text has FILE: give a file of that picture.
A recipe may come from a stranger. So every value is quoted, and no character reaches a terminal that does more than print.
"""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from panokit.films import ending as ending_of_films
from panokit.films import frames_of
from panokit.recipe import PICTURES, is_digest, words_of
from panokit.settings import NUMERICS, SETTINGS

FILE = "FILE"
"""What stands for a picture to give again."""
_PARTS = ("model", "scheduler", "layout", "fuser")
_RUNTIME = ("precision", *NUMERICS)
_LINE = 1 << 20
"""More letters than a recipe has: YAML breaks no shorter line."""


def as_command(recipe: Mapping[str, Any]) -> str:
    """The command that makes the picture again, `panokit generate ...`, for bash and zsh.

    Args:
        recipe: the recipe, as `panokit.recipe.read` or `Panorama.recipe` gives it. Its values need not be checked.
    """
    return " ".join(_quoted(word) for word in ("panokit", "generate", *_words(_options(recipe))))


def as_yaml(recipe: Mapping[str, Any]) -> str:
    """A configuration in YAML that makes the picture again, with `panokit generate --config FILE`.

    Args:
        recipe: the recipe, as `panokit.recipe.read` or `Panorama.recipe` gives it. Its values need not be checked.
    """
    return yaml.safe_dump(_options(recipe), sort_keys=False, allow_unicode=True, width=100)


def as_python(recipe: Mapping[str, Any]) -> str:
    """A program in Python that makes the picture again and saves it.

    Args:
        recipe: the recipe, as `panokit.recipe.read` or `Panorama.recipe` gives it. Its values need not be checked.
    """
    options = _options(recipe)
    prompt = options.get("prompt", "")
    of_regions = not isinstance(prompt, str)
    parts = [repr(options["model"])] if "model" in options else []
    parts += [f"{name}={options[name]!r}" for name in (*_PARTS[1:], "guidances") if name in options]
    parts += [f"runtime=Runtime({', '.join(f'{name}={options[name]!r}' for name in _RUNTIME if name in options)})"]
    settings = [f"prompt_from({prompt!r})" if of_regions else repr(prompt)]
    settings += [f"{name}={options[name]!r}" for name in SETTINGS if name in options]
    ending = ending_of_films() if frames_of(recipe) > 1 else ".png"
    name = f"{words_of(prompt if isinstance(prompt, str) else 'regions')}-again{ending}"
    lines = ["from panokit import Runtime, Sampler"]
    lines += ["from panokit.composition import prompt_from"] if of_regions else []
    lines += ["", *_call("sampler = Sampler", parts), *_call("panorama = sampler", settings), f"panorama.save({name!r})"]
    return "\n".join(lines) + "\n"


def lacks_pictures(recipe: Mapping[str, Any]) -> bool:
    """Whether FILE stands in the texts of a recipe for pictures to give again.

    Args:
        recipe: the recipe. Its values need not be checked.
    """
    return _with_files(recipe) != recipe


def _with_files(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with FILE for each picture that it names by a hash, in its prompt's regions too."""
    changed = {**recipe, **{name: FILE for name in PICTURES if is_digest(recipe.get(name))}}
    prompt = recipe.get("prompt")
    if isinstance(prompt, Mapping) and isinstance(regions := prompt.get("regions"), list):
        filled = [_with_file(region) if isinstance(region, Mapping) else region for region in regions]
        changed["prompt"] = {**prompt, "regions": filled}
    return changed


def _with_file(region: Mapping[str, Any]) -> dict[str, Any]:
    return {**region, **{name: FILE for name in ("mask", "ip_adapter_image") if is_digest(region.get(name))}}


def _options(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `panokit generate` in a recipe. Settings that are none, false or empty are left out: they are defaults.

    No two places hold one object, which YAML would write as an alias.
    """
    recipe = _with_files(recipe)
    prompt = {"prompt": recipe["prompt"]} if recipe.get("prompt") is not None else {}
    names = (*SETTINGS, *_PARTS, "guidances", *_RUNTIME)
    given = {name: value for name in names if (value := recipe.get(name)) not in (None, "", [], ()) and value is not False}
    return json.loads(json.dumps({**prompt, **given}))


def _words(options: Mapping[str, Any]) -> Iterator[str]:
    """The words after `panokit generate`."""
    prompt = options.get("prompt", "")
    if not isinstance(prompt, str):
        yield f"--prompt={_as_value([prompt])}"
    elif not prompt.startswith("-"):
        yield prompt
    for name in SETTINGS:
        if name in options:
            yield from _option(name, _setting(options[name]))
    for name in _PARTS:
        if name in options:
            yield from _option(name, _part(options[name], as_it_is=name == "model"))
    guidances = options.get("guidances", [])
    for guidance in guidances if isinstance(guidances, list) else []:
        yield f"--guidances+={_part(guidance)}"
    for name in _RUNTIME:
        if name in options:
            yield from _option(name, _setting(options[name]))
    if isinstance(prompt, str) and prompt.startswith("-"):
        yield from ("--", prompt)


def _option(name: str, value: str) -> list[str]:
    """An option as words. A value that could be taken for an option stays in one word with its name."""
    return [f"--{name}={value}"] if value.startswith("-") else [f"--{name}", value]


def _setting(value: Any) -> str:
    """A setting as its option takes it. `at` is a pair of numbers, and texts are taken as they are."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return value if isinstance(value, str) else _as_value(value)


def _part(part: Any, *, as_it_is: bool = False) -> str:
    """A plugin as its option takes it: a name, or a mapping in YAML, in one line.

    Args:
        part: the plugin as plain data.
        as_it_is: whether the option takes a name as it is, and does not read it as YAML.
    """
    name = part.get("plugin") if isinstance(part, Mapping) and len(part) == 1 else part
    if as_it_is and isinstance(name, str):
        return _as_value({"plugin": name}) if name.startswith("{") else name
    return _as_value(name)


def _as_value(value: Any) -> str:
    """A value in YAML, in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=_LINE)
    return text.removesuffix("...\n").strip()


def _quoted(word: str) -> str:
    """A word, quoted for a shell. Characters that are not printed are escaped: a terminal acts on them when they are pasted."""
    if word.isprintable():
        return shlex.quote(word)
    return f"$'{re.sub(r'.', lambda letter: _escaped(letter[0]), word, flags=re.DOTALL)}'"


def _escaped(letter: str) -> str:
    if letter in "'\\":
        return f"\\{letter}"
    if letter.isprintable():
        return letter
    code = ord(letter)
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _call(function: str, arguments: list[str]) -> list[str]:
    """A call in Python, in one line if it is short, else with a line for each argument."""
    line = f"{function}({', '.join(arguments)})"
    return [line] if len(line) <= 100 else [f"{function}(", *(f"    {argument}," for argument in arguments), ")"]
