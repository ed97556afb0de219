"""The ranks of a run: one collective a step, and one mind about what went wrong."""

import time
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, Never, TypeVar, final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from panokit.errors import PanokitError, RankFailedError
from panokit.lifeline import Lifeline
from panokit.pieces import Rows
from panokit.sharding import Chunk

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
        self._meetings = 0
        self._lifeline = Lifeline(self.rank, self.size, self._told, patience)

    def rows(
        self,
        compute: Callable[[Chunk], Rows],
        shares: Sequence[Sequence[Chunk]],
        shapes: Sequence[Sequence[int]],
        like: Tensor,
        status: Status,
    ) -> tuple[Rows, Status]:
        """All rows, in order, each computed by the rank whose share it is in; and the gravest that a rank has to say.

        It is one collective: a rank sends the rows of all outputs side by side, padded to the longest share, and its status. A
        rank that fails sends zeros, so that all learn of it, and raise the same error.

        Raises:
            RankError: a rank ended or did not come.
            PanokitError: what a rank raised; a RankFailedError for what is none of panokit's.
        """
        counts = [sum(map(len, share)) for share in shares]
        widths = [torch.Size(shape).numel() for shape in shapes]
        sent = like.new_zeros(max(counts) * sum(widths) + 1)
        failure: tuple[Exception, Chunk] | None = None
        with self._lifeline.needed():
            at = 0
            for chunk in shares[self.rank]:
                self._lifeline.check()
                try:
                    flat = torch.cat([part.reshape(len(chunk), -1) for part in compute(chunk)], dim=1)
                    sent[at : at + flat.numel()] = flat.flatten()
                except Exception as error:  # whatever it is, the others must hear of it
                    failure, status = (error, chunk), Status.FAILED
                    sent.zero_()
                    break
                at += flat.numel()
            sent[-1] = status
            received = like.new_empty((self.size, sent.numel()))
            _all_gather(received.view(-1), sent)
            heard = [Status(round(each)) for each in received[:, -1].tolist()]
            if Status.FAILED in heard:
                self._raise(heard.index(Status.FAILED), failure)
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
            raise error or told
        return result

    def all(self, said: Made) -> list[Made]:
        """What each rank says, in order, on every rank."""
        heard: list[Any] = [None] * self.size
        with self._lifeline.needed():
            dist.all_gather_object(heard, said)
        return heard

    def gathered(self, own: Made, error: Exception | None) -> list[Made]:
        """What each rank has made for itself, in order, on every rank; they may take as long as they live.

        Raises:
            PanokitError: the first error that there is.
        """
        self._meetings += 1
        store, key = distributed_c10d._get_default_store(), f"panokit/meeting/{self._meetings}"
        store.add(key, 1)
        while store.add(key, 0) < self.size:  # no collective waits for longer than the group's timeout
            self._lifeline.check()
            time.sleep(0.05)
        heard = self.all((own, error and _portable(error, f" (rank {self.rank})")))
        for _, told in heard:
            if told is not None:
                raise error or told
        return [made for made, _ in heard]

    def _told(self, said: Any, rank: int = 0) -> Any:
        """What one rank says, on every rank."""
        box = [said]
        dist.broadcast_object_list(box, src=rank)
        return box[0]

    def _raise(self, rank: int, failure: tuple[Exception, Chunk] | None) -> Never:
        """Raise what a rank failed with, on every rank in the same words."""
        if rank == self.rank and failure is not None:
            error, chunk = failure
            windows = f"window {chunk[0]}" if len(chunk) == 1 else f"windows {chunk[0]} to {chunk[-1]}"
            raise self._told(_portable(error, f" (rank {rank}, {windows})"), rank) from error
        raise self._told(None, rank)


def _portable(error: Exception, where: str = "") -> PanokitError:
    """The same error, in a form that travels: one of panokit's own, or a RankFailedError that names it."""
    if isinstance(error, PanokitError) and type(error).__module__ == PanokitError.__module__:
        return type(error)(f"{error}{where}")
    return RankFailedError(f"{type(error).__name__}: {error}{where}")
