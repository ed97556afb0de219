"""Values that no file should hold, and the places in a file where they can be put: for tests of whatever reads files."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from typing import Any

HOSTILE: Mapping[str, str] = {
    "null": "null",
    "true": "true",
    "0": "0",
    "-5": "-5",
    "0.5": "0.5",
    "1e30": "1e30",
    "1e999": "1e999",
    "-Infinity": "-Infinity",
    "NaN": "NaN",
    "3 million": "3000000",
    "2^64": "18446744073709551616",
    "a number of 400 digits": f"1{'0' * 400}",
    "a negative one of 400 digits": f"-1{'0' * 400}",
    "a number of 5000 digits": "9" * 5000,
    "an empty text": '""',
    "text": '"text"',
    "a number as text": '"1e999"',
    "half a character": '"\\ud800"',
    "NUL": '"a\\u0000b"',
    "another file": '"../../etc/passwd"',
    "100000 letters": json.dumps("long " * 20_000),
    "[]": "[]",
    "[null]": "[null]",
    "a list in a list": "[1, [2, {}]]",
    "{}": "{}",
    '{"a": 1}': '{"a": 1}',
    "500 lists deep": f"{'[' * 500}{']' * 500}",
    "500 mappings deep": '{"a": ' * 500 + "1" + "}" * 500,
}
"""Values by name, as raw JSON: of other types, out of every range, too long, too deep, and no text at all."""

Place = tuple[str | int, ...]
"""Where a value is in nested data: keys and positions, from the outermost."""

_HERE = "\0here"


def places(data: Any, place: Place = (), *, some: Callable[[list[Any]], Iterable[Any]] = list) -> Iterator[Place]:
    """The place of each value in nested data. A container comes before its values.

    Args:
        data: mappings, lists and values.
        place: that of the data themselves.
        some: takes the keys or positions of a container, and returns those to go into.
    """
    if place:
        yield place
    if isinstance(data, dict | list):
        for key in some([*(data if isinstance(data, dict) else range(len(data)))]):
            yield from places(data[key], (*place, key), some=some)


def with_value(data: Any, place: Place, raw: str | None) -> str:
    """Nested data as JSON, with raw JSON in one place.

    Args:
        data: mappings, lists and values, which stay as they are.
        place: one of `places(data)`.
        raw: the value, as JSON; None to leave it out.
    """
    changed = deepcopy(data)
    *path, last = place
    inner = changed
    for step in path:
        inner = inner[step]
    if raw is None:
        del inner[last]
        return json.dumps(changed)
    inner[last] = _HERE
    return json.dumps(changed).replace(json.dumps(_HERE), raw)
