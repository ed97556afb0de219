"""Larger canvases and pictures from smaller ones."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate, pad

REACH = 2
"""Cells on either side that a cubic needs."""


def enlarged(x: Float[Tensor, "*small"], wrap: Sequence[bool], up: int, down: int = 1) -> Float[Tensor, "*large"]:
    """Cubic interpolation to `up / down` times the cells, along as many of the last axes as `wrap` has entries.

    It goes round the join of an axis that is a ring; elsewhere the outermost cells go on beyond the border.

    Args:
        x: a canvas, or a picture.
        wrap: for each of its last axes, whether it is a ring along it.
        up: by how much to multiply the cells, 1 or more.
        down: by how much to divide them, 1 or more; it divides the cells of each of these axes.
    """
    margin = REACH * down  # these become whole cells, which are cut off again
    for axis, ring in enumerate(wrap, start=-len(wrap)):
        rows = x.movedim(axis, -1)
        lines = pad(rows.reshape(1, -1, rows.shape[-1]), (margin, margin), mode="circular" if ring else "replicate")
        size = lines.shape[1], lines.shape[2] // down * up
        lines = interpolate(lines[None], size=size, mode="bicubic")[0, ..., REACH * up : -REACH * up]
        x = lines.reshape(*rows.shape[:-1], -1).movedim(-1, axis)
    return x
