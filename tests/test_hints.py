"""Plain data against the types of arguments: compared, and never read as anything else."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest

from panokit import Guidance, SettingError
from panokit.hints import fit, fitted, hints_of, make, words
from panokit_msd import MSDGuidance


class Colour(Enum):
    RED = 1


@dataclass
class Inner:
    k: int = 0


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (int, 3, 3),
        (float, 3, 3.0),
        (float, "1e-3", 1e-3),
        (float, "-2.5E+1", -25.0),
        (float, math.inf, math.inf),
        (int | None, None, None),
        (int | float, 3, 3),
        (float | int, 3, 3),
        (float | str, "1e-3", "1e-3"),
        (bool | Literal["x", "y"], "y", "y"),
        (bool | Literal["x", "y"], False, False),
        (list[int], [1, 2], [1, 2]),
        (list, [1, "a"], [1, "a"]),
        (Sequence[float], [1, 2], [1.0, 2.0]),
        (tuple[float, ...], [1, 2, 3], (1.0, 2.0, 3.0)),
        (tuple[int, str], [1, "a"], (1, "a")),
        (tuple, [1, "a"], (1, "a")),
        (Mapping[str, float], {"a": 1}, {"a": 1.0}),
        (dict[str, Any], {"class_path": "os.system"}, {"class_path": "os.system"}),
        (dict, {"a": 1}, {"a": 1}),
        (Any, "{class_path: os.system}", "{class_path: os.system}"),
        (str | Callable[..., Any], "os.system", "os.system"),
        (Callable[..., Any], math.dist, math.dist),
        (tuple[Guidance, ...], [MSDGuidance()], (MSDGuidance(),)),
        (frozenset[int], [1, 2], frozenset({1, 2})),
        (Colour, "RED", Colour.RED),
        (Path | None, "a/b", Path("a/b")),
        (Inner, {"k": 3}, Inner(3)),
    ],
)
def test_what_fits_is_taken(kind: Any, value: Any, expected: Any) -> None:
    found = fit(value, kind)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (int, True),
        (int, 3.0),
        (int, "3"),
        (float, "3"),
        (float, "nan"),
        (float, True),
        (float, 10**400),
        (bool, 1),
        (bool, "true"),
        (str, 3),
        (int | None, "null"),
        (Literal["x", 1], True),
        (Literal["x"], "y"),
        (list[int], "[1, 2]"),
        (list[int], [1, "2"]),
        (Sequence[str], "abc"),
        (tuple[int, str], [1]),
        (tuple[int, ...], [1, "a"]),
        (dict[str, Any], "{a: 1}"),
        (Mapping[str, int], {1: 1}),
        (Mapping[str, int], {"a": "1"}),
        (Callable[..., Any], "os.system"),
        (type, "os.PathLike"),
        (Colour, "BLUE"),
        (Inner, {"j": 3}),
        (Guidance, "panokit_msd.MSDGuidance"),
        (Guidance, {"class_path": "panokit_msd.MSDGuidance"}),
    ],
)
def test_what_does_not_fit_is_refused(kind: Any, value: Any) -> None:
    with pytest.raises(TypeError, match="is no "):
        fit(value, kind)


def test_types_that_cannot_be_resolved_are_left_to_the_class() -> None:
    class Unresolved:
        def __init__(self, one: "Lost", two: int) -> None:  # type: ignore[name-defined]
            self.one, self.two = one, two

    assert hints_of(Unresolved)["two"] is int
    assert "one" not in hints_of(Unresolved)
    assert make(Unresolved, {"one": "anything", "two": 2}).two == 2
    with pytest.raises(SettingError, match="two came as 'too': it must be a whole number"):
        make(Unresolved, {"one": "anything", "two": "too"})
    assert hints_of(MSDGuidance)["weight"] is float


def test_what_does_not_fit_is_named() -> None:
    @dataclass
    class Window:
        steps: int = 3
        wrap: bool | Literal["x", "y"] = False

    assert make(Window, {"wrap": "y"}) == Window(wrap="y")
    assert fitted(Window, {"steps": 4}) == {"steps": 4}
    with pytest.raises(SettingError, match="steps came as '3': it must be a whole number"):
        make(Window, {"steps": "3"})
    with pytest.raises(SettingError, match="wrap came as 'z': it must be true, false, x or y"):
        make(Window, {"wrap": "z"})


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (int | None, "a whole number"),
        (Callable[[list[int], str], float] | str, "a function or text"),
        (tuple[Guidance, ...], "a list, [...] of Guidance"),
        (list[Any], "a list, [...]"),
        (Mapping[str, Any], "a mapping"),
        (Path, "Path"),
    ],
)
def test_types_are_named_in_words(kind: Any, text: str) -> None:
    assert words(kind) == text
