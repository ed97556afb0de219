"""Ranks: the processes that make a picture together, and the operations that they share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, final

import torch

from panokit.runtime.group import Group, Status
from panokit.runtime.pieces import Pieces, Rows, joined
from panokit.runtime.sharding import Chunk, chunks, deal
from panokit.signals import Stop

Made = TypeVar("Made")


class Ranks(ABC):
    """The operations that a rank shares with the others."""

    @abstractmethod
    def map(self, fn: Callable[[Chunk], Rows], n: int, rows: Sequence[Sequence[int]], *, micro_batch: int, stop: Stop) -> Rows:
        """Compute rows on all ranks, and return all of them in order on every rank; see `Runtime.map`."""

    @abstractmethod
    def broadcast(self, work: Callable[[], Made]) -> Made:
        """Run `work` on rank 0, and return its result on every rank. An error of rank 0 is raised on all."""

    @abstractmethod
    def gather(self, work: Callable[[], Made]) -> list[Made]:
        """Run `work` on each rank, and return all results in the order of ranks. An error of any rank is raised on all."""

    @abstractmethod
    def barrier(self, work: Callable[[], Made]) -> Made:
        """Run `work` on each rank, wait for all, and return this rank's result. An error of any rank is raised on all."""

    @abstractmethod
    def defer(self, error: Exception) -> None:
        """Raise an error that may be on this rank alone: at once, or on all ranks at their next exchange."""

    @abstractmethod
    def working(self) -> AbstractContextManager[None]:
        """Inside, the others wait for this rank as long as its process runs; see `Runtime.working`."""


class Alone(Ranks):
    """Ranks that may share windows, and exchange nothing else."""

    def broadcast(self, work: Callable[[], Made]) -> Made:
        with self.working():
            return work()

    def gather(self, work: Callable[[], Made]) -> list[Made]:
        return [self.broadcast(work)]

    def barrier(self, work: Callable[[], Made]) -> Made:
        return self.broadcast(work)

    def defer(self, error: Exception) -> None:
        raise error

    def working(self) -> AbstractContextManager[None]:
        return nullcontext()


@final
class OneRank(Alone):
    """The only rank: it does everything itself."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces

    def map(self, fn: Callable[[Chunk], Rows], n: int, rows: Sequence[Sequence[int]], *, micro_batch: int, stop: Stop) -> Rows:
        stop.agreed |= stop.asked
        return joined([self._pieces.rows(fn, chunk, micro_batch) for chunk in chunks(n, micro_batch)])


@final
class ApartRanks(Alone):
    """Ranks that each make pictures of their own. Each notices if another one ends, or is asked to stop.

    Attributes:
        stopped: whether a run on this rank was asked to stop.
    """

    def __init__(self, group: Group, pieces: Pieces) -> None:
        self._group, self._alone = group, OneRank(pieces)
        self._turn = group.begin_apart()
        self.stopped = False

    def map(self, fn: Callable[[Chunk], Rows], n: int, rows: Sequence[Sequence[int]], *, micro_batch: int, stop: Stop) -> Rows:
        self._group.check()
        stopping = self._group.stopping(self._turn)
        if stop.asked and not stopping:
            self._group.stop(self._turn)
        stop.asked |= stopping
        self.stopped |= stop.asked

        def beating(index: Chunk) -> Rows:
            self._group.beat()
            return fn(index)

        with self._group.computing():
            return self._alone.map(beating, n, rows, micro_batch=micro_batch, stop=stop)

    def working(self) -> AbstractContextManager[None]:
        return self._group.working()


@final
class SharedRanks(Ranks):
    """Ranks that share the windows of one picture.

    Args:
        group: all ranks.
        pieces: computes chunks on this rank's device.
        like: an empty tensor of the canvas's dtype, on this rank's device.
    """

    def __init__(self, group: Group, pieces: Pieces, like: torch.Tensor) -> None:
        self.group, self.pieces, self._like = group, pieces, like
        self._deferred: Exception | None = None

    def map(self, fn: Callable[[Chunk], Rows], n: int, rows: Sequence[Sequence[int]], *, micro_batch: int, stop: Stop) -> Rows:
        status = Status.STOP if stop.asked else Status.FINE
        made, worst = self.group.rows(
            lambda chunk: self.pieces.rows(fn, chunk, micro_batch),
            deal(chunks(n, micro_batch), self.group.size),
            rows,
            self._like,
            status,
            self._take_deferred(),
        )
        stop.agreed |= worst is Status.STOP
        return made

    def broadcast(self, work: Callable[[], Made]) -> Made:
        return self.group.broadcast(work)

    def gather(self, work: Callable[[], Made]) -> list[Made]:
        return self.group.gather(*self._attempt(work))

    def barrier(self, work: Callable[[], Made]) -> Made:
        made, error = self._attempt(work)
        self.group.gather(None, error)
        return made

    def defer(self, error: Exception) -> None:
        if getattr(error, "reported", False):
            raise error
        self._deferred = self._deferred or error

    def working(self) -> AbstractContextManager[None]:
        return self.group.working()

    def _attempt(self, work: Callable[[], Made]) -> tuple[Any, Exception | None]:
        """The result of `work`, and its error, of which the others must learn. A deferred error comes first."""
        made, error = None, None
        try:
            with self.working():
                made = work()
        except Exception as raised:
            error = raised
        return made, self._take_deferred() or error

    def _take_deferred(self) -> Exception | None:
        error, self._deferred = self._deferred, None
        return error
