"""Options by the names and types of a function's arguments, and what to say of those that do not fit."""

import re
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from inspect import signature
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

from jsonargparse import ArgumentError, ArgumentParser

from panokit.errors import SettingError


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
    kinds[list] = "a list, [...]"
    options = [
        kinds.get(get_origin(each) or each, " or ".join(map(str, get_args(each))))
        for each in (get_args(hint) if isinstance(hint, UnionType) else (hint,))
    ]
    return f"it must be {' or '.join(filter(None, options))}"
