"""Ranks: the processes that make a picture together, and what they do together."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, final

import torch

from panokit.runtime.group import Group, Status
from panokit.runtime.pieces import Pieces, Rows, joined
from panokit.runtime.sharding import Chunk, chunks, deal
from panokit.signals import Stop

Made = TypeVar("Made")


class Ranks(ABC):
    """What a rank asks of the others. With one rank everything is done here."""

    @abstractmethod
    def map(self, fn: Callable[[Chunk], Rows], n: int, rows: Sequence[Sequence[int]], *, micro_batch: int, stop: Stop) -> Rows:
        """All rows, in order, on every rank; see `Runtime.map`."""

    @abstractmethod
    def broadcast(self, work: Callable[[], Made]) -> Made:
        """What `work` returns on rank 0, on every rank; or the error that it raises there."""

    @abstractmethod
    def gather(self, work: Callable[[], Made]) -> list[Made]:
        """What `work` returns on each rank, in the order of ranks, on every rank; the error of any is raised on all."""

    @abstractmethod
    def barrier(self, work: Callable[[], Made]) -> Made:
        """What `work` returns here, when every rank has done it; the error of any is raised on all."""

    @abstractmethod
    def defer(self, error: Exception) -> None:
        """Raise an error that this rank alone may have: at once, or on all ranks when they next meet."""


@final
class OneRank(Ranks):
    """A rank with nobody beside it."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces

    def map(self, fn: Callable[[Chunk], Rows], n: int, rows: Sequence[Sequence[int]], *, micro_batch: int, stop: Stop) -> Rows:
        stop.agreed |= stop.asked
        return joined([self._pieces.rows(fn, chunk, micro_batch) for chunk in chunks(n, micro_batch)])

    def broadcast(self, work: Callable[[], Made]) -> Made:
        return work()

    def gather(self, work: Callable[[], Made]) -> list[Made]:
        return [work()]

    def barrier(self, work: Callable[[], Made]) -> Made:
        return work()

    def defer(self, error: Exception) -> None:
        raise error


@final
class ApartRanks(Ranks):
    """Ranks that each make pictures of their own. They hear of one that ends, and of one that is asked to stop.

    Attributes:
        stopped: whether a run of this rank was asked to stop.
    """

    def __init__(self, group: Group, pieces: Pieces) -> None:
        self._group, self._alone = group, OneRank(pieces)
        self._turn = group.begin_apart()
        self.stopped = False

    def map(self, fn: Callable[[Chunk], Rows], n: int, rows: Sequence[Sequence[int]], *, micro_batch: int, stop: Stop) -> Rows:
        self._group.check()
        self._group.beat()
        stopping = self._group.stopping(self._turn)
        if stop.asked and not stopping:
            self._group.stop(self._turn)
        stop.asked |= stopping
        self.stopped |= stop.asked
        return self._alone.map(fn, n, rows, micro_batch=micro_batch, stop=stop)

    def broadcast(self, work: Callable[[], Made]) -> Made:
        return work()

    def gather(self, work: Callable[[], Made]) -> list[Made]:
        return [work()]

    def barrier(self, work: Callable[[], Made]) -> Made:
        return work()

    def defer(self, error: Exception) -> None:
        raise error


@final
class SharedRanks(Ranks):
    """Ranks that share the windows of one picture.

    Args:
        group: the processes.
        pieces: how this rank's device computes chunks.
        like: an empty tensor of the canvas's type, on this rank's device.
    """

    def __init__(self, group: Group, pieces: Pieces, like: torch.Tensor) -> None:
        self.group, self.pieces, self._like = group, pieces, like
        self._deferred: Exception | None = None

    def map(self, fn: Callable[[Chunk], Rows], n: int, rows: Sequence[Sequence[int]], *, micro_batch: int, stop: Stop) -> Rows:
        status = Status.STOP if stop.asked else Status.FINE
        made, gravest = self.group.rows(
            lambda chunk: self.pieces.rows(fn, chunk, micro_batch),
            deal(chunks(n, micro_batch), self.group.size),
            rows,
            self._like,
            status,
            self._take_deferred(),
        )
        stop.agreed |= gravest is Status.STOP
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

    def _attempt(self, work: Callable[[], Made]) -> tuple[Any, Exception | None]:
        """What `work` returns, or raises: the others must learn of it. An error that was deferred comes first."""
        made, error = None, None
        try:
            made = work()
        except Exception as raised:
            error = raised
        return made, self._take_deferred() or error

    def _take_deferred(self) -> Exception | None:
        error, self._deferred = self._deferred, None
        return error
