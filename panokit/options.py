"""Options as plain data: their values, their paths, and configurations."""

from pathlib import Path
from typing import Any

import yaml

from panokit.errors import SettingError

_LARGEST = 1 << 20
"""The most characters of a configuration."""
_DEEPEST = 32
"""The deepest nesting of a configuration."""


def assign(data: Any, path: str, value: Any) -> None:
    """Set one value in plain data by its path.

    Args:
        data: the data, which are changed.
        path: keys joined by dots: `seed`, `fuser.spread`, `guidances.0.weight`, or `guidances.weight` for the last guidance.
        value: the new value.

    Raises:
        SettingError: there is nothing at the path.
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
            f"there is no {step!r} to set to {value!r:.80}: name the guidance or the scheduler first, or an option that exists"
        ) from cause
    if isinstance(child, str):  # a plugin, by its name alone
        child = data[key] = {"plugin": child}
    assign(child, rest, value)


def plain(text: str) -> Any:
    """A value as YAML reads it: a number, true or false, a list, a mapping, or a text."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a date that does not exist
        return text


def configuration(path: str) -> dict[str, Any]:
    """Read a configuration: a mapping in plain YAML, without aliases, which could expand to any size.

    Args:
        path: the file, or a pipe: it is read once.

    Returns:
        The values of the options, by name.

    Raises:
        SettingError: the file cannot be read, or is no such mapping.
    """
    try:
        with Path(path).open(encoding="utf-8") as file:
            text = file.read(_LARGEST + 1)
    except UnicodeDecodeError as cause:
        raise SettingError(f"the configuration {path} is no text in UTF-8: give a YAML file") from cause
    except (OSError, ValueError) as cause:  # ValueError: no such name
        reason = getattr(cause, "strerror", None) or cause
        raise SettingError(f"the configuration {path} cannot be read: {reason}") from cause
    values = yaml_in(text, f"the configuration {path}")
    if values is None:
        raise SettingError(f"the configuration {path} is empty: it must map options to values, steps: 25")
    if not isinstance(values, dict):
        raise SettingError(f"the configuration {path} is a {type(values).__name__}: it must map options to values, steps: 25")
    if "config" in values:
        raise SettingError(f"the configuration {path} names another one: give both on the command line, --config A --config B")
    return values


def yaml_in(text: str, what: str) -> Any:
    """Read a value from plain YAML, without aliases, which could expand to any size.

    Args:
        text: the YAML.
        what: what it is, for errors.

    Raises:
        SettingError: it is no plain YAML, or is longer or deeper than panokit reads.
    """
    if len(text) > _LARGEST:
        raise SettingError(f"{what} is longer than {_LARGEST} characters, the most that panokit reads: shorten it")
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):
                raise SettingError(f"{what} repeats itself by aliases (*name): write out what they stand for")
            if depth > _DEEPEST:
                raise SettingError(f"{what} is nested more than {_DEEPEST} deep, the most that panokit reads: flatten it")
        return yaml.safe_load(text)
    except yaml.YAMLError as cause:
        where = (
            f" in line {cause.problem_mark.line + 1}" if isinstance(cause, yaml.MarkedYAMLError) and cause.problem_mark else ""
        )
        problem = getattr(cause, "problem", None) or str(cause)
        raise SettingError(f"{what} is not plain YAML{where}: {problem}") from cause
    except ValueError as cause:
        if isinstance(cause, SettingError):
            raise
        raise SettingError(f"{what} has a value that YAML cannot read: {cause}") from cause
