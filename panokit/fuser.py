"""How windows become one canvas again."""

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

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
            cells = canvas[grid.place(i)].addcmul_(window, weight)
            if grid.joins(i):
                canvas[grid.place(i)] = cells
        return canvas.mul_(norm)


@lru_cache(maxsize=32)
def _weights(fuser: WeightedFuser, grid: Grid, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """The weight of a window and one over the sum of weights: made once, they depend on settings alone."""
    weight = fuser.weight(grid).to(device, dtype)
    total = torch.zeros(grid.size, dtype=dtype, device=device)
    for i in range(len(grid)):
        total[grid.place(i)] += weight
    return weight, 1 / total
