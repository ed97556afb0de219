"""Between a whole canvas and its picture: in one piece or in tiles, which the ranks share when they decode.

A picture in tiles agrees with that of the whole canvas. The coarse stages of the decoder, with its attention, compute the whole
canvas. The others compute tiles, each with as many neighbouring cells as they read. Their norms use statistics of the whole
canvas, which are estimated on a sample of small tiles.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from panokit.canvas_statistics import CanvasStatistics
from panokit.denoiser import Codec, Stage
from panokit.errors import OutOfMemoryError, SettingError, ShardingWarning, reason_of
from panokit.fuser import WeightedFuser
from panokit.grid import Grid
from panokit.memory import ADVICE, is_out_of_memory, memory_explained
from panokit.rings import Ring, circular
from panokit.runtime import Runtime
from panokit.runtime.offload import HOST
from panokit.scheduler import CLEAN, Level
from panokit.tiles import Box, Chain, Span, sample, shares
from panokit.windows import Windows, divided

WHOLE = 128 * 256
"""The most cells of a canvas that is decoded in one piece: 1024 x 2048 pixels at factor 8, which takes some gigabytes."""
TILE = 48
"""The most cells along a side of a tile, of a decoder in stages. What it computes takes about a gigabyte."""
APART = 96
"""The same of a decoder that is not known in stages. All of its stages compute the cells around a tile, too."""
OVERLAP = 12
"""Cells around a tile that a decoder reads which is not known in stages. Over two thirds of them tiles fade."""
FEATURES = 1 << 18
"""The most cells of a canvas whose coarse stages are computed in one piece: 2048 x 8192 pixels, half a gigabyte."""
SAMPLE, SIDE, AROUND = 128, 4, 2
"""The tiles on which statistics are measured, cells along their sides, and cells around them."""
PAD = 16
"""Cells that are repeated at both ends of a wrapped axis of a canvas that is decoded in one piece, if its codec needs them."""
FACTOR = 8
"""The factor that these numbers are for. Above it they are divided, so that as many pixels remain."""


def decode(codec: Codec, canvas: Float[Tensor, "c h w"], wrap: tuple[bool, ...], runtime: Runtime) -> Float[Tensor, "3 H W"]:
    """Decode a canvas: the strips of `strips`, joined.

    Args:
        codec: decodes latents.
        canvas: the latents, `c h w`.
        wrap: for each axis, whether the canvas is a ring along it.
        runtime: deals the tiles out to ranks.

    Returns:
        The picture, `3 H W`, in about [0, 1].
    """
    height, width = (cells * codec.factor for cells in canvas.shape[-2:])
    picture, top = canvas.new_empty(3, height, width), 0
    for strip in strips(codec, canvas, wrap, runtime):
        picture[:, top : top + strip.shape[1]] = strip
        top += strip.shape[1]
    return picture


@torch.no_grad()
def strips(
    codec: Codec, canvas: Float[Tensor, "c h w"], wrap: tuple[bool, ...], runtime: Runtime
) -> Iterator[Float[Tensor, "3 h W"]]:
    """Decode a canvas from top to bottom, in strips of full width. Each is made when it is asked for.

    The picture is the same for any number of ranks, and has no seam where the canvas is a ring. All ranks must ask for all
    strips.

    A canvas of up to `WHOLE` cells is decoded in one piece, which is one strip; if the runtime has a size of tiles, a canvas of
    one tile is. The ranks share a larger canvas in tiles, and one that does not fit the memory in one piece.

    Args:
        codec: decodes latents.
        canvas: the latents, `c h w`.
        wrap: for each axis, whether the canvas is a ring along it.
        runtime: deals the tiles out to ranks, and has the settings of tiles.

    Yields:
        The parts of the picture, `3 h W`, in about [0, 1].

    Raises:
        SettingError: the settings of tiles do not suit the codec.
        OutOfMemoryError: the smallest tile does not fit the memory.
    """
    height, width = size = canvas.shape[-2], canvas.shape[-1]
    most = (runtime.tile or 0) // codec.factor
    if max(size) <= most if most else height * width <= WHOLE // coarser(codec) ** 2:
        try:
            picture = _in_one_piece(codec, canvas, wrap, runtime)
        except OutOfMemoryError as error:
            reason = reason_of(error)
        else:
            yield picture.to(canvas)
            return
        if runtime.global_rank == 0:
            message = (
                f"the picture does not fit the memory in one piece ({reason}), so it is decoded in tiles: set tile=384, their "
                "side in pixels, to avoid the failed attempt"
            )
            warnings.warn(message, ShardingWarning, stacklevel=2)
    for strip in _Tiles(codec, canvas, wrap, runtime, Tiling.of(codec, runtime, size)).strips():
        yield strip.to(canvas)


def encode(codec: Codec, picture: Float[Tensor, "3 H W"], wrap: tuple[bool, ...]) -> Float[Tensor, "c h w"]:
    """Encode a picture, without noise. Every rank encodes it.

    A picture of up to `WHOLE` cells is encoded in one piece. A larger one is encoded in tiles that fade into each other. Each
    tile has statistics of its own.

    Args:
        codec: encodes pictures.
        picture: `3 H W`, in [0, 1]; height and width are multiples of the codec's factor.
        wrap: for each axis, whether the canvas is a ring along it.

    Returns:
        The latents, `c h w`.
    """
    size = tuple(pixels // codec.factor for pixels in picture.shape[-2:])
    if size[0] * size[1] <= WHOLE // coarser(codec) ** 2:
        return joined(codec, picture[None], wrap, codec.encode, codec.factor, 1)[0]
    fade = 2 * (OVERLAP // coarser(codec))
    tiles = even_grid(size, (APART // coarser(codec),) * 2, fade, wrap, codec.multiple)
    pixels = tiles.refined(codec.factor)
    rows = torch.cat([codec.encode(pixels.crop(picture, [i])) for i in range(len(tiles))])
    return Fade(fade).fuse(rows, tiles, CLEAN)


def require_tiles(codec: Codec, runtime: Runtime, size: tuple[int, ...]) -> None:
    """Check that the settings of tiles suit a codec, before a picture is made.

    Args:
        codec: decodes the picture.
        runtime: has the settings.
        size: cells of the canvas.

    Raises:
        SettingError: they do not.
    """
    if runtime.tile is not None or runtime.tile_overlap is not None:
        Tiling.of(codec, runtime, size)


@final
@dataclass(frozen=True)
class Tiling:
    """How a canvas is decoded in tiles. All numbers are cells.

    Attributes:
        stages: the decoder in stages; one stage if it is not known in more.
        tile: the most cells along a side of a tile.
        around: cells that are computed around a tile.
        fade: of these, the cells over which neighbouring tiles fade into each other.
        coarse: how many stages compute the whole canvas before there are tiles.
    """

    stages: Sequence[Stage]
    tile: int
    around: int
    fade: int
    coarse: int

    @classmethod
    def of(cls, codec: Codec, runtime: Runtime, size: tuple[int, ...], *, whole: bool = True) -> "Tiling":
        """The tiles of a canvas.

        Args:
            codec: decodes it.
            runtime: has the settings of tiles, in pixels.
            size: cells of the canvas.
            whole: whether the coarse stages of up to `FEATURES` cells are computed in one piece.

        Raises:
            SettingError: they are no multiples of what the codec needs, or a tile is smaller than twice its overlap.
        """
        unit = codec.factor * codec.multiple
        for name, pixels in (("tile", runtime.tile), ("tile_overlap", runtime.tile_overlap)):
            if pixels is not None and pixels % unit:
                near = max(unit, round(pixels / unit) * unit)
                raise SettingError(f"{name} is {pixels} pixels: this model needs a multiple of {unit}; the nearest is {near}")
        stages, chosen = codec.stages(), None if runtime.tile_overlap is None else runtime.tile_overlap // codec.factor
        usual = TILE if stages else APART
        coarse = _coarse(stages)
        if not whole or size[0] * size[1] * _scale(stages[:coarse]) ** 2 > FEATURES:
            coarse = 0
        if stages:
            chain = Chain(stages[coarse:], size, (False, False), scale=_scale(stages[:coarse]), multiple=codec.multiple)
            needed, fade = chain.around, 0
            around = needed if chosen is None else min(chosen, needed)
            if runtime.tile and not whole:  # what was asked for before the memory was known must do
                around = min(around, runtime.tile // codec.factor // 2 // codec.multiple * codec.multiple)
        else:
            around = _rounded(OVERLAP // coarser(codec), codec.multiple) if chosen is None else chosen
            fade = around * 2 // 3 // codec.multiple * codec.multiple
            stages = (Stage(codec.decode, around - fade, codec.factor),)
        least = _rounded(2 * around, codec.multiple)
        if runtime.tile:
            tile = runtime.tile // codec.factor
        else:
            tile = _rounded(usual // coarser(codec), codec.multiple)
            tile = tile if runtime.tile_overlap else max(tile, least)
        if tile < least:
            half = tile // 2 // codec.multiple * unit
            raise SettingError(
                f"tile is {tile * codec.factor} pixels, smaller than twice its overlap of {around * codec.factor}: make tile "
                f"{least * codec.factor} or larger" + (f", or tile_overlap {half} or smaller" if half else "")
            )
        return cls(stages, tile, around, fade, coarse)


@final
class _Tiles:
    """The tiles of one canvas.

    Args:
        codec: decodes latents.
        canvas: the latents, `c h w`.
        wrap: for each axis, whether the canvas is a ring along it.
        runtime: deals the tiles out to ranks.
        tiling: their size.
    """

    def __init__(self, codec: Codec, canvas: Tensor, wrap: tuple[bool, ...], runtime: Runtime, tiling: Tiling) -> None:
        self._codec, self._canvas, self._wrap, self._runtime, self._tiling = codec, canvas, wrap, runtime, tiling
        self._size, self._source = (canvas.shape[-2], canvas.shape[-1]), canvas
        if tiling.coarse:
            try:
                self._source = runtime.barrier(self._coarse)
            except OutOfMemoryError as error:  # tiles then pass through all stages
                reason = reason_of(error)
                self._tiling = Tiling.of(codec, runtime, self._size, whole=False)
                if canvas.is_cuda:
                    torch.cuda.empty_cache()
                if runtime.global_rank == 0:
                    message = (
                        f"the coarse part of the decoder does not fit the memory for the whole canvas ({reason}), so it is "
                        "computed in tiles, which takes more time and is a little less exact"
                    )
                    warnings.warn(message, ShardingWarning, stacklevel=2)
        stages, coarse, self._most = self._tiling.stages, self._tiling.coarse, self._tiling.tile
        self._chain = Chain(
            stages[coarse:], self._size, wrap, coarse, _scale(stages[:coarse]), codec.multiple, self._tiling.around
        )
        self._statistics = runtime.broadcast(lambda: self._measured().to(HOST)).to(canvas.device)

    def strips(self) -> Iterator[Tensor]:
        """The picture, from top to bottom."""
        tiling, factor = self._tiling, self._codec.factor
        rows = self._rows()
        last, (height, _) = rows[-1], self._size
        carry = self._row(last)[:, (height - last.start) * factor :] if last.stop > height else None
        for k, row in enumerate(rows):
            picture = self._row(row)
            if carry is not None:
                _blend(picture, carry)
            end = (rows[k + 1].start if k + 1 < len(rows) else height) - row.start
            yield picture[:, : end * factor]
            carry = picture[:, end * factor :].clone() if tiling.fade else None

    def _rows(self) -> list[Span]:
        """The rows of tiles. With a fade, each begins within the one before it."""
        shared, unit, (height, _) = 2 * self._tiling.fade, self._codec.multiple, self._size
        grid = even_grid((height, unit), (self._tiling.tile, unit), shared, (self._wrap[0], False), unit)
        if shared:
            return [Span(top, top + grid.window[0]) for top, _ in grid.origins]
        return [Span(*edges) for edges in pairwise([*range(0, height, grid.stride[0]), height])]

    def _row(self, row: Span) -> Tensor:
        """A row of tiles, `3 h W` in pixels."""
        tiling, factor = self._tiling, self._codec.factor
        shared, size = 2 * tiling.fade, (row.length, self._size[1])
        grid = even_grid(size, (row.length, tiling.tile), shared, (False, self._wrap[1]), self._codec.multiple)
        boxes = [(row, Span(left, left + grid.window[1])) for _, left in grid.origins]
        pixels = grid.refined(factor)
        (tiles,) = self._runtime.map(
            lambda index: (self._tile(boxes[index[0]])[None],), len(boxes), [(3, *pixels.window)], micro_batch=1
        )
        return Fade(shared * factor).fuse(tiles, pixels, CLEAN)

    def _tile(self, box: Box) -> Tensor:
        """A tile, `3 h w` in pixels, in as many parts as fit the memory."""
        tiling, device = self._tiling, self._runtime.device
        while True:
            shared = 2 * tiling.fade
            grid = even_grid([span.length for span in box], (self._most,) * 2, shared, (False, False), self._codec.multiple)
            try:
                parts = [
                    self._chain.compute(self._source, [_part(box, origin, grid.window)], self._statistics)
                    for origin in grid.origins
                ]
                if len(parts) == 1:
                    return parts[0][0]
                return Fade(shared * self._codec.factor).fuse(torch.cat(parts), grid.refined(self._codec.factor), CLEAN)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                reason = reason_of(error)
            most, unit = min(self._most, max(span.length for span in box)), self._codec.multiple
            side, self._most = most * self._codec.factor, most // 2 // unit * unit
            if self._most < max(unit, 2 * tiling.around):
                raise OutOfMemoryError(f"a tile of {side} pixels does not fit the memory of {device} ({reason}): {ADVICE}")
            if device.type == "cuda":
                torch.cuda.empty_cache()
            message = (
                f"a tile of {side} pixels does not fit the memory of {device}, so from here on tiles have "
                f"{self._most * self._codec.factor}: set tile={self._most * self._codec.factor} to avoid the failed attempt"
            )
            warnings.warn(message, ShardingWarning, stacklevel=2)

    @memory_explained("the coarse part of the picture")
    def _coarse(self) -> Tensor:
        """What the coarse stages make of the whole canvas."""
        chain = Chain(self._tiling.stages[: self._tiling.coarse], self._size, self._wrap, multiple=self._codec.multiple)
        return chain.compute(self._canvas, [_all(self._size)], CanvasStatistics(), [1.0])[0]

    @memory_explained("a sample of the picture")
    def _measured(self) -> CanvasStatistics:
        """What the stages of tiles take from the whole canvas, measured on a sample."""
        unit, by = self._codec.multiple, coarser(self._codec)
        stages = self._codec.stages()
        free = _coarse(stages) - self._tiling.coarse
        chain = replace(self._chain, most=AROUND, free=free)
        side = _rounded(max(1, SIDE // by), unit)
        statistics, count = CanvasStatistics(), SAMPLE
        chain.compute(self._source, sample(self._size, side, 1)[:1], statistics, [1.0])
        while any(statistics.values.values()):  # else the stages take nothing from it
            boxes = sample(self._size, side, count)
            try:
                chain.compute(self._source, boxes, statistics, shares(self._canvas, boxes))
                break
            except Exception as error:
                if not is_out_of_memory(error) or count < 4:
                    raise
            count //= 2
        return statistics


def coarser(codec: Codec) -> int:
    """How many times larger a cell is than one of `FACTOR` pixels; 1 for smaller ones."""
    return max(1, codec.factor // FACTOR)


def _coarse(stages: Sequence[Stage]) -> int:
    """How many stages compute the whole canvas: those up to the last attention, and before the cells become finer."""
    count = max((k + 1 for k, stage in enumerate(stages) if stage.attends), default=0)
    while count < len(stages) - 1 and stages[count].factor == 1:
        count += 1
    return min(count, max(0, len(stages) - 1))


def _scale(stages: Sequence[Stage]) -> int:
    """Cells after some stages along a side of a cell before them."""
    return prod(stage.factor for stage in stages)


def _rounded(cells: int, unit: int) -> int:
    """The next multiple of a unit."""
    return -(-cells // unit) * unit


def even_grid(size: Sequence[int], most: Sequence[int], shared: int, wrap: tuple[bool, ...], unit: int) -> Grid:
    """Tiles of one size, which share cells with their neighbours and begin at multiples of a unit.

    Args:
        size: cells of the canvas.
        most: the most cells from one tile to the next.
        shared: cells that two neighbours share.
        wrap: for each axis, whether the canvas is a ring along it.
        unit: sizes and distances are multiples of so many cells.
    """
    shared, windows, strides = shared // unit, [], []
    whole = divided(tuple(size), unit, "the canvas")
    for cells, limit, ring in zip(whole, most, wrap, strict=True):
        rest = cells if ring else max(1, cells - shared)
        count = max(2 if ring and shared else 1, -(-rest // max(1, limit // unit)))
        stride = -(-rest // count)
        windows.append(min(cells, stride + shared))
        strides.append(stride)
    return Grid(whole, tuple(windows), tuple(strides), wrap).refined(unit)


def _part(box: Box, origin: Sequence[int], window: Sequence[int]) -> Box:
    """A part of a tile."""
    rows, columns = (
        Span(span.start + first, span.start + first + cells) for span, first, cells in zip(box, origin, window, strict=True)
    )
    return rows, columns


def _blend(picture: Tensor, before: Tensor) -> None:
    """Fade the first rows of a picture, which is changed, from those of the picture above it."""
    count = before.shape[1]
    weight = ((torch.arange(count, device=picture.device) + 0.5) / count).view(-1, 1).to(picture)
    picture[:, :count] = before.lerp(picture[:, :count], weight)


def _in_one_piece(codec: Codec, canvas: Tensor, wrap: tuple[bool, ...], runtime: Runtime) -> Tensor:
    """The picture in one piece, which one rank decodes. So all ranks have it, or know that it does not fit the memory."""

    def rows(index: Sequence[int]) -> tuple[Tensor, ...]:
        try:
            return (joined(codec, canvas[None], wrap, codec.decode, 1, codec.factor),)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(reason_of(error)) from None

    (pictures,) = runtime.map(rows, 1, [(3, *(cells * codec.factor for cells in canvas.shape[-2:]))], micro_batch=1)
    return pictures[0]


def _all(size: Sequence[int]) -> Box:
    return Span(0, size[0]), Span(0, size[1])


def joined(
    codec: Codec,
    x: Float[Tensor, "1 *came"],
    rings: Sequence[bool],
    compute: Callable[[Tensor], Tensor],
    pixels: int,
    becomes: int,
) -> Float[Tensor, "1 *made"]:
    """Decode or encode a picture or a film in one piece, so that its ends meet where it is a ring.

    The convolutions of a codec that knows rings go around. For others the other end is repeated at both ends.

    Args:
        codec: decodes or encodes.
        x: a batch of one. Its last two axes are height and width.
        rings: whether it is a ring along them.
        compute: decodes or encodes a batch.
        pixels: how many along a side are a cell in `x`: 1 of latents, and the codec's factor of pictures.
        becomes: the same of the result.
    """
    size = [side // pixels for side in x.shape[-2:]]
    if codec.rings:
        with circular(Ring.along(size, rings)):
            return compute(x)
    pads = [min(PAD, cells) if ring else 0 for cells, ring in zip(size, rings, strict=True)]
    return _without(compute(_repeated(x, [pad * pixels for pad in pads])), [pad * becomes for pad in pads])


def _repeated(x: Tensor, pads: Sequence[int]) -> Tensor:
    """Pictures or films with the other end repeated at both ends of height and width."""
    high, wide = pads
    rows = nn.functional.pad(x.flatten(1, -3), (wide, wide, high, high), mode="circular")
    return rows.reshape(*x.shape[:-2], *rows.shape[-2:])


def _without(x: Tensor, pads: Sequence[int]) -> Tensor:
    """Pictures or films without what was repeated."""
    (high, wide), (height, width) = pads, x.shape[-2:]
    return x[..., high : height - high, wide : width - wide]


@final
@dataclass(frozen=True)
class Fade(WeightedFuser):
    """Fades neighbouring tiles into each other, over `pixels` towards each edge of a tile; 0 if they end at the edge.

    The outer sixth of the fade has almost no weight: there a network may have seen zeros, not the neighbouring cells. At the
    border of the canvas there is one tile alone, whose weight then does not count.
    """

    constant: ClassVar[bool] = False  # a picture's total weight is as large as the picture: it is not kept
    pixels: int

    def weight(self, windows: Windows, level: Level) -> Float[Tensor, "1 *window"]:
        weight = torch.ones(1, *windows.window)
        for axis, cells in enumerate(windows.window if self.pixels else ()):
            rise = ((torch.arange(cells) + 0.5) / self.pixels - 1 / 6).mul(1.5).clamp(1e-6, 1)
            weight = weight * torch.minimum(rise, rise.flip(0)).view(-1, *(1,) * (len(windows.window) - axis - 1))
        return weight
