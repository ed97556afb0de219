"""Who computes which windows: numbers in, numbers out, the same on every rank."""

from collections.abc import Sequence
from itertools import pairwise

Chunk = list[int]


def chunks(n: int, micro_batch: int) -> list[Chunk]:
    """The numbers 0 to n - 1 in as few runs of at most `micro_batch` as there can be, of near-equal length.

    They depend on nothing else, and least of all on how many ranks there are: the size of a batch decides a kernel's rounding.
    """
    count = -(-n // micro_batch)
    edges = [n * k // count for k in range(count + 1)]
    return [list(range(a, b)) for a, b in pairwise(edges)]


def deal(plan: Sequence[Chunk], ranks: int) -> list[list[Chunk]]:
    """The chunks of each rank: long ones first, one to each in turn, so that none has more than ceil(chunks / ranks)."""
    by_length = sorted(plan, key=len, reverse=True)
    return [by_length[rank::ranks] for rank in range(ranks)]


def busiest(n: int, micro_batch: int, ranks: int) -> int:
    """How many windows the busiest rank computes; the others wait for it."""
    return max(sum(map(len, share)) for share in deal(chunks(n, micro_batch), ranks))


def better(n: int, micro_batch: int, ranks: int) -> int | None:
    """The largest micro-batch below this one with which the busiest rank has the least to do; None if that is no less."""
    loads = {size: busiest(n, size, ranks) for size in range(1, micro_batch + 1)}
    least = min(loads.values())
    return None if loads[micro_batch] == least else max(size for size, load in loads.items() if load == least)
