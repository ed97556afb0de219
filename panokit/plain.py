"""Nested data: mappings, lists and tuples, and what stands in them."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from panokit.errors import SettingError


class Node(NamedTuple):
    """A value somewhere in nested data.

    Attributes:
        path: the keys and positions that lead to it, joined by dots; empty for the whole.
        value: the value, a container or not.
        depth: how many containers it stands in.
    """

    path: str
    value: Any
    depth: int


def walk(value: Any, path: str = "", depth: int = 0) -> Iterator[Node]:
    """All values in nested data, the whole first, each container before what stands in it."""
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
    """The values that hold no others; an empty container is one."""
    return (node for node in walk(value) if not (isinstance(node.value, Mapping | list | tuple) and node.value))


def map_leaves(
    value: Any,
    function: Callable[[Any], Any],
    *,
    is_leaf: Callable[[Any], bool] = lambda value: False,
    sequence: Callable[[list[Any]], Any] | None = None,
) -> Any:
    """The same nesting with `function(leaf)` in the place of every leaf.

    Args:
        value: nested data.
        function: takes a leaf, and returns what takes its place.
        is_leaf: says of a container that it is a leaf.
        sequence: what lists and tuples become; each stays what it is unless given.
    """
    if is_leaf(value) or not isinstance(value, Mapping | list | tuple):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_leaves(item, function, is_leaf=is_leaf, sequence=sequence) for key, item in value.items()}
    return (sequence or type(value))([map_leaves(item, function, is_leaf=is_leaf, sequence=sequence) for item in value])


def differences(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """What two sets of nested data disagree on, leaf by leaf: `steps is 25 and 50`."""
    one, two = ({path: leaf for path, leaf, _ in leaves(data)} for data in (mine, theirs))
    return [
        f"{path} is {one.get(path, 'missing')!r} and {two.get(path, 'missing')!r}"
        for path in {**one, **two}
        if one.get(path) != two.get(path)
    ]
