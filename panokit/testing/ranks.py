"""Virtual ranks: threads in the place of processes, so that many devices can be tested on none."""

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
from panokit.testing.demands import ConformanceError

Made = TypeVar("Made")
Rows = tuple[Tensor, ...]


class _ApartError(ConformanceError):
    """The ranks went different ways; where one of them failed, its own error says more."""


@final
class _Thread(Alone):
    """One of the threads. Its runs do not stop, and what they say is said once."""

    def __init__(self, rows: Callable[..., Rows]) -> None:
        self._rows = rows

    def map(
        self, fn: Callable[[list[int]], Rows], n: int, rows: Sequence[Sequence[int]], *, micro_batch: int, stop: Stop
    ) -> Rows:
        return self._rows(fn, n, micro_batch=micro_batch)


@final
class VirtualRanks:
    """As many ranks as asked for, one thread each, which meet in `Runtime.map`.

    They take turns: a rank hands over where it would wait for the rows of the others. So nothing races, and what differs
    between ranks differs in every process alike.

    Args:
        size: how many ranks.
        micro_batch: of their runtimes.
    """

    def __init__(self, size: int, micro_batch: int) -> None:
        self._size, self._micro_batch = size, micro_batch
        self._turn = Condition()
        self._rows: dict[tuple[int, int], Rows] = {}
        self._lengths: dict[int, int] = {}
        self._left = 0

    def run(self, work: Callable[[Runtime], Made]) -> list[Made]:
        """What `work` returns on each rank, given the rank's runtime, in float32 on the CPU.

        Raises:
            ConformanceError: the ranks did not call `map` alike, so that processes would wait for each other forever.
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
        """`Runtime.map`, with this rank's chunks computed here and the others' taken from where they put them."""
        call, plan = next(calls), chunks(n, micro_batch)
        everything = [(call, chunk[0]) for chunk in plan]
        if self._lengths.setdefault(call, n) == n:
            self._rows |= {(call, chunk[0]): fn(chunk) for chunk in deal(plan, self._size)[rank]}
            self._turn.notify_all()
            self._turn.wait_for(lambda: self._left > 0 or self._rows.keys() >= {*everything})
        if not self._rows.keys() >= {*everything} or self._lengths[call] != n:
            raise _ApartError(
                f"rank {rank} of {self._size} waits for windows that another rank will not compute: `prepare` must call "
                "step.estimate alike on every rank, whatever windows the rank has seen"
            )
        return tuple(torch.cat(parts) for parts in zip(*(self._rows[key] for key in everything), strict=True))
