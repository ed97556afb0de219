"""The group of ranks: one collective a step, and the same error on every rank."""

import atexit
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar, final

import torch
import torch.distributed as dist
from torch import Tensor

from panokit import launcher
from panokit.errors import PanokitError, RankError, RankFailedError
from panokit.runtime.lifeline import Lifeline
from panokit.runtime.pieces import Rows
from panokit.runtime.sharding import Chunk

Made = TypeVar("Made")

_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # torch 2.14 renamed it

_PAUSE = 0.2
"""The most seconds of waiting in which nothing is looked at."""


@final
class Group:
    """All ranks of a run, in the default group of torch.distributed.

    Args:
        patience: seconds to wait for a rank that makes no progress.
    """

    def __init__(self, patience: float) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._patience, self._turns = patience, 0
        self._lifeline = Lifeline(self.rank, self.size, self._from_rank, max(patience, 60.0))
        atexit.register(self._close)

    def rows(
        self,
        compute: Callable[[Chunk], Rows],
        shares: Sequence[Sequence[Chunk]],
        shapes: Sequence[Sequence[int]],
        like: Tensor,
        stop: bool,
    ) -> tuple[Rows, bool]:
        """Compute this rank's share of rows, and exchange them with the other ranks in one collective.

        A rank sends the rows of all outputs side by side, padded to the longest share, and whether it was asked to stop.

        Args:
            compute: takes a chunk of row numbers and returns the tensors of these rows.
            shares: the chunks of each rank.
            shapes: the shape of one row of each output.
            like: a tensor of the rows' dtype, on this rank's device.
            stop: whether this rank was asked to stop after this step.

        Returns:
            All rows in the order of their numbers, for each output; and whether a rank was asked to stop.

        Raises:
            RankError: a rank ended, or did not come in time.
            PanokitError: the error of the first rank that failed; a RankFailedError if it is not one of panokit's.
        """
        counts = [sum(map(len, share)) for share in shares]
        widths = [torch.Size(shape).numel() for shape in shapes]
        sent = like.new_zeros(max(counts) * sum(widths) + 1)
        sent[-1] = stop
        with self._lifeline.needed(), self.computing():
            at = 0
            for chunk in shares[self.rank]:
                self._lifeline.check()
                windows = f"window {chunk[0]}" if len(chunk) == 1 else f"windows {chunk[0]} to {chunk[-1]}"
                with self.agreeing(f" (rank {self.rank}, {windows})"):
                    flat = torch.cat([part.reshape(len(chunk), -1) for part in compute(chunk)], dim=1)
                    sent[at : at + flat.numel()] = flat.flatten()
                at += flat.numel()
                self.beat()
            received = like.new_empty((self.size, sent.numel()))
            self._meet()
            _all_gather(received.view(-1), sent)
            stopping = bool(received[:, -1].any())
        rows = received[:, :-1].view(self.size, max(counts), sum(widths))
        numbers = [[i for chunk in share for i in chunk] for share in shares]
        place = {i: (rank, k) for rank, share in enumerate(numbers) for k, i in enumerate(share)}
        order = [place[i] for i in range(len(place))]
        ordered = rows[[rank for rank, _ in order], [k for _, k in order]]
        parts = ordered.split(widths, dim=1)
        return tuple(part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)), stopping

    def check(self) -> None:
        """Raise a RankError if another rank has ended."""
        self._lifeline.check()

    def broadcast(self, work: Callable[[], Made]) -> Made:
        """Run `work` on rank 0, and return its result on every rank.

        The result travels as a pickle, which is slow: use it at the start and the end of a run, not in steps.

        Args:
            work: called on rank 0 alone.

        Raises:
            PanokitError: the error that `work` raised; a RankFailedError if it is not one of panokit's.
        """
        result: Any = None
        if self.rank == 0:
            with self.agreeing(""), self.working():
                result = work()
        with self._lifeline.needed(), self.computing():
            self._meet()
            return self._from_rank(result)

    def gather(self, own: Made) -> list[Made]:
        """Exchange one value of each rank.

        Args:
            own: the value of this rank.

        Returns:
            The values of all ranks, in the order of ranks.

        Raises:
            PanokitError: another rank raised it; see `agreeing`.
        """
        received: list[Any] = [None] * self.size
        with self._lifeline.needed(), self.computing():
            self._meet()
            dist.all_gather_object(received, own)
        return received

    @contextmanager
    def agreeing(self, where: str | None = None) -> Iterator[None]:
        """Inside, an error of one rank is raised on all ranks, at the next meeting of the others.

        Args:
            where: what is added to the message; None for the number of the rank.

        Raises:
            PanokitError: the error of the first rank that has one; a RankFailedError if it is not one of panokit's.
            RankError: another rank hangs, so that it cannot hear of the error. The message has both.
        """
        try:
            yield
        except Exception as error:  # of any type: the other ranks must learn of it
            known = isinstance(error, PanokitError) and (error.reported or type(error) is RankError)
            if known or self._lifeline.lost >= 0:  # all know it, or not all are left to hear it
                raise
            failure = _portable(error, f" (rank {self.rank})" if where is None else where)
            try:
                with self._lifeline.needed(), self.computing():
                    self._meet(failure)
            except RankError as gone:
                if self._lifeline.lost >= 0:
                    raise failure from error
                hangs = RankError(f"{gone}; rank {self.rank} failed before, {failure}")
                hangs.reported = gone.reported
                raise hangs from error

    def beat(self) -> None:
        """Give a sign of progress to the ranks that wait for this one."""
        self._lifeline.beat()

    def working(self) -> AbstractContextManager[None]:
        """Inside, this rank writes files or the like, and the others wait for it as long as its process runs."""
        return self._beating(True)

    def computing(self) -> AbstractContextManager[None]:
        """Inside, this rank computes, also within `working`. The others wait for it as long as it makes progress."""
        return self._beating(False)

    @contextmanager
    def _beating(self, now: bool) -> Iterator[None]:
        before, self._lifeline.working = self._lifeline.working, now
        try:
            yield
        finally:
            self._lifeline.working = before

    def _meet(self, failure: PanokitError | None = None) -> None:
        """Wait until all ranks have called this, for as long as those that have not give signs of life.

        Collectives alone have a time limit for all of it. They would give up a rank that writes a large file.

        Args:
            failure: an error of this rank, which all ranks raise now.

        Raises:
            RankError: a rank ended, or gave no sign of life for `patience` seconds.
            PanokitError: the error of the first rank that has one.
        """
        self._lifeline.arrive(failed=failure is not None)
        waited, beats, last = 0.0, self._lifeline.beats[:], time.monotonic()
        while missing := self._lifeline.missing(_PAUSE):
            self._lifeline.check()
            now = time.monotonic()
            waited += min(now - last, 2 * _PAUSE)  # this process itself may have been stopped in between, as by Ctrl-Z
            last = now
            if any(beats[rank] != self._lifeline.beats[rank] for rank in missing):
                waited, beats = 0.0, self._lifeline.beats[:]
            if waited > self._patience:
                raise self._given_up(missing)
        if failed := self._lifeline.failed():
            raise _everywhere(self._from_rank(failure, failed[0]), failure)

    def _given_up(self, missing: Sequence[int]) -> RankError:
        """The error for ranks that hang. The first of the others reports it."""
        if self.rank - launcher.local_rank() in missing:
            launcher.end_parent()
        rank = missing[0]
        error = RankError(f"rank {rank} has made no progress for {self._patience:g} s, the timeout: it hangs")
        error.reported = self.rank != min(set(range(self.size)) - {*missing})
        return error

    def begin_apart(self) -> int:
        """Begin a turn, in which each rank makes pictures of its own.

        Returns:
            The number of the turn, the same on all ranks.
        """
        self._turns += 1
        return self._turns

    def stopping(self, turn: int) -> bool:
        """Whether another rank was asked to stop in a turn."""
        return turn in self._lifeline.stops

    def stop(self, turn: int) -> None:
        """Tell all ranks that this one was asked to stop in a turn."""
        self._lifeline.stop(turn)

    def _close(self) -> None:
        """Close the group, so that none of its threads outlives the interpreter."""
        self._lifeline.close()
        if dist.is_initialized() and (self._lifeline.lost < 0 or dist.get_backend() == "gloo"):  # NCCL may wait for a lost rank
            dist.destroy_process_group()

    def _from_rank(self, value: Any, rank: int = 0) -> Any:
        """The value of one rank, on every rank."""
        values = [value]
        dist.broadcast_object_list(values, src=rank)
        return values[0]


def _everywhere(error: PanokitError, own: PanokitError | None) -> PanokitError:
    """Prepare an error that all ranks raise and rank 0 reports. The rank where it arose adds its cause."""
    error.reported = True
    if own is not None and str(own) == str(error):
        error.__cause__ = own.__cause__
    return error


def _portable(error: Exception, where: str = "") -> PanokitError:
    """The same error in a form that every rank can unpickle: one of panokit's own, or a RankFailedError that names it."""
    if isinstance(error, PanokitError) and type(error).__module__ == PanokitError.__module__:
        portable: PanokitError = error if error.reported else type(error)(f"{error}{where}")
    else:
        portable = RankFailedError(f"{type(error).__name__}: {error}{where}")
    if portable is not error:
        portable.__cause__ = error
    return portable
