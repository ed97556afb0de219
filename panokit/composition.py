"""Plugins from plain data and back, for configurations and recipes.

A part is a name, `msd`, or a mapping of a name and settings, `{plugin: msd, weight: 5}`. A name is that of an entry point, or
`module:Class`. A setting may hold guidances as parts again.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from functools import cache, partial
from typing import Any, NamedTuple, TypeVar

from docstring_parser import parse

from panokit import registry
from panokit.errors import PluginLoadError, SettingError
from panokit.family import Family
from panokit.fuser import Fuser
from panokit.guidance import Guidance
from panokit.hints import fit, hints_of, meanings_of, words
from panokit.layout import Layout
from panokit.moved import means_the_same, no_setting
from panokit.plain import map_leaves
from panokit.recipe import check_plain
from panokit.registry import Kind
from panokit.scene import Prompt, Region, Regions
from panokit.scheduler import Scheduler

Plugin = TypeVar("Plugin", Layout, Fuser, Guidance, Scheduler, Family)

BASES: Mapping[Kind, Any] = {
    "layouts": Layout,
    "fusers": Fuser,
    "guidances": Guidance,
    "schedulers": Scheduler,
    "families": Family,
}
"""The contract of each kind of plugin that has settings."""


class Parameter(NamedTuple):
    """A setting of a plugin, as text for people.

    Attributes:
        name: the name of the setting.
        type: its type.
        default: its default; empty if it has none.
        meaning: its description in the plugin's docstring.
    """

    name: str
    type: str
    default: str
    meaning: str


def build(base: type[Plugin], part: object, *, trusted: bool = True, called: str = "") -> Plugin:
    """Make the plugin that a part describes.

    Args:
        base: the contract that the plugin must fulfil: `Layout`, `Fuser`, `Guidance`, `Scheduler` or `Family`.
        part: a name, or a mapping of `plugin`, the name, and settings.
        trusted: False for data from a file that somebody else may have written. Then only installed plugins are imported.
        called: the plugin's name in messages; empty for the one in the part.

    Returns:
        The plugin.

    Raises:
        PluginNotFoundError: no installed plugin has the name, or more than one has it.
        PluginLoadError: it is installed and cannot be imported.
        SettingError: the part is no name and no such mapping, the plugin has no such setting or refuses its value, or the part
            needs to be trusted.
    """
    name, settings = _split(base, part)
    if not trusted:
        check_plain({"plugin": name, **settings})
    maker = _maker(base, name)
    if base is not Family:  # the settings of a family may hold a model as a part, which the family loads
        settings = {key: _nested(value, trusted) for key, value in settings.items()}
    return _made(called or name, maker, settings)


def describe(plugin: Layout | Fuser | Guidance | Scheduler) -> dict[str, Any]:
    """Describe a plugin as a part: its name and all its settings, as numbers, text, lists and mappings."""
    settings: dict[str, Any] = {}
    if is_dataclass(plugin):
        settings = {field.name: getattr(plugin, field.name) for field in fields(plugin)}
    # The last name is the place of the class, which always fits.
    name, preset = next((name, preset) for name, preset in _names(type(plugin)) if preset.items() <= settings.items())
    return {"plugin": name, **{key: _plain(value) for key, value in settings.items() if key not in preset}}


def prompt_from(data: object) -> Prompt:
    """Make a prompt from plain data.

    Args:
        data: a text, or `{regions: [...], elsewhere: TEXT}`. A region is `{box: [LEFT, TOP, RIGHT, BOTTOM], text: TEXT}`. It
            may have `mask: FILE` in the place of the box, a `negative_prompt`, a `weight` and a `guidance_scale`. `boxes:
            [[BOX, TEXT], ...]` is short for regions with boxes alone. `mix: windows` gives each window one text.

    Returns:
        The text, or the regions.

    Raises:
        SettingError: the data are neither, or a box is empty or leaves the canvas.
    """
    if isinstance(data, str):
        return data
    names = {"boxes", "regions", "elsewhere", "mix"}
    entries: Mapping[str, Any] = data if isinstance(data, Mapping) and data.keys() <= names else {}
    elsewhere, given = entries.get("elsewhere", ""), [*_listed(entries.get("boxes")), *_listed(entries.get("regions"))]
    regions = [_region(region) for region in given]
    if not regions or None in regions or not isinstance(elsewhere, str):
        raise SettingError(
            f"a prompt came as {data!r:.200}: give a text, or {{regions: [{{box: [LEFT, TOP, RIGHT, BOTTOM], text: TEXT}}, "
            "{mask: FILE, text: TEXT}, ...], elsewhere: TEXT}"
        )
    return Regions(tuple(region for region in regions if region), elsewhere, entries.get("mix", "cells"))


def _listed(data: Any) -> Sequence[Any]:
    return [] if data is None else data if isinstance(data, list | tuple) else [None]


def _region(data: Any) -> Region | None:
    """A region from plain data: a mapping, or a pair of a box and a text; None if it is neither."""
    if isinstance(data, list | tuple) and len(data) == 2:
        data = dict(zip(("box", "text"), data, strict=True))
    texts = dict.fromkeys(("mask", "text", "negative_prompt", "ip_adapter_image"), str)
    kinds: dict[str, Any] = {"box": tuple, "weight": float | None, "guidance_scale": float | None, **texts}
    if not isinstance(data, Mapping) or not data.keys() <= kinds.keys() or ("box" in data) == ("mask" in data):
        return None
    try:
        fitted = {name: fit(value, kinds[name]) for name, value in data.items()}
        if "box" in fitted:
            left, top, right, bottom = fitted["box"]
            if not all(type(number) in (int, float) for number in (left, top, right, bottom)):
                return None
        area = fitted.pop("box") if "box" in fitted else fitted.pop("mask")
        return Region(area, **fitted)
    except SettingError:
        raise
    except (TypeError, ValueError):
        return None


def parameters(base: type[Layout | Fuser | Guidance | Scheduler | Family], name: str) -> tuple[str, list[Parameter]]:
    """The first line of a plugin's docstring, and its settings.

    Args:
        base: the contract of the plugin.
        name: its name.

    Raises:
        PluginNotFoundError: no installed plugin has the name, or more than one has it.
        PluginLoadError: it is installed and cannot be imported.
    """
    maker = _maker(base, name)
    cls, preset = registry.made_class(maker), registry.bound(maker)
    meanings = meanings_of(cls)
    own = inspect.signature(maker).parameters  # a class method has defaults of its own
    settings = {key: own.get(key, parameter) for key, parameter in _parameters(cls).items() if key not in preset}
    summary = registry.summary(maker) if preset else parse(maker.__doc__ or "").short_description or ""
    return summary, [
        Parameter(key, _type(parameter), _default(cls, parameter), meanings.get(key, "")) for key, parameter in settings.items()
    ]


def _default(cls: type, parameter: inspect.Parameter) -> str:
    """The default of a setting as text; empty if there is none."""
    if parameter.default is parameter.empty:
        return ""
    factories = {field.name: field.default_factory for field in fields(cls)} if is_dataclass(cls) else {}
    factory: Any = factories.get(parameter.name, MISSING)
    return repr(parameter.default if factory is MISSING else factory())


def _split(base: type, part: object) -> tuple[str, dict[str, Any]]:
    """The name and the settings of a part."""
    if isinstance(part, str):
        part = {"plugin": part}
    if isinstance(part, Mapping) and isinstance(part.get("plugin"), str) and all(isinstance(key, str) for key in part):
        settings = dict(part)
        return settings.pop("plugin"), settings
    raise SettingError(
        f"a {base.__name__.lower()} came as {part!r:.200}: give its name, or a mapping of its name and settings, "
        "{plugin: NAME, SETTING: VALUE}"
    )


def _maker(base: type, name: str) -> Callable[..., Any]:
    """The maker that a name stands for; see `registry.maker`."""
    return registry.maker(_kind(base), name, base)


def _kind(cls: type) -> Kind:
    return next(kind for kind, base in BASES.items() if issubclass(cls, base))


def _nested(value: Any, trusted: bool) -> Any:
    """The value of a setting, with guidances in the place of the parts that describe them."""

    def is_part(node: Any) -> bool:
        return isinstance(node, Mapping) and "plugin" in node

    return map_leaves(value, lambda leaf: build(Guidance, leaf, trusted=trusted) if is_part(leaf) else leaf, is_leaf=is_part)


def _made(name: str, maker: Callable[..., Any], settings: Mapping[str, Any]) -> Any:
    """Call a maker, with settings that it has, converted to their types."""
    cls = registry.made_class(maker)
    known = {key: parameter for key, parameter in _parameters(cls).items() if key not in registry.bound(maker)}
    hints, fitted = hints_of(cls), {}
    for key, value in settings.items():
        if means_the_same(cls, key, value):
            continue
        if key not in known:
            if advice := no_setting(cls, name, key):
                raise SettingError(advice)
            close = get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise SettingError(f"{name} has no setting {key!r}: {hint}it has {', '.join(sorted(known)) or 'none'}")
        try:
            fitted[key] = fit(value, hints.get(key, Any))
        except TypeError as cause:
            expected = words(hints[key], value)
            hint = ", each {plugin: NAME, SETTING: VALUE}" if "Guidance" in expected else ""
            raise SettingError(f"{key} of {name} came as {value!r:.80}: it must be {expected}{hint}") from cause
    try:
        return maker(**fitted)
    except SettingError as cause:
        raise SettingError(f"{name}: {cause}") from cause
    except (TypeError, ValueError) as cause:  # an abstract class, a setting without a default, or settings that do not fit
        how = f"with the settings {dict(settings)!r}" if settings else "by name alone"
        raise SettingError(f"{name} cannot be made {how}: {cause}") from cause


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    """The settings of a class: the arguments of its constructor that have a name."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {key: parameter for key, parameter in inspect.signature(cls).parameters.items() if parameter.kind in named}


