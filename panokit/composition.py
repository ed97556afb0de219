"""Plugins as plain data and back: what a configuration says and a recipe keeps.

A part is a name, `msd`, or a mapping of a name and settings, `{plugin: msd, weight: 5}`; names are those of entry points, or
`module:Class`. Settings may hold parts again, as `coarse_guidances` of `msd` does.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any, NamedTuple, TypeVar, cast

from docstring_parser import parse
from jsonargparse import ArgumentError, ArgumentParser

from panokit import registry
from panokit.backbones.diffusers.scheduler import DiffusersScheduler
from panokit.denoiser import Prompt, Regions
from panokit.errors import SettingError
from panokit.fuser import Fuser
from panokit.guidance import Guidance
from panokit.recipe import check_plain
from panokit.registry import Kind
from panokit.scheduler import Scheduler

Plugin = TypeVar("Plugin", Fuser, Guidance, Scheduler)

BASES: Mapping[Kind, Any] = {"fusers": Fuser, "guidances": Guidance, "schedulers": Scheduler}
"""The contract of each kind of plugin that has settings."""


class Parameter(NamedTuple):
    """A setting of a plugin, for people to read."""

    name: str
    type: str
    default: str
    meaning: str


def build(base: type[Plugin], part: object, *, trusted: bool = True) -> Plugin:
    """The plugin that a part describes.

    Args:
        base: what kind it must be: `Fuser`, `Guidance` or `Scheduler`.
        part: a name, or a mapping of `plugin`, the name, and settings.
        trusted: False for data out of a file that somebody else may have written: nothing is imported then but installed
            plugins by name.

    Raises:
        PluginNotFoundError: nobody answers to the name.
        PluginLoadError: it is there and cannot be imported.
        SettingError: the part is something else, has a setting that the plugin does not know or take, or is not to be trusted.
    """
    name, settings = _split(base, part)
    if not trusted:
        check_plain({"plugin": name, **settings})
    maker = _maker(base, name)
    if maker is DiffusersScheduler:
        settings = {"name": name, **settings}
    settings = {key: _nested(value, trusted) for key, value in settings.items()}
    return _made(name, maker, settings)


def describe(plugin: Fuser | Guidance | Scheduler) -> dict[str, Any]:
    """The part that describes a plugin: its name and all its settings, as numbers, text, lists and mappings."""
    if isinstance(plugin, DiffusersScheduler):
        return {"plugin": plugin.name, "options": _plain(dict(plugin.options))}
    settings: dict[str, Any] = {}
    if is_dataclass(plugin):
        settings = {each.name: getattr(plugin, each.name) for each in fields(plugin)}
    return {"plugin": _name(type(plugin)), **{key: _plain(value) for key, value in settings.items()}}


def prompt_from(data: object) -> Prompt:
    """A prompt: a text as it is, and `{boxes: [[[LEFT, TOP, RIGHT, BOTTOM], TEXT], ...], elsewhere: TEXT}` as `Regions`.

    Raises:
        SettingError: it is neither, or a box is empty or leaves the canvas.
    """
    if isinstance(data, str):
        return data
    given: Mapping[str, Any] = data if isinstance(data, Mapping) else {}
    boxes: Any = given.get("boxes")
    elsewhere = given.get("elsewhere", "")
    try:
        found = tuple(((left, top, right, bottom), text) for (left, top, right, bottom), text in boxes)
        sound = all(isinstance(text, str) and all(isinstance(n, int | float) for n in box) for box, text in found)
    except (TypeError, ValueError):
        sound = False
    if not sound or not isinstance(elsewhere, str):
        raise SettingError(
            f"a prompt came as {data!r}: give a text, or {{boxes: [[[LEFT, TOP, RIGHT, BOTTOM], TEXT], ...], elsewhere: TEXT}}"
        )
    return Regions(found, elsewhere)


def parameters(base: type[Fuser] | type[Guidance] | type[Scheduler], name: str) -> tuple[str, list[Parameter]]:
    """What a plugin is for, in its own words, and its settings."""
    maker = _maker(base, name)
    documented = parse(_class(maker).__doc__ or "")
    own = inspect.signature(maker).parameters  # a class method has defaults of its own
    meaning = {param.arg_name: " ".join((param.description or "").split()) for param in documented.params}
    hidden = ("name",) if maker is DiffusersScheduler else ()
    found = [
        Parameter(key, _type(each), "" if each.default is each.empty else repr(each.default), meaning.get(key, ""))
        for key, inherited in inspect.signature(_class(maker)).parameters.items()
        if (each := own.get(key, inherited)) and key not in hidden
    ]
    return parse(maker.__doc__ or "").short_description or "", found


def _split(base: type, part: object) -> tuple[str, dict[str, Any]]:
    """A part's name and settings."""
    if isinstance(part, str):
        part = {"plugin": part}
    if isinstance(part, Mapping) and isinstance(part.get("plugin"), str) and all(isinstance(key, str) for key in part):
        settings = dict(part)
        return settings.pop("plugin"), settings
    raise SettingError(
        f"a {base.__name__.lower()} came as {part!r}: give its name, or a mapping of its name and settings, "
        "{plugin: NAME, SETTING: VALUE}"
    )


