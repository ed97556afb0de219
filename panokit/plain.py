"""Nested plain data: mappings, lists and tuples, and the values in them."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from panokit.errors import SettingError


class Node(NamedTuple):
    """A value somewhere in nested data.

    Attributes:
        path: the keys and positions that lead to the value, joined by dots; empty for the whole.
        value: the value, a container or not.
        depth: how many containers the value is in.
    """

    path: str
    value: Any
    depth: int


def walk(value: Any, path: str = "", depth: int = 0) -> Iterator[Node]:
    """All values in nested data. The whole comes first, and each container comes before its values."""
    yield Node(path, value, depth)
    if isinstance(value, Mapping | list | tuple):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from walk(item, f"{path}.{key}" if path else str(key), depth + 1)


def check_depth(value: Any, what: str, most: int = 32) -> None:
    """Refuse data from a file that are nested so deep that nobody can use them.

    Raises:
        SettingError: they are.
    """
    if any(node.depth > most for node in walk(value)):
        raise SettingError(f"{what} is nested more than {most} deep: panokit writes nothing like it")


def leaves(value: Any) -> Iterator[Node]:
    """All values that hold no others. An empty container is one of them."""
    return (node for node in walk(value) if not (isinstance(node.value, Mapping | list | tuple) and node.value))


def map_leaves(
    value: Any,
    function: Callable[[Any], Any],
    *,
    is_leaf: Callable[[Any], bool] = lambda value: False,
    sequence: Callable[[list[Any]], Any] | None = None,
) -> Any:
    """Replace every leaf of nested data.

    Args:
        value: the nested data, which stay as they are.
        function: takes a leaf, and returns its replacement.
        is_leaf: tells for a value whether to treat it as a leaf, even if it is a container.
        sequence: the type that lists and tuples become; None to keep the type of each.

    Returns:
        New data with the same nesting.
    """
    if is_leaf(value) or not isinstance(value, Mapping | list | tuple):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_leaves(item, function, is_leaf=is_leaf, sequence=sequence) for key, item in value.items()}
    return (sequence or type(value))([map_leaves(item, function, is_leaf=is_leaf, sequence=sequence) for item in value])


def differences(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """The differences between two sets of nested data, leaf by leaf: `steps is 25 and 50`."""
    one, two = ({path: leaf for path, leaf, _ in leaves(data)} for data in (mine, theirs))
    return [
        f"{path} is {one.get(path, 'missing')!r} and {two.get(path, 'missing')!r}"
        for path in {**one, **two}
        if one.get(path) != two.get(path)
    ]
