"""Between a whole canvas and its picture: in one piece or in tiles, which the ranks share when they decode."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from panokit.denoiser import Codec
from panokit.fuser import WeightedFuser
from panokit.grid import Grid
from panokit.runtime import Runtime
from panokit.scheduler import CLEAN, Level
from panokit.windows import Windows, divided

WHOLE = 128 * 256
"""The most cells of a canvas that is decoded in one piece: 1024 x 2048 pixels at factor 8, which takes some gigabytes."""
TILE, OVERLAP = 128, 24
"""The most cells along a side of a tile, and cells that two neighbouring tiles share."""
PAD = 16
"""Cells that are repeated at both ends of a wrapped axis."""
_STRIP = 8
"""Cells of the height of a strip."""
FACTOR = 8
"""The factor that these numbers are for. Above it they are divided, so that as many pixels remain."""


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
    if height * width <= WHOLE // _coarser(codec) ** 2:
        return _whole(codec, canvas, wrap)
    tiles = _tiles((height, width), wrap, codec)
    pixels = tiles.refined(codec.factor)
    (rows,) = runtime.map(
        lambda index: (codec.decode(tiles.crop(canvas, index)),), len(tiles), [(3, *pixels.window)], micro_batch=1
    )
    return _Fade(_shared_cells(codec) * codec.factor).fuse(rows, pixels, CLEAN)


def strips(
    codec: Codec, canvas: Float[Tensor, "c h w"], wrap: tuple[bool, ...], runtime: Runtime
) -> Iterator[Float[Tensor, "3 h W"]]:
    """Decode a canvas from top to bottom, in strips of its whole width. Each is made when it is asked for, by all ranks.

    Args:
        codec: decodes latents.
        canvas: the latents, `c h w`.
        wrap: for each axis, whether the canvas is a ring along it.
        runtime: deals the work out to ranks.

    Yields:
        The strips of the picture, `3 h W`, in about [0, 1].
    """
    height, unit, factor = canvas.shape[1], codec.multiple, codec.factor
    high = -(-_STRIP // unit) * unit
    for top in range(0, height, high):
        bottom = min(top + high, height)
        rows = torch.arange(top - high // 2 // unit * unit, min(bottom + high // 2 // unit * unit, height + high))
        rows = rows % height if wrap[0] else rows[(rows >= 0) & (rows < height)]
        above = top - int(rows[0]) if rows[0] <= top else top - int(rows[0]) + height
        picture = decode(codec, canvas[:, rows], (False, wrap[1]), runtime)
        yield picture[:, above * factor : (above + bottom - top) * factor]


def encode(codec: Codec, picture: Float[Tensor, "3 H W"], wrap: tuple[bool, ...]) -> Float[Tensor, "c h w"]:
    """Encode a picture, without noise. Every rank encodes it, in one piece or in tiles as in `decode`.

    Args:
        codec: encodes pictures.
        picture: `3 H W`, in [0, 1]; height and width are multiples of the codec's factor.
        wrap: for each axis, whether the canvas is a ring along it.

    Returns:
        The latents, `c h w`.
    """
    size = tuple(pixels // codec.factor for pixels in picture.shape[-2:])
    if size[0] * size[1] <= WHOLE // _coarser(codec) ** 2:
        pads = _pads(size, wrap)
        latents = codec.encode(_repeated(picture, [pad * codec.factor for pad in pads]))[0]
        return _without(latents, pads)
    tiles = _tiles(size, wrap, codec)
    pixels = tiles.refined(codec.factor)
    rows = torch.cat([codec.encode(pixels.crop(picture, [i])) for i in range(len(tiles))])
    return _Fade(_shared_cells(codec)).fuse(rows, tiles, CLEAN)


def _coarser(codec: Codec) -> int:
    """How many times larger a cell is than one of `FACTOR` pixels; 1 for smaller ones."""
    return max(1, codec.factor // FACTOR)


def _shared_cells(codec: Codec) -> int:
    """Cells that two neighbouring tiles share."""
    return OVERLAP // _coarser(codec)


def _tiles(size: tuple[int, ...], wrap: tuple[bool, ...], codec: Codec) -> Grid:
    """Tiles of one size, as large as allowed, that share cells with their neighbours and begin at the codec's multiples."""
    unit = codec.multiple
    most, shared = (cells // unit // _coarser(codec) for cells in (TILE, OVERLAP))
    whole, windows, strides = divided(size, unit, "the canvas"), [], []
    for cells, ring in zip(whole, wrap, strict=True):
        rest = cells if ring else max(1, cells - shared)
        count = max(2 if ring else 1, -(-rest // (most - shared)))
        stride = -(-rest // count)
        windows.append(min(cells, stride + shared))
        strides.append(stride)
    return Grid(whole, tuple(windows), tuple(strides), wrap).refined(unit)


def _whole(codec: Codec, canvas: Tensor, wrap: tuple[bool, ...]) -> Tensor:
    """The picture in one piece."""
    pads = _pads(canvas.shape[-2:], wrap)
    return _without(codec.decode(_repeated(canvas, pads))[0], [pad * codec.factor for pad in pads])


def _pads(size: Sequence[int], wrap: tuple[bool, ...]) -> list[int]:
    """Cells to repeat at both ends of each axis. A network pads with zeros, and a ring has no end where they belong."""
    return [min(PAD, cells) if ring else 0 for cells, ring in zip(size, wrap, strict=True)]


def _repeated(canvas: Tensor, pads: Sequence[int]) -> Tensor:
    """A batch of one canvas, or picture, with the other end repeated at both ends of each axis."""
    high, wide = pads
    return nn.functional.pad(canvas[None], (wide, wide, high, high), mode="circular")


def _without(canvas: Tensor, pads: Sequence[int]) -> Tensor:
    """A canvas, or picture, without what was repeated."""
    (high, wide), (height, width) = pads, canvas.shape[-2:]
    return canvas[..., high : height - high, wide : width - wide]


@final
@dataclass(frozen=True)
class _Fade(WeightedFuser):
    """Fades neighbouring tiles into each other, over `pixels` towards each edge of a tile.

    At an edge inside the canvas the decoder saw zeros, not the neighbouring cells. So the outer sixth of the fade has almost no
    weight. At the border of the canvas there is one tile alone, whose weight then does not count.
    """

    constant: ClassVar[bool] = False  # a picture's total weight is as large as the picture: it is not kept
    pixels: int

    def weight(self, windows: Windows, level: Level) -> Float[Tensor, "1 *window"]:
        weight = torch.ones(1, *windows.window)
        for axis, cells in enumerate(windows.window):
            rise = ((torch.arange(cells) + 0.5) / self.pixels - 1 / 6).mul(1.5).clamp(1e-6, 1)
            weight = weight * torch.minimum(rise, rise.flip(0)).view(-1, *(1,) * (len(windows.window) - axis - 1))
        return weight
