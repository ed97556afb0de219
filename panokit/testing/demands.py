"""What a check demands, and how it compares."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor


class ConformanceError(AssertionError):
    """A plugin does not keep its contract: what came, what was expected, and what its author should do, in one line."""


def demand(holds: bool, otherwise: str) -> None:
    """Raise a ConformanceError that says `otherwise`, unless it holds."""
    if not holds:
        raise ConformanceError(otherwise)


def distance(found: Shaped[Tensor, "..."], expected: Shaped[Tensor, "..."]) -> float:
    """The largest difference over the largest magnitude of both; infinite where shapes differ or something is not finite."""
    if found.shape != expected.shape:
        return float("inf")
    found, expected = found.detach().double(), expected.detach().double()
    scale = max(float(found.abs().max()), float(expected.abs().max()))
    ratio = float((found - expected).abs().max()) / scale if scale else 0.0
    return ratio if ratio < float("inf") else float("inf")


def contents(value: object) -> list[Any]:
    """Copies of the tensors, and the plain values, in nested dicts, lists, tuples and dataclasses; the rest is left out."""
    if isinstance(value, Tensor):
        return [value.detach().clone()]
    if isinstance(value, int | float | str | None):
        return [value]
    if isinstance(value, Mapping):
        return [part for pair in value.items() for item in pair for part in contents(item)]
    if isinstance(value, list | tuple):
        return [part for item in value for part in contents(item)]
    if is_dataclass(value) and not isinstance(value, type):
        return [part for field in fields(value) for part in contents(getattr(value, field.name))]
    return []


def unchanged(before: list[Any], value: object) -> bool:
    """Whether `contents` are to the last bit what they were."""
    after = contents(value)
    return len(before) == len(after) and all(map(_same, before, after))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)
