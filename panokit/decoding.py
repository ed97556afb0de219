"""Decoding: from a whole canvas to its picture, in one piece or in tiles that the ranks share."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from panokit.denoiser import Codec
from panokit.grid import Grid
from panokit.runtime import Runtime

WHOLE = 128 * 256
"""The most cells of a canvas that is decoded in one piece: 1024 x 2048 pixels at factor 8, which takes some gigabytes."""
TILE, OVERLAP = 128, 24
"""Cells along a side of a tile, and cells that two neighbouring tiles share."""
PAD = 16
"""Cells that are repeated at both ends of a wrapped axis."""


def decode(codec: Codec, canvas: Float[Tensor, "c h w"], wrap: tuple[bool, ...], runtime: Runtime) -> Float[Tensor, "3 H W"]:
    """Decode a canvas. The picture is the same for any number of ranks, and has no seam where the canvas is a ring.

    Every rank decodes a canvas of up to `WHOLE` cells in one piece, so that the decoder's norms and attention see all of it.
    The ranks share a larger canvas in tiles. Neighbouring tiles fade into each other over `OVERLAP` cells.

    Args:
        codec: decodes latents.
        canvas: the latents, `c h w`.
        wrap: for each axis, whether the canvas is a ring along it.
        runtime: deals the tiles out to ranks.

    Returns:
        The picture, `3 H W`, in about [0, 1].
    """
    height, width = canvas.shape[-2:]
    if height * width <= WHOLE:
        return _whole(codec, canvas, wrap)
    sides = (min(TILE, height), min(TILE, width))
    grid = Grid((height, width), sides, (max(1, sides[0] - OVERLAP), max(1, sides[1] - OVERLAP)), (wrap[0], wrap[1]))
    size, window, stride = (tuple(n * codec.factor for n in cells) for cells in (grid.size, grid.window, grid.stride))
    pixels = Grid(size, window, stride, grid.wrap)
    (tiles,) = runtime.map(
        lambda index: (codec.decode(grid.crop(canvas, index)),), len(grid), [(3, *pixels.window)], micro_batch=1
    )
    return _faded(tiles, pixels, OVERLAP * codec.factor)


def _whole(codec: Codec, canvas: Tensor, wrap: tuple[bool, ...]) -> Tensor:
    """The picture in one piece. A decoder pads with zeros, so cells of a wrapped axis are repeated first, and cut off after."""
    pads = [min(PAD, size) if ring else 0 for size, ring in zip(canvas.shape[-2:], wrap, strict=True)]
    ring = nn.functional.pad(canvas[None], (pads[1], pads[1], pads[0], pads[0]), mode="circular")
    image = codec.decode(ring)[0]
    top, left = (p * codec.factor for p in pads)
    height, width = (size * codec.factor for size in canvas.shape[-2:])
    return image[:, top : top + height, left : left + width]


def _faded(tiles: Tensor, grid: Grid, fade: int) -> Tensor:
    """The weighted mean of the tiles. Weights fade over `fade` pixels towards each edge of a tile inside the canvas.

    The decoder saw zeros beyond such an edge, not the neighbouring cells. So the outer sixth of the fade has almost no weight.
    """
    total = tiles.new_zeros((*tiles.shape[1:-2], *grid.size))
    norm = tiles.new_zeros(grid.size)
    for i, tile in enumerate(tiles):
        weight = tiles.new_ones(grid.window)
        for axis, (origin, window, size) in enumerate(zip(grid.origins[i], grid.window, grid.size, strict=True)):
            rise = ((torch.arange(window, device=tiles.device) + 0.5) / fade - 1 / 6).mul(1.5).clamp(1e-6, 1)
            shape = (-1, 1) if axis == 0 else (1, -1)
            if origin > 0 or grid.wrap[axis]:
                weight = weight * rise.view(shape)
            if origin + window < size or grid.wrap[axis]:
                weight = weight * rise.flip(0).view(shape)
        for at, of in grid.pieces(i):
            total[at] += (tile * weight)[of]
            norm[at] += weight[of]
    return total / norm
