"""Values that no file should hold, and the places in a file where they can be put: for tests of whatever reads files."""

import json
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from panokit.plain import walk

HOSTILE = (
    "null",
    "true",
    "0",
    "-5",
    "0.5",
    "1e30",
    "1e999",
    "-Infinity",
    "NaN",
    "18446744073709551616",
    f"1{'0' * 400}",
    f"-1{'0' * 400}",
    "9" * 5000,
    '""',
    '"text"',
    '"1e999"',
    '"\\ud800"',
    '"a\\u0000b"',
    '"../../etc/passwd"',
    json.dumps("long " * 20_000),
    "[]",
    "[null]",
    "[1, [2, {}]]",
    "{}",
    '{"a": 1}',
    f"{'[' * 500}{']' * 500}",
    '{"a": ' * 500 + "1" + "}" * 500,
)
"""Values as raw JSON: of other types, out of every range, too long, too deep, and no text at all."""

_HERE = "\0here"


def places(data: Any) -> Iterator[str]:
    """The place of each value in nested data, as its keys and positions joined by dots."""
    return (node.path for node in walk(data) if node.path)


def with_value(data: Any, place: str, raw: str) -> str:
    """Nested data as JSON, with raw JSON in one place.

    Args:
        data: mappings, lists and values, which stay as they are.
        place: one of `places(data)`, in which no key holds a dot.
        raw: the value, as JSON.
    """
    changed = deepcopy(data)
    *path, last = place.split(".")
    inner = changed
    for step in path:
        inner = inner[int(step) if isinstance(inner, list) else step]
    inner[int(last) if isinstance(inner, list) else last] = _HERE
    return json.dumps(changed).replace(json.dumps(_HERE), raw)