def _type(parameter: inspect.Parameter) -> str:
    if parameter.annotation is parameter.empty:
        return "anything"
    text = parameter.annotation if isinstance(parameter.annotation, str) else inspect.formatannotation(parameter.annotation)
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z]\w*)", "", text)


@cache
def _names(cls: type) -> list[tuple[str, dict[str, Any]]]:
    """The installed names of a class, each with the settings that its preset fixes. The last name is the place of the class."""
    home = cls.__module__.partition(".")[0]
    names = []
    for plugin in registry.plugins(_kind(cls)):
        if plugin.home != home:
            continue  # only the package of the class is imported, and it is imported already
        try:
            maker = plugin.load()
        except PluginLoadError:  # another plugin of the package is broken
            continue
        if isinstance(maker, type | partial) and registry.made_class(maker) is cls:
            names.append((plugin.name, registry.bound(maker)))
    return [*names, (f"{cls.__module__}:{cls.__qualname__}", {})]


def _plain(value: Any) -> Any:
    """A setting as numbers, text, lists and mappings. Anything else becomes its `repr`, without memory addresses."""

    def plain(leaf: Any) -> Any:
        if isinstance(leaf, Layout | Fuser | Guidance | Scheduler):
            return describe(leaf)
        return leaf if isinstance(leaf, bool | int | float | str | None) else re.sub(r" at 0x[0-9a-f]+", "", repr(leaf))

    return map_leaves(value, plain, sequence=list)
