"""Sharding: which rank computes which windows. These are pure functions of numbers, equal on every rank."""

from collections.abc import Sequence
from itertools import pairwise

Chunk = list[int]
"""The numbers of windows that go through the denoiser at once."""


def chunks(n: int, micro_batch: int) -> list[Chunk]:
    """Cut the numbers 0 to n - 1 into as few chunks as possible, of nearly equal length.

    The chunks must not depend on the number of ranks, because the size of a batch decides the rounding of a kernel.

    Args:
        n: number of windows, 1 or more.
        micro_batch: the most numbers in a chunk, 1 or more.
    """
    count = -(-n // micro_batch)
    edges = [n * k // count for k in range(count + 1)]
    return [list(range(a, b)) for a, b in pairwise(edges)]


def deal(plan: Sequence[Chunk], ranks: int) -> list[list[Chunk]]:
    """Deal chunks out to ranks in turn, long ones first. A rank gets at most ceil(chunks / ranks) of them."""
    by_length = sorted(plan, key=len, reverse=True)
    return [by_length[rank::ranks] for rank in range(ranks)]


def busiest(n: int, micro_batch: int, ranks: int) -> int:
    """The number of windows that the busiest rank computes. The others wait for it."""
    return max(sum(map(len, share)) for share in deal(chunks(n, micro_batch), ranks))


def better(n: int, micro_batch: int, ranks: int) -> int | None:
    """A smaller micro-batch that gives the busiest rank as little work as possible; None if there is none.

    Of several, it is the largest.
    """
    loads = {size: busiest(n, size, ranks) for size in range(1, micro_batch + 1)}
    least = min(loads.values())
    return None if loads[micro_batch] == least else max(size for size, load in loads.items() if load == least)
