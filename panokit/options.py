"""Options by the names and types of a function's arguments, and what to say of those that do not fit."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from panokit.errors import SettingError

_LARGEST = 1 << 20
"""Letters that a configuration may have."""
_DEEPEST = 32


def typed(function: Callable[..., Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings out of a file, as a function's arguments: the types that it takes, and its defaults where they say nothing.

    Raises:
        SettingError: one that it does not have, or of another type.
    """
    parser = ArgumentParser(exit_on_error=False, print_config=None, allow_abbrev=False)
    parser.add_function_arguments(function)
    try:
        return dict(vars(parser.parse_object(dict(settings))))
    except ArgumentError as error:
        raise SettingError(objection(str(error), function, "")) from error


def objection(message: str, function: Callable[..., Any], dashes: str = "--") -> str:
    """What jsonargparse objects to, in one line that says what to do."""
    line = " ".join(message.split())
    parameters = signature(function).parameters
    if found := re.search(r"(?:unrecognized arguments: |accept option |Option )'?(-*[\w.-]+)", line):
        return no_option(found[1], parameters, dashes)
    key = re.search(r'Parser key "(\w+)', line)
    value = re.search(r"(?:Got|Given) value: (.*)$", line)
    if key and value and key[1] in parameters:
        hint = "add one with --guidances+=NAME" if key[1] == "guidances" and dashes else _words(parameters[key[1]].annotation)
        return f"{key[1]} came as {value[1]!r}: {hint}"
    return line


def no_option(name: str, names: Collection[str], dashes: str = "--") -> str:
    """What to say of an option that there is not."""
    close = get_close_matches(name.lstrip("-"), [*names, *(["config"] if dashes else [])], n=1)
    others = "see --help" if dashes else f"there are {', '.join(sorted(names))}"
    hint = f"did you mean {dashes}{close[0]}?" if close else others
    return f"there is no option {name}: {hint}"


def _words(hint: Any) -> str:
    """What a value must be, from its type."""
    kinds = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "", dict: "a mapping"}
    kinds |= dict.fromkeys((list, Sequence), "a list, [...]") | {Mapping: "a mapping"}
    options = [
        kinds.get(get_origin(each) or each, " or ".join(map(str, get_args(each))))
        for each in (get_args(hint) if isinstance(hint, UnionType) else (hint,))
    ]
    return f"it must be {' or '.join(filter(None, options))}"


def assign(data: Any, path: str, value: Any) -> None:
    """Set one thing in plain data by its path: `seed`, `fuser.spread`, `guidances.weight` (of the last), `guidances.0.weight`.

    Raises:
        SettingError: the path leads nowhere.
    """
    step, _, rest = path.partition(".")
    key: Any = step
    if isinstance(data, list):
        key, rest = (int(step), rest) if step.isdecimal() else (-1, path)
    try:
        if not rest:
            data[key] = value
            return
        if isinstance(data, dict) and "plugin" in data:
            data.setdefault(key, {})
        child = data[key]
    except (LookupError, TypeError) as cause:
        raise SettingError(
            f"there is no {step!r} to set to {value!r}: name a guidance first, or an option that there is"
        ) from cause
    if isinstance(child, str):  # a plugin, by its name alone
        child = data[key] = {"plugin": child}
    assign(child, rest, value)


def plain(text: str) -> Any:
    """A value as YAML reads it: a number, a truth, a list, or text."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # of a date that there is none
        return text


def configuration(path: str) -> dict[str, Any]:
    """What a configuration says: a mapping, of plain YAML that stays as large as it looks; read once, so it may be a pipe."""
    try:
        with Path(path).open(encoding="utf-8") as file:
            text = file.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise SettingError(f"the configuration {path} is longer than {_LARGEST} letters: that is none of panokit's")
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):
                raise SettingError(f"the configuration {path} repeats itself by aliases (*name): write out what they stand for")
            if depth > _DEEPEST:
                raise SettingError(f"the configuration {path} is nested more than {_DEEPEST} deep: that is none of panokit's")
        found = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as cause:
        reason = getattr(cause, "strerror", None) or cause
        raise SettingError(f"the configuration {path} cannot be read: {reason}") from cause
    except yaml.YAMLError as cause:
        where = (
            f" in line {cause.problem_mark.line + 1}" if isinstance(cause, yaml.MarkedYAMLError) and cause.problem_mark else ""
        )
        what = getattr(cause, "problem", None) or str(cause)
        raise SettingError(f"the configuration {path} is not plain YAML{where}: {what}") from cause
    except ValueError as cause:
        if isinstance(cause, SettingError):
            raise
        raise SettingError(f"the configuration {path} has a value that YAML cannot read: {cause}") from cause
    if not isinstance(found, dict):
        raise SettingError(f"the configuration {path} is a {type(found).__name__}: it must map options to values, steps: 25")
    if "config" in found:
        raise SettingError(f"the configuration {path} names another one: give both on the command line, --config A --config B")
    return found
