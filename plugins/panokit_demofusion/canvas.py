"""A Gaussian filter for whole canvases, which goes round the join of an axis that is a ring."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

SHARP = 1e-6
"""A standard deviation, in cells, at which a Gaussian filter changes nothing."""


def filtered(x: Float[Tensor, "*shape"], sigma: float, radius: int, wrap: Sequence[bool]) -> Float[Tensor, "*shape"]:
    """Filter a canvas by a Gaussian, and give it back the mean and the standard deviation that it had.

    Args:
        x: the canvas, whose last axes are those of `wrap`.
        sigma: the standard deviation of the Gaussian, in cells.
        radius: how far the filter reaches, in cells.
        wrap: for each axis, whether the canvas is a ring along it.
    """
    distance = torch.arange(-radius, radius + 1).to(x)
    kernel = torch.exp(-0.5 * (distance / max(sigma, SHARP)) ** 2)
    kernel = kernel / kernel.sum()
    smooth = x
    for axis, ring in enumerate(wrap, start=-len(wrap)):
        rows = smooth.movedim(axis, -1)
        (lines,) = pad(rows.reshape(1, -1, rows.shape[-1]), (radius, radius), mode="circular" if ring else "replicate")
        smooth = (lines.unfold(1, len(kernel), 1) @ kernel).reshape(rows.shape).movedim(-1, axis)
    return (smooth - smooth.mean()) / smooth.std() * x.std() + x.mean()
