"""What is done to whole canvases: to enlarge one, and to filter one. Both go round the join of an axis that is a ring."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate, pad

SHARP = 1e-6
"""A standard deviation, in cells, at which a Gaussian filter changes nothing."""


def enlarged(x: Float[Tensor, "*small"], phase: int, wrap: Sequence[bool]) -> Float[Tensor, "*large"]:
    """Enlarge the canvas of the phase before to that of `phase`, by bicubic interpolation.

    Args:
        x: the smaller canvas, whose last axes are those of `wrap`.
        phase: the number of the larger canvas's phase, from 2. It has `phase / (phase - 1)` times the cells along each axis.
        wrap: for each axis, whether the canvas is a ring along it.
    """
    margin = 2 * (phase - 1)  # cubic interpolation looks two cells far; these become whole cells, which are cut off again

    def change(lines: Tensor) -> Tensor:
        rows, cells = lines.shape
        larger = interpolate(lines[None, None], size=(rows, cells // (phase - 1) * phase), mode="bicubic")
        return larger[0, 0, :, 2 * phase : -2 * phase]

    return _along(x, wrap, margin, change)


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
    smooth = _along(x, wrap, radius, lambda lines: lines.unfold(1, len(kernel), 1) @ kernel)
    return (smooth - smooth.mean()) / smooth.std() * x.std() + x.mean()


def _along(x: Tensor, wrap: Sequence[bool], margin: int, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Change all lines along one axis after another, each with a margin that `change` takes away."""
    for axis, ring in enumerate(wrap, start=-len(wrap)):
        rows = x.movedim(axis, -1)
        lines = rows.reshape(1, -1, rows.shape[-1])
        (lines,) = pad(lines, (margin, margin), mode="circular" if ring else "replicate")
        x = change(lines).reshape(*rows.shape[:-1], -1).movedim(-1, axis)
    return x
