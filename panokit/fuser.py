"""How windows become one canvas again."""

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from panokit.errors import ContractError
from panokit.grid import Grid


class Fuser(ABC):
    """Joins what the windows say into one canvas. It sees all windows, in the grid's order, on every rank."""

    @abstractmethod
    def fuse(self, windows: Float[Tensor, "n *c_window"], grid: Grid) -> Float[Tensor, "*c_size"]:
        """One canvas, `c *size`, from all the windows, `n c *window`."""


class WeightedFuser(Fuser):
    r"""The weighted mean of the windows that cover a cell.

    $$ z = \sum_i \frac{F_i^{-1}(W)}{\sum_j F_j^{-1}(W)} F_i^{-1}(x_i) $$

    with $F_i$ the crop of window $i$ (Bar-Tal et al. 2023, eq. 5). The sum is in float32 at least, window by window in the
    grid's order, so it has the same bits wherever the windows were computed.
    """

    @abstractmethod
    def weight(self, grid: Grid) -> Float[Tensor, "*window"]:
        """How much each cell of a window counts, > 0, the same for every window."""

    @final
    def fuse(self, windows: Float[Tensor, "n *c_window"], grid: Grid) -> Float[Tensor, "*c_size"]:
        """The weighted mean of the windows, `c *size`, in float32 or the windows' own type where that is finer."""
        dtype = torch.promote_types(windows.dtype, torch.float32)
        weight, norm = _weights(self, grid, dtype, windows.device)
        canvas = windows.new_zeros((*windows.shape[1 : -len(grid.size)], *grid.size), dtype=dtype)
        for i, window in enumerate(windows.to(dtype).unbind()):
            (whole, _), *more = pieces = grid.pieces(i)
            if not more:  # most windows: slices of all of it cost a third of the sum
                canvas[whole].addcmul_(window, weight)
                continue
            for at, of in pieces:
                canvas[at].addcmul_(window[of], weight[of])
        return canvas.mul_(norm)


@lru_cache(maxsize=32)
def _weights(fuser: WeightedFuser, grid: Grid, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """The weight of a window and one over the sum of weights: made once, they depend on settings alone."""
    weight = fuser.weight(grid).to(device, dtype)
    if weight.shape != grid.window or not ((weight > 0) & weight.isfinite()).all():
        raise ContractError(
            f"{type(fuser).__name__}.weight returned shape {tuple(weight.shape)} with a least weight of {float(weight.min())} "
            f"for windows of {grid.window}; it must return one finite weight a cell, each above 0"
        )
    total = torch.zeros(grid.size, dtype=dtype, device=device)
    for i in range(len(grid)):
        total[grid.place(i)] += weight
    return weight, 1 / total
