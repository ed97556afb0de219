"""Plain data against the types that functions and dataclasses ask for.

Nothing is ever imported for a value: a text stays a text, whatever it looks like.
"""

import re
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from panokit.errors import SettingError

Made = TypeVar("Made")

_WHOLE = "a whole number"
_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]{1,3}")
"""A number that YAML takes for text: 1e-3."""


def fit(value: Any, hint: Any) -> Any:
    """The value as that type. A whole number may stand for a float, the text 1e-3 too, and a list for a tuple.

    Raises:
        TypeError: it is something else.
    """
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        return fit(value, args[0])
    if origin in (Union, types.UnionType):
        return _fit_any(value, args)
    if origin is Literal:
        if any(type(value) is type(choice) and value == choice for choice in args):
            return value
    elif hint is None or hint is types.NoneType:
        if value is None:
            return None
    elif hint in (bool, str, int):
        if type(value) is hint and not _is_huge(value):
            return value
    elif hint is float:
        if isinstance(value, str) and _EXPONENT.fullmatch(value):
            return float(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            with suppress(OverflowError):
                return float(value)
    elif (origin or hint) in (list, tuple, Sequence):
        if isinstance(value, list | tuple):
            return _fit_items(value, origin or hint, args)
    elif (origin or hint) in (dict, Mapping):
        if isinstance(value, Mapping):
            return {fit(key, args[0]): fit(item, args[1]) for key, item in value.items()} if args else dict(value)
    elif (origin or hint) is Callable:
        if callable(value):
            return value
    elif (origin or hint) in (set, frozenset):
        if isinstance(value, list | tuple | set | frozenset):
            return (origin or hint)(_fit_items([*value], list, args))
    elif isinstance(hint, type) and not isinstance(value, hint):
        if issubclass(hint, Enum) and isinstance(value, str) and value in hint.__members__:
            return hint[value]
        if issubclass(hint, PurePath) and isinstance(value, str):
            return hint(value)
        if is_dataclass(hint) and isinstance(value, Mapping) and value.keys() <= {field.name for field in fields(hint)}:
            return make(hint, value)
    else:
        return value
    raise TypeError(f"{value!r:.80} is no {hint}")


def fitted(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by name, as the types that a class says.

    Raises:
        SettingError: a value is of another type.
    """
    hints, fits = hints_of(cls), {}
    for name, value in values.items():
        try:
            fits[name] = fit(value, hints.get(name, Any))
        except TypeError:
            raise SettingError(f"{name} came as {value!r:.80}: it must be {words(hints[name], value)}") from None
    return fits


def make(cls: type[Made], values: Mapping[str, Any]) -> Made:
    """An object of a class from values that came from outside, as the types that the class says.

    Raises:
        SettingError: a value is of another type, or the class refuses it.
    """
    return cls(**fitted(cls, values))


def _fit_any(value: Any, hints: Sequence[Any]) -> Any:
    """The value as the first of several types that it fits; as the one that it is already before any other."""
    fitted = []
    for hint in hints:
        try:
            fitted.append(fit(value, hint))
        except TypeError:
            continue
    if not fitted:
        raise TypeError(f"{value!r:.80} is no {' or '.join(map(str, hints))}")
    return next((same for same in fitted if type(same) is type(value)), fitted[0])


def _fit_items(value: Sequence[Any], kind: Any, hints: Sequence[Any]) -> Any:
    if kind is tuple and hints and hints[-1] is not Ellipsis:
        if len(hints) != len(value):
            raise TypeError(f"{value!r:.80} is no tuple of {len(hints)} values")
        return tuple(fit(item, hint) for item, hint in zip(value, hints, strict=True))
    items = [fit(item, hints[0]) if hints else item for item in value]
    return tuple(items) if kind is tuple else items


def hints_of(target: Any) -> dict[str, Any]:
    """The types of a class's or a function's arguments, by name; those that cannot be resolved are left out."""
    hints: dict[str, Any] = {}
    for source in (target, vars(target).get("__init__")) if isinstance(target, type) else (target,):
        try:
            hints |= get_type_hints(source)
        except Exception:  # names that exist for type checkers alone, or annotations that are no types
            hints |= _one_by_one(source)
    return hints


def meanings_of(source: Any) -> dict[str, str]:
    """What the docstring of a class or a function says of its arguments, each in one line, by name."""
    from docstring_parser import parse  # imported here, because most of a run asks for no meanings

    return {param.arg_name: " ".join((param.description or "").split()) for param in parse(source.__doc__ or "").params}


def _one_by_one(source: Any) -> dict[str, Any]:
    """The annotations of a class or a function that can be resolved."""
    hints: dict[str, Any] = {}
    names = vars(sys.modules.get(getattr(source, "__module__", ""), types))
    for name, annotation in getattr(source, "__annotations__", {}).items():
        with suppress(Exception):
            holder = type("Holder", (), {"__annotations__": {name: annotation}})
            hints |= get_type_hints(holder, globalns=dict(names))
    return hints


def words(hint: Any, value: Any = None) -> str:
    """What a value must be, for people: `a whole number or true or false`.

    Args:
        hint: its type.
        value: what came in its place, if it may have the type and be too large.
    """
    options = [option for kind in alternatives(hint) for option in _options(kind)]
    if _is_huge(value):
        options = [f"{option} of up to 64 bits" if option == _WHOLE else option for option in options]
    *most, last = options or ["nothing"]
    return f"{', '.join(most)} or {last}" if most else last


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The types that a union joins; of another type, itself alone."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _is_huge(value: Any) -> bool:
    """Whether a whole number has more bits than libraries take."""
    return isinstance(value, int) and not -(1 << 63) <= value < 1 << 64


def _options(hint: Any) -> list[str]:
    """What a value of one type may be, in words; nothing for None, which means the default."""
    origin = get_origin(hint) or hint
    if origin is Literal:
        return [str(choice) for choice in get_args(hint)]
    if origin in (list, tuple, Sequence):
        items = get_args(hint)
        if origin is tuple and items and items[-1] is not Ellipsis:
            return [f"a list of {len(items)}, [{', '.join(words(item) for item in items)}]"]
        return [f"a list, [...] of {words(items[0])}" if items and items[0] is not Any else "a list, [...]"]
    kinds: dict[Any, list[str]] = {int: [_WHOLE], float: ["a number"], bool: ["true", "false"], str: ["text"]}
    kinds |= {types.NoneType: [], dict: ["a mapping"], Mapping: ["a mapping"], Callable: ["a function"]}
    return kinds.get(origin, [getattr(hint, "__name__", str(hint))])