def _maker(base: type, name: str) -> Callable[..., Any]:
    """The class behind a name, or a class method of it."""
    kind = _kind(base)
    builtin = DiffusersScheduler.names() if base is Scheduler else ()
    return DiffusersScheduler if name in builtin else registry.maker(kind, name, base, builtin)


def _kind(cls: type) -> Kind:
    return next(kind for kind, base in BASES.items() if issubclass(cls, base))


def _class(maker: Callable[..., Any]) -> type:
    """The class that a maker makes, whose settings a class method passes on."""
    return maker if isinstance(maker, type) else cast("Any", maker).__self__


def _nested(value: Any, trusted: bool) -> Any:
    """A setting, with the guidances in it made."""
    if isinstance(value, Mapping) and "plugin" in value:
        return build(Guidance, value, trusted=trusted)
    return [_nested(item, trusted) for item in value] if isinstance(value, list) else value


def _made(name: str, maker: Callable[..., Any], settings: Mapping[str, Any]) -> Any:
    """Call the maker, with settings that it knows, of the types that it says."""
    parser = ArgumentParser(exit_on_error=False, print_config=None)
    parser.add_class_arguments(_class(maker), fail_untyped=False)
    known = vars(parser.get_defaults()).keys()
    for key in settings.keys() - known:
        close = get_close_matches(key, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise SettingError(f"{name} has no setting {key!r}: {hint}it has {', '.join(sorted(known)) or 'none'}")
    try:
        checked = parser.instantiate(parser.parse_object(dict(settings)))
    except ArgumentError as cause:
        raise SettingError(_why(name, maker, settings, str(cause))) from cause
    try:
        return maker(**{key: checked[key] for key in settings})
    except SettingError as cause:
        raise SettingError(f"{name}: {cause}") from cause
    except (TypeError, ValueError) as cause:  # abstract, or with settings that have no default, or do not go together
        how = f"with the settings {dict(settings)!r}" if settings else "by name alone"
        raise SettingError(f"{name} cannot be made {how}: {cause}") from cause


def _why(name: str, maker: Callable[..., Any], settings: Mapping[str, Any], message: str) -> str:
    """What jsonargparse objects to, in our words where it names the setting."""
    named = re.search(r'key "(\w+)', message)
    key = named[1] if named else ""
    if key not in settings:
        return f"{name} cannot be made: {' '.join(message.split())}"
    signature = inspect.signature(_class(maker)).parameters
    wanted = f"it must be of the type {_type(signature[key])}" if key in signature else " ".join(message.split())
    hint = ", each {plugin: NAME, SETTING: VALUE}" if "Guidance" in wanted else ""
    return f"{key} of {name} came as {settings[key]!r}: {wanted}{hint}"


def _type(parameter: inspect.Parameter) -> str:
    if parameter.annotation is parameter.empty:
        return "anything"
    text = parameter.annotation if isinstance(parameter.annotation, str) else inspect.formatannotation(parameter.annotation)
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z]\w*)", "", text)


@cache
def _name(cls: type) -> str:
    """What the registry calls a plugin's class, or where the class is."""
    home = cls.__module__.partition(".")[0]
    for entry in registry.plugins(_kind(cls)):
        if entry.entry.module.partition(".")[0] == home and entry.load() is cls:  # which is imported already
            return entry.name
    return f"{cls.__module__}:{cls.__qualname__}"


def _plain(value: Any) -> Any:
    """A setting as plain data; what is none, a function say, as its repr without an address: for people, and for comparison."""
    if isinstance(value, Fuser | Guidance | Scheduler):
        return describe(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, bool | int | float | str | None) else re.sub(r" at 0x[0-9a-f]+", "", repr(value))
