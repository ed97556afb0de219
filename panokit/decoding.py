"""From a whole canvas to its picture: in one piece, or in tiles that the ranks share."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from panokit.denoiser import Codec
from panokit.fuser import WeightedFuser
from panokit.grid import Grid
from panokit.runtime import Runtime

WHOLE = 128 * 256
"""Cells of a canvas up to which it is decoded in one piece: 1024 x 2048 pixels at factor 8, some gigabytes."""
TILE, OVERLAP = 128, 24
"""Cells along a side of a tile, and of what two tiles share."""
PAD = 16
"""Cells by which a wrapped axis is continued on both sides."""


def decode(codec: Codec, canvas: Float[Tensor, "c h w"], wrap: tuple[bool, ...], runtime: Runtime) -> Float[Tensor, "3 H W"]:
    """The picture of a canvas, the same for any number of ranks, without a seam where it wraps round.

    Up to `WHOLE` cells it is decoded at once, on every rank: a decoder's norms and attention see all of it. Larger ones are
    decoded in tiles that fade into each other over `OVERLAP` cells, and go round the join of a wrapped axis.
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
    return _Feathered(OVERLAP * codec.factor).fuse(tiles, pixels)


def _whole(codec: Codec, canvas: Tensor, wrap: tuple[bool, ...]) -> Tensor:
    """The picture in one piece; a decoder pads with zeros, so a wrapped axis is continued, decoded, and cropped."""
    pads = [min(PAD, size) if ring else 0 for size, ring in zip(canvas.shape[-2:], wrap, strict=True)]
    ring = nn.functional.pad(canvas[None], (pads[1], pads[1], pads[0], pads[0]), mode="circular")
    image = codec.decode(ring)[0]
    top, left = (p * codec.factor for p in pads)
    height, width = (size * codec.factor for size in canvas.shape[-2:])
    return image[:, top : top + height, left : left + width]


@final
@dataclass(frozen=True)
class _Feathered(WeightedFuser):
    """Tiles that fade towards their borders, where a decoder has seen zeros in the place of what lies beyond.

    Over `fade` pixels from an edge the weight rises from next to nothing to 1; but the outer sixth of them counts for nothing
    wherever another tile has more to say.
    """

    fade: int

    def weight(self, grid: Grid) -> Float[Tensor, "*window"]:
        weight = torch.ones(grid.window)
        for axis, (cells, size) in enumerate(zip(grid.window, grid.size, strict=True)):
            if cells == size and not grid.wrap[axis]:
                continue  # no other tile is there to take over
            inwards = torch.minimum(torch.arange(cells), torch.arange(cells).flip(0)) + 0.5
            rise = ((inwards / self.fade - 1 / 6) * 1.5).clamp(1e-6, 1)
            weight = weight * rise.view(-1, *(1,) * (len(grid.window) - axis - 1))
        return weight
