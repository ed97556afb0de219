"""Fusers: they join overlapping windows into one canvas."""

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from panokit.errors import ContractError
from panokit.grid import Grid


class Fuser(ABC):
    """Joins overlapping windows into one canvas.

    A fuser gets all windows at once, in the grid's order, on every rank. It must return the same canvas on each of them.
    """

    @abstractmethod
    def fuse(self, windows: Float[Tensor, "n *c_window"], grid: Grid) -> Float[Tensor, "*c_size"]:
        """Join the windows of one canvas.

        The run fuses guided windows and predictions this way, and steps the fused canvas once.

        Args:
            windows: all windows of the grid, `n c *window`, in the order of their numbers.
            grid: where the windows lie on the canvas.

        Returns:
            The canvas, `c *size`. Windows cropped from one canvas must give that canvas back, up to rounding.
        """


class WeightedFuser(Fuser):
    r"""The weighted mean of the windows that cover a cell.

    $$ z = \sum_i \frac{F_i^{-1}(W)}{\sum_j F_j^{-1}(W)} F_i^{-1}(x_i) $$

    $F_i$ crops window $i$ out of the canvas, $x_i$ is that window, and $W$ is its weight (Bar-Tal et al. 2023, eq. 5). The sum
    is computed in float32 or float64, window by window in the grid's order. So it has the same bits wherever the windows were
    computed.
    """

    @abstractmethod
    def weight(self, grid: Grid) -> Float[Tensor, "*window"]:
        """The weight of each cell of a window; all windows share it.

        The result is cached by the fuser and the grid, so it may depend on nothing else.

        Args:
            grid: where the windows lie; `grid.window` is the shape of the weight.

        Returns:
            The weight $W$, `*window`, finite and above 0. Only ratios count: the sum divides by the total weight of a cell.
        """

    @final
    def fuse(self, windows: Float[Tensor, "n *c_window"], grid: Grid) -> Float[Tensor, "*c_size"]:
        """Join the windows by their weighted mean.

        Args:
            windows: all windows of the grid, `n c *window`, in the order of their numbers.
            grid: where the windows lie on the canvas.

        Returns:
            The canvas, `c *size`, in float64 if the windows are, and in float32 otherwise.

        Raises:
            ContractError: `weight` returned another shape, or a number that is not finite and above 0.
        """
        dtype = torch.promote_types(windows.dtype, torch.float32)
        weight, norm = _weights(self, grid, dtype, windows.device)
        canvas = windows.new_zeros((*windows.shape[1 : -len(grid.size)], *grid.size), dtype=dtype)
        for i, window in enumerate(windows.to(dtype).unbind()):
            (whole, _), *more = pieces = grid.pieces(i)
            if not more:  # most windows are one piece; slicing them again would take a third of the whole time
                canvas[whole].addcmul_(window, weight)
                continue
            for at, of in pieces:
                canvas[at].addcmul_(window[of], weight[of])
        return canvas.mul_(norm)


@lru_cache(maxsize=32)
def _weights(fuser: WeightedFuser, grid: Grid, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """The weight of a window, and the inverse of each cell's total weight. They depend on settings alone: compute them once."""
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
