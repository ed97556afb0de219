"""Virtual ranks: threads instead of processes, so that tests of many devices need none."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from threading import Condition
from typing import TypeVar, final

import torch
from torch import Tensor

from panokit.runtime import Runtime
from panokit.runtime.ranks import Alone
from panokit.runtime.sharding import chunks, deal
from panokit.signals import Stop
from panokit.testing.demands import ConformanceError, demand

Made = TypeVar("Made")
Rows = tuple[Tensor, ...]


class _ApartError(ConformanceError):
    """The ranks made different calls. If one of them failed, its own error is reported instead."""


@final
class _Thread(Alone):
    """The ranks as one thread sees them: `map` shares rows with the other threads, and everything else is local."""

    def __init__(self, rows: Callable[..., Rows]) -> None:
        self._rows = rows

    def map(
        self, fn: Callable[[list[int]], Rows], n: int, rows: Sequence[Sequence[int]], *, micro_batch: int, stop: Stop
    ) -> Rows:
        return self._rows(fn, n, micro_batch=micro_batch)


@final
class VirtualRanks:
    """Ranks that are threads and exchange rows in `Runtime.map`.

    Only one thread runs at a time. It gives way to the others when it waits for their rows. So there are no races, and every
    test run finds the same differences between ranks.

    Args:
        size: number of ranks.
        micro_batch: windows in a chunk.
    """

    def __init__(self, size: int, micro_batch: int) -> None:
        self._size, self._micro_batch = size, micro_batch
        self._turn = Condition()
        self._rows: dict[tuple[int, int], Rows] = {}
        self._lengths: dict[int, int] = {}
        self._left = 0

    def run(self, work: Callable[[Runtime], Made]) -> list[Made]:
        """Run a function on every rank.

        Args:
            work: takes the runtime of its rank, on the CPU in float32.

        Returns:
            The result of each rank.

        Raises:
            ConformanceError: the ranks called `map` differently, so real processes would wait for each other forever.
        """
        with ThreadPoolExecutor(self._size) as pool:
            futures = [pool.submit(self._attend, rank, work) for rank in range(self._size)]
        errors = [error for future in futures if (error := future.exception())]
        if errors:
            raise next((error for error in errors if not isinstance(error, _ApartError)), errors[0])
        return [future.result() for future in futures]

    def _attend(self, rank: int, work: Callable[[Runtime], Made]) -> Made:
        with self._turn:
            runtime = Runtime(accelerator="cpu", micro_batch=self._micro_batch)
            runtime.ranks = _Thread(partial(self._map, rank, count()))
            try:
                return work(runtime)
            finally:
                self._left += 1
                self._turn.notify_all()

    def _map(
        self,
        rank: int,
        calls: Iterator[int],
        fn: Callable[[list[int]], Rows],
        n: int,
        *,
        micro_batch: int,
    ) -> Rows:
        """Do what `Runtime.map` does: compute the chunks of this rank, and take those of the other threads."""
        call, plan = next(calls), chunks(n, micro_batch)
        everything = [(call, chunk[0]) for chunk in plan]
        if self._lengths.setdefault(call, n) == n:
            self._rows |= {(call, chunk[0]): fn(chunk) for chunk in deal(plan, self._size)[rank]}
            self._turn.notify_all()
            self._turn.wait_for(lambda: self._left > 0 or self._rows.keys() >= {*everything})
        if not self._rows.keys() >= {*everything} or self._lengths[call] != n:
            raise _ApartError(
                f"rank {rank} of {self._size} waits for windows that another rank does not compute: `prepare` must make the "
                "same calls of step.estimate on every rank"
            )
        return tuple(torch.cat(parts) for parts in zip(*(self._rows[key] for key in everything), strict=True))


def same_on_ranks(canvas: Callable[[Runtime], Tensor], micro_batch: int, advice: str, sizes: Sequence[int] = (2, 3)) -> None:
    """Demand the same bits on one rank, on more of them, and on every rank.

    Args:
        canvas: makes a canvas with a runtime.
        micro_batch: of the runtimes.
        advice: what to do if the canvases differ.
        sizes: numbers of ranks to compare with a single one.

    Raises:
        ConformanceError: the canvases differ.
    """
    (expected,) = VirtualRanks(1, micro_batch).run(canvas)
    for size in sizes:
        for rank, actual in enumerate(VirtualRanks(size, micro_batch).run(canvas)):
            demand(torch.equal(actual, expected), f"rank {rank} of {size} has another canvas than a single rank{advice}")
