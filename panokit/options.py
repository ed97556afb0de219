"""Options as data: values and settings by their paths, configurations, and what to say about options that do not fit."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from panokit.errors import SettingError
from panokit.hints import words
from panokit.settings import unknown_option

_LARGEST = 1 << 20
"""Letters that a configuration may have."""
_DEEPEST = 32


def objection(message: str, hints: Mapping[str, Any]) -> str:
    """What jsonargparse says about an option, in one line of our own words that says what to do.

    Args:
        message: its text. This is the one place that reads texts of another library.
        hints: the types of the options, by name.
    """
    line = " ".join(message.split())
    if match := re.search(r"(?:unrecognized arguments: |accept option |Option )'?(-*[\w.-]+)", line):
        return unknown_option(match[1], [*hints, "config"], "--")
    key = re.search(r'Parser key "(\w+)', line)
    value = re.search(r"(?:Got|Given) value: (.*)$", line)
    if key and value and key[1] in hints:
        return f"{key[1]} came as {value[1]!r}: it must be {words(hints[key[1]])}"
    return line


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
    except (yaml.YAMLError, ValueError, RecursionError):  # a ValueError for a date that does not exist
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
