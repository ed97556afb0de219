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
        self._patience, self._meetings, self._beaten = patience, 0, 0.0
        self._store = distributed_c10d._get_default_store()
        self._lifeline = Lifeline(self.rank, self.size, self._told, max(patience, 60.0))
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
            heard = [Status(round(each)) for each in received[:, -1].tolist()]
            if Status.FAILED in heard:
                raise _everywhere(self._told(failure, heard.index(Status.FAILED)), failure)
        rows = received[:, :-1].view(self.size, max(counts), sum(widths))
        numbers = [[i for chunk in share for i in chunk] for share in shares]
        place = {i: (rank, k) for rank, share in enumerate(numbers) for k, i in enumerate(share)}
        order = [place[i] for i in range(len(place))]
        ordered = rows[[rank for rank, _ in order], [k for _, k in order]]
        parts = ordered.split(widths, dim=1)
        return tuple(part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)), max(heard)

    def check(self) -> None:
        """Raise a RankError if another rank has ended: what is begun together ends together."""
        self._lifeline.check()

    def first(self, work: Callable[[], Made]) -> Made:
        """What `work` returns on the first rank, on every rank; or what it raises there.

        It goes by pickle between ranks of one run, and is for setting up and winding up, not for steps.
        """
        result: Any = None
        error: Exception | None = None
        if self.rank == 0:
            try:
                result = work()
            except Exception as found:  # the others must hear of it
                error = found
        with self._lifeline.needed():
            result, told = self._told((result, error and _portable(error)))
        if told is not None:
            raise _everywhere(told, error)
        return result

    def together(self, own: Made, error: Exception | None) -> list[Made]:
        """What each rank says, in order, on every rank; or the first error that one has.

        Raises:
            PanokitError: that error.
        """
        heard: list[Any] = [None] * self.size
        failure = error and _portable(error, f" (rank {self.rank})")
        with self._lifeline.needed():
            dist.all_gather_object(heard, (own, failure))
        for _, told in heard:
            if told is not None:
                raise _everywhere(told, failure)
        return [said for said, _ in heard]

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
            found = [self._store.add(f"panokit/beat/{rank}", 0) for rank in away]
            if found != beats:
                beats, since = found, time.monotonic()
            elif time.monotonic() - since > self._patience:
                raise RankError(f"rank {away[0]} has made no progress for {self._patience:g} s, the timeout: it hangs")
            time.sleep(0.05)

    @property
    def stopping(self) -> bool:
        """Whether a rank has told that it was asked to stop."""
        return self._lifeline.stopping

    def stop(self) -> None:
        """Tell all ranks that this one was asked to stop."""
        self._lifeline.stop()

    def _close(self) -> None:
        """End in good order, so that no thread of the group outlives the interpreter."""
        self._lifeline.close()
        if dist.is_initialized() and (self._lifeline.lost < 0 or dist.get_backend() == "gloo"):  # NCCL may wait for the lost
            dist.destroy_process_group()

    def _told(self, said: Any, rank: int = 0) -> Any:
        """What one rank says, on every rank."""
        box = [said]
        dist.broadcast_object_list(box, src=rank)
        return box[0]


def _everywhere(told: PanokitError, own: Exception | None) -> PanokitError:
    """The error that all ranks raise, and the first one tells the user; on the rank where it arose, with its cause."""
    told.told = True
    if own is not None and str(own) in str(told):
        told.__cause__ = own.__cause__ or own
    return told


def _portable(error: Exception, where: str = "") -> PanokitError:
    """The same error, in a form that travels: one of panokit's own, or a RankFailedError that names it."""
    if isinstance(error, PanokitError) and type(error).__module__ == PanokitError.__module__:
        portable: PanokitError = error if error.told else type(error)(f"{error}{where}")
    else:
        portable = RankFailedError(f"{type(error).__name__}: {error}{where}")
    if portable is not error:
        portable.__cause__ = error
    return portable
