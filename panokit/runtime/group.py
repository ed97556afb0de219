"""The group of ranks: one collective a step, and the same error on every rank."""

import atexit
import time
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, TypeVar, final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from panokit.errors import PanokitError, RankError, RankFailedError
from panokit.runtime.lifeline import Lifeline
from panokit.runtime.pieces import Rows
from panokit.runtime.sharding import Chunk

Made = TypeVar("Made")

_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # torch 2.14 renamed it


class Status(IntEnum):
    """The status that a rank sends with its rows. A larger one takes precedence."""

    FINE = 0
    STOP = 1
    """The rank was asked to stop after this step."""
    FAILED = 2
    """The rank raised an error."""


@final
class Group:
    """All ranks of a run, in the default group of torch.distributed.

    Args:
        patience: seconds to wait for a rank that makes no progress.
    """

    def __init__(self, patience: float) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._patience, self._meetings, self._turns, self._beaten = patience, 0, 0, 0.0
        self._store = distributed_c10d._get_default_store()
        self._lifeline = Lifeline(self.rank, self.size, self._from_rank, max(patience, 60.0))
        atexit.register(self._close)

    def rows(
        self,
        compute: Callable[[Chunk], Rows],
        shares: Sequence[Sequence[Chunk]],
        shapes: Sequence[Sequence[int]],
        like: Tensor,
        status: Status,
        failed: Exception | None = None,
    ) -> tuple[Rows, Status]:
        """Compute this rank's share of rows, and exchange them with the other ranks in one collective.

        A rank sends the rows of all outputs side by side, padded to the longest share, and its status. A rank that fails sends
        zeros. So all ranks learn of it, and raise the same error.

        Args:
            compute: takes a chunk of row numbers and returns the tensors of these rows.
            shares: the chunks of each rank.
            shapes: the shape of one row of each output.
            like: a tensor of the rows' dtype, on this rank's device.
            status: the status of this rank.
            failed: an error of this rank since the last exchange; it computes nothing then.

        Returns:
            All rows in the order of their numbers, for each output; and the largest status of a rank.

        Raises:
            RankError: a rank ended, or did not come in time.
            PanokitError: the error of the first rank that failed; a RankFailedError if it is not one of panokit's.
        """
        counts = [sum(map(len, share)) for share in shares]
        widths = [torch.Size(shape).numel() for shape in shapes]
        sent = like.new_zeros(max(counts) * sum(widths) + 1)
        failure = _portable(failed, f" (rank {self.rank})") if failed else None
        with self._lifeline.needed():
            at = 0
            for chunk in shares[self.rank] if failure is None else ():
                self._lifeline.check()
                try:
                    flat = torch.cat([part.reshape(len(chunk), -1) for part in compute(chunk)], dim=1)
                    sent[at : at + flat.numel()] = flat.flatten()
                except Exception as error:  # of any type: the other ranks must learn of it
                    windows = f"window {chunk[0]}" if len(chunk) == 1 else f"windows {chunk[0]} to {chunk[-1]}"
                    failure = _portable(error, f" (rank {self.rank}, {windows})")
                    sent.zero_()
                    break
                at += flat.numel()
            sent[-1] = status if failure is None else Status.FAILED
            received = like.new_empty((self.size, sent.numel()))
            _all_gather(received.view(-1), sent)
            statuses = [Status(round(status)) for status in received[:, -1].tolist()]
            if Status.FAILED in statuses:
                raise _everywhere(self._from_rank(failure, statuses.index(Status.FAILED)), failure)
        rows = received[:, :-1].view(self.size, max(counts), sum(widths))
        numbers = [[i for chunk in share for i in chunk] for share in shares]
        place = {i: (rank, k) for rank, share in enumerate(numbers) for k, i in enumerate(share)}
        order = [place[i] for i in range(len(place))]
        ordered = rows[[rank for rank, _ in order], [k for _, k in order]]
        parts = ordered.split(widths, dim=1)
        return tuple(part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)), max(statuses)

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
        error: Exception | None = None
        if self.rank == 0:
            try:
                result = work()
            except Exception as raised:  # the other ranks must learn of it
                error = raised
        with self._lifeline.needed():
            result, failure = self._from_rank((result, error and _portable(error)))
        if failure is not None:
            raise _everywhere(failure, error)
        return result

    def gather(self, own: Made, error: Exception | None) -> list[Made]:
        """Exchange one value of each rank.

        Args:
            own: the value of this rank.
            error: an error of this rank, or None.

        Returns:
            The values of all ranks, in the order of ranks.

        Raises:
            PanokitError: the error of the first rank that has one; a RankFailedError if it is not one of panokit's.
        """
        received: list[Any] = [None] * self.size
        failure = error and _portable(error, f" (rank {self.rank})")
        with self._lifeline.needed():
            dist.all_gather_object(received, (own, failure))
        for _, other in received:
            if other is not None:
                raise _everywhere(other, failure)
        return [value for value, _ in received]

    def beat(self) -> None:
        """Count a sign of progress, at most once a second, for the ranks that may wait for this one in `meet`."""
        if time.monotonic() - self._beaten >= 1:
            self._beaten = time.monotonic()
            self._store.add(f"panokit/beat/{self.rank}", 1)

    def meet(self) -> None:
        """Wait until all ranks have called this, for as long as the others make progress.

        Raises:
            RankError: a rank ended, or made no progress for `patience` seconds.
        """
        self._meetings += 1
        key = f"panokit/meeting/{self._meetings}"
        self._store.add(f"{key}/{self.rank}", 1)
        beats, since = [-1], time.monotonic()
        while True:
            ended = self._lifeline.lost >= 0  # read first: a rank may have come, and ended since
            missing = [rank for rank in range(self.size) if not self._store.check([f"{key}/{rank}"])]
            if not missing:
                return
            if ended:
                self._lifeline.check()
            latest = [self._store.add(f"panokit/beat/{rank}", 0) for rank in missing]
            if latest != beats:
                beats, since = latest, time.monotonic()
            elif time.monotonic() - since > self._patience:
                raise RankError(f"rank {missing[0]} has made no progress for {self._patience:g} s, the timeout: it hangs")
            time.sleep(0.05)

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


def _everywhere(error: PanokitError, own: Exception | None) -> PanokitError:
    """Prepare an error that all ranks raise and rank 0 reports. The rank where it arose adds its cause."""
    error.reported = True
    if own is not None and str(own) in str(error):
        error.__cause__ = own.__cause__ or own
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
