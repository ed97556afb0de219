"""Pieces: as many windows at once as the memory holds."""

import warnings
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from panokit.errors import OutOfMemoryError, ShardingWarning, reason_of
from panokit.memory import ADVICE, is_out_of_memory
from panokit.runtime.sharding import Chunk
from panokit.wording import counted

Rows = tuple[Tensor, ...]
"""One or more tensors with a row for each window."""


@final
class Pieces:
    """Computes chunks. Where a chunk does not fit the memory, it is halved until it does, and later chunks are cut as small.

    A row does not depend on the rows beside it, so this changes only rounding.

    Args:
        device: the device that computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._fits: dict[int, int] = {}

    def rows(self, fn: Callable[[Chunk], Rows], chunk: Chunk, micro_batch: int) -> Rows:
        """Compute the rows `fn(chunk)`.

        Args:
            fn: takes window numbers and returns tensors with a row for each.
            chunk: the window numbers.
            micro_batch: the size that chunks of this kind were cut to. The size that fits is remembered for it.

        Raises:
            OutOfMemoryError: a single window does not fit.
        """
        while True:
            fits = min(self._fits.get(micro_batch, micro_batch), len(chunk))
            try:
                return joined([fn(chunk[k : k + fits]) for k in range(0, len(chunk), fits)])
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                reason = reason_of(error)
            # The failed attempt's tensors are freed only here, after the except block.
            if fits == 1:
                raise OutOfMemoryError(f"one window does not fit the memory of {self._device} ({reason}): {ADVICE}")
            self._fits[micro_batch] = fits // 2
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            message = (
                f"{fits} windows at once do not fit the memory of {self._device}, so from here on it is "
                f"{counted(fits // 2, 'window')} at once: set micro_batch={fits // 2}, or guided_micro_batch if the step is "
                "guided, to avoid the failed attempt"
            )
            warnings.warn(message, ShardingWarning, stacklevel=2)


def joined(rows: list[Rows]) -> Rows:
    """The rows of several pieces, concatenated. The list is emptied, so that the memory never holds all rows twice."""
    if len(rows) == 1:
        return rows[0]
    columns = [list(parts) for parts in zip(*rows, strict=True)]
    rows.clear()
    made: list[Tensor] = []
    for parts in columns:
        made.append(torch.cat(parts))
        parts.clear()
    return tuple(made)
