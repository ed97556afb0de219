"""Ranks: the processes that make a picture together, and the operations that they share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar, final

import torch

from panokit.runtime.group import Group
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
    def agreeing(self) -> AbstractContextManager[None]:
        """Inside, an error of one rank is raised on all; see `Runtime.agreeing`."""

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

    def agreeing(self) -> AbstractContextManager[None]:
        return nullcontext()

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

    def map(self, fn: Callable[[Chunk], Rows], n: int, rows: Sequence[Sequence[int]], *, micro_batch: int, stop: Stop) -> Rows:
        made, stopping = self.group.rows(
            lambda chunk: self.pieces.rows(fn, chunk, micro_batch),
            deal(chunks(n, micro_batch), self.group.size),
            rows,
            self._like,
            stop.asked,
        )
        stop.agreed |= stopping
        return made

    def broadcast(self, work: Callable[[], Made]) -> Made:
        return self.group.broadcast(work)

    def gather(self, work: Callable[[], Made]) -> list[Made]:
        with self.agreeing(), self.working():
            made = work()
        return self.group.gather(made)

    def barrier(self, work: Callable[[], Made]) -> Made:
        with self.agreeing(), self.working():
            made = work()
        self.group.gather(None)
        return made

    def agreeing(self) -> AbstractContextManager[None]:
        return self.group.agreeing()

    def working(self) -> AbstractContextManager[None]:
        return self.group.working()
