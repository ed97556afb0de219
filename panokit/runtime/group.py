"""The ranks of a run: one collective a step, and one mind about what went wrong."""

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

_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name since torch 2.14


class Status(IntEnum):
    """What a rank has to say besides its rows."""

    FINE = 0
    STOP = 1
    """It was asked to stop after this step."""
    FAILED = 2


@final
class Group:
    """All ranks, which meet in torch.distributed's default group.

    Args:
        patience: seconds to wait for the others at the start.
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
        """All rows, in order, each computed by the rank whose share it is in; and the gravest that a rank has to say.

        It is one collective: a rank sends the rows of all outputs side by side, padded to the longest share, and its status. A
        rank that fails, or has `failed` since the last time, sends zeros, so that all learn of it, and raise the same error.

        Raises:
            RankError: a rank ended or did not come.
            PanokitError: what a rank raised; a RankFailedError for what is none of panokit's.
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
                except Exception as error:  # whatever it is, the others must hear of it
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
        """Raise a RankError if another rank has ended: what is begun together ends together."""
        self._lifeline.check()

    def broadcast(self, work: Callable[[], Made]) -> Made:
        """What `work` returns on the first rank, on every rank; or what it raises there.

        It goes by pickle between ranks of one run, and is for setting up and winding up, not for steps.
        """
        result: Any = None
        error: Exception | None = None
        if self.rank == 0:
            try:
                result = work()
            except Exception as raised:  # the others must learn of it
                error = raised
        with self._lifeline.needed():
            result, failure = self._from_rank((result, error and _portable(error)))
        if failure is not None:
            raise _everywhere(failure, error)
        return result

    def gather(self, own: Made, error: Exception | None) -> list[Made]:
        """What each rank says, in order, on every rank; or the first error that one has.

        Raises:
            PanokitError: that error.
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
        """Let those that may wait for it know, about once a second, that this rank makes progress by itself."""
        if time.monotonic() - self._beaten >= 1:
            self._beaten = time.monotonic()
            self._store.add(f"panokit/beat/{self.rank}", 1)

    def meet(self) -> None:
        """Wait for all ranks, however long it takes, as long as they beat.

        Raises:
            RankError: one has ended, or has not made any progress for as long as ranks have patience.
        """
        self._meetings += 1
        key = f"panokit/meeting/{self._meetings}"
        self._store.add(f"{key}/{self.rank}", 1)
        beats, since = [-1], time.monotonic()
        while True:
            gone = self._lifeline.lost >= 0  # before looking: who has come and gone has come
            away = [rank for rank in range(self.size) if not self._store.check([f"{key}/{rank}"])]
            if not away:
                return
            if gone:
                self._lifeline.check()
            last = [self._store.add(f"panokit/beat/{rank}", 0) for rank in away]
            if last != beats:
                beats, since = last, time.monotonic()
            elif time.monotonic() - since > self._patience:
                raise RankError(f"rank {away[0]} has made no progress for {self._patience:g} s, the timeout: it hangs")
            time.sleep(0.05)

    def begin_apart(self) -> int:
        """The number, the same on all ranks, of the time from here on in which each makes pictures of its own."""
        self._turns += 1
        return self._turns

    def stopping(self, turn: int) -> bool:
        """Whether a rank was asked to stop in that time."""
        return turn in self._lifeline.stops

    def stop(self, turn: int) -> None:
        """Let all ranks know that this one was asked to stop in that time."""
        self._lifeline.stop(turn)

    def _close(self) -> None:
        """End in good order, so that no thread of the group outlives the interpreter."""
        self._lifeline.close()
        if dist.is_initialized() and (self._lifeline.lost < 0 or dist.get_backend() == "gloo"):  # NCCL may wait for the lost
            dist.destroy_process_group()

    def _from_rank(self, value: Any, rank: int = 0) -> Any:
        """A value of one rank, on every rank."""
        box = [value]
        dist.broadcast_object_list(box, src=rank)
        return box[0]


def _everywhere(error: PanokitError, own: Exception | None) -> PanokitError:
    """The error that all ranks raise, and the first one tells the user; on the rank where it arose, with its cause."""
    error.reported = True
    if own is not None and str(own) in str(error):
        error.__cause__ = own.__cause__ or own
    return error


def _portable(error: Exception, where: str = "") -> PanokitError:
    """The same error, in a form that travels: one of panokit's own, or a RankFailedError that names it."""
    if isinstance(error, PanokitError) and type(error).__module__ == PanokitError.__module__:
        portable: PanokitError = error if error.reported else type(error)(f"{error}{where}")
    else:
        portable = RankFailedError(f"{type(error).__name__}: {error}{where}")
    if portable is not error:
        portable.__cause__ = error
    return portable
