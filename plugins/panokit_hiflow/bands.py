"""From a coarse canvas to a fine one, and from a window to its low frequencies."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def enlarged(x: Float[Tensor, "*coarse"], factor: int, wrap: Sequence[bool]) -> Float[Tensor, "*fine"]:
    """Linear interpolation to `factor` times the cells, along as many of the last axes as `wrap` has entries.

    It goes round the join of an axis that wraps. Elsewhere the border cells go on.
    """
    for axis, ring in enumerate(wrap, start=-len(wrap)):
        cells = x.shape[axis]
        at = (torch.arange(cells * factor, dtype=torch.float64) + 0.5) / factor - 0.5
        low = at.floor().long()
        left, right = (
            x.index_select(axis, (k % cells if ring else k.clamp(0, cells - 1)).to(x.device)) for k in (low, low + 1)
        )
        x = torch.lerp(left, right, (at - low).to(x).view(-1, *(1,) * (-axis - 1)))
    return x


def low_pass(windows: Float[Tensor, "n *c_window"], share: float, axes: int) -> Float[Tensor, "n *c_window"]:
    """The frequencies of windows up to a share of the band, along each of the last `axes` axes.

    These are the frequencies of the mirrored window, so the windows' borders make no jump. It is an orthogonal projection.
    """
    for axis in range(-axes, 0):
        cells = windows.shape[axis]
        waves = torch.arange(min(int(share * cells) + 1, cells), dtype=torch.float64)
        rows = torch.cos(math.pi / cells * torch.outer(waves, torch.arange(cells) + 0.5))
        rows = (rows / rows.norm(dim=1, keepdim=True)).to(windows)
        windows = (windows.movedim(axis, -1) @ rows.T @ rows).movedim(-1, axis)
    return windows
