"""Windows in as large pieces as the memory holds."""

import warnings
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from panokit.errors import OutOfMemoryError, ShardingWarning
from panokit.runtime.sharding import Chunk

Rows = tuple[Tensor, ...]


@final
class Pieces:
    """Computes chunks; in halves where one does not fit, and from then on in pieces of the size that did.

    Rows do not depend on the rows beside them, so that changes nothing but rounding.

    Args:
        device: whose memory it is.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._fits: dict[int, int] = {}

    def rows(self, fn: Callable[[Chunk], Rows], chunk: Chunk, micro_batch: int) -> Rows:
        """The rows `fn(chunk)`.

        Args:
            fn: takes window numbers and returns tensors with a row for each.
            chunk: the numbers.
            micro_batch: what such chunks were cut to: what is learnt is learnt of these.

        Raises:
            OutOfMemoryError: a single window does not fit.
        """
        while True:
            fits = min(self._fits.get(micro_batch, micro_batch), len(chunk))
            try:
                return joined([fn(chunk[k : k + fits]) for k in range(0, len(chunk), fits)])
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                reason = " ".join(str(error).split())[:200]
            # Only here is nothing left that the failed attempt held.
            if fits == 1:
                raise OutOfMemoryError(
                    f"one window does not fit the memory of {self._device} ({reason}): try checkpointing, the precision "
                    "bf16-true, attention sliced, offload, or a device with more"
                )
            self._fits[micro_batch] = fits // 2
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            message = (
                f"{fits} windows at once do not fit the memory of {self._device}, so there are {fits // 2} from here on: "
                f"micro_batch={fits // 2} would avoid the attempt, guided_micro_batch that of guided steps"
            )
            warnings.warn(message, ShardingWarning, stacklevel=2)


def joined(rows: Sequence[Rows]) -> Rows:
    """The rows of several pieces, one below the other."""
    return rows[0] if len(rows) == 1 else tuple(torch.cat(parts) for parts in zip(*rows, strict=True))


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
