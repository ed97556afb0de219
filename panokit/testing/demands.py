"""Helpers of checks: they demand, compare and copy."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor


class ConformanceError(AssertionError):
    """A plugin breaks its contract. The message says what came, what was expected and what to do, in one line."""


def demand(holds: bool, otherwise: str) -> None:
    """Raise a ConformanceError with the message `otherwise`, unless `holds` is true."""
    if not holds:
        raise ConformanceError(otherwise)


def distance(actual: Shaped[Tensor, "..."], expected: Shaped[Tensor, "..."]) -> float:
    """The largest difference of two tensors, relative to the largest magnitude in them.

    Args:
        actual: any tensor.
        expected: a tensor of the same shape.

    Returns:
        The distance, 0 or more; infinity if the shapes differ or a number is not finite.
    """
    if actual.shape != expected.shape:
        return float("inf")
    actual, expected = actual.detach().double(), expected.detach().double()
    scale = max(float(actual.abs().max()), float(expected.abs().max()))
    ratio = float((actual - expected).abs().max()) / scale if scale else 0.0
    return ratio if ratio < float("inf") else float("inf")


def contents(value: object) -> list[Any]:
    """Collect the tensors, as copies, and the plain values in nested dicts, lists, tuples and dataclasses, and nothing else."""
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
    """Whether the contents of a value still have the same bits.

    Args:
        before: what `contents` returned for the value.
        value: the value now.
    """
    after = contents(value)
    return len(before) == len(after) and all(map(_same, before, after))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)
