"""Between a canvas and its picture or film. `decoding` has pictures; films are decoded here, in whole or in tiles of space.

A tile holds all frames: a causal autoencoder goes through them one after the other, so their number takes little memory but
that of the film itself. Where the film is a loop, its last frames are decoded once more, before the first.
"""

import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from panokit import decoding
from panokit.decoding import APART, OVERLAP, WHOLE, Fade, coarser, even_grid, joined
from panokit.denoiser import Codec
from panokit.errors import OutOfMemoryError, ShardingWarning, reason_of
from panokit.grid import Grid
from panokit.memory import memory_explained
from panokit.runtime import Runtime
from panokit.scheduler import CLEAN

PAST = 38
"""Latent frames of a loop that are decoded, or encoded, before its first. A frame of Wan's autoencoders depends on so many."""


def decode(
    codec: Codec, canvas: Float[Tensor, "c *size"], wrap: tuple[bool, ...], runtime: Runtime
) -> Float[Tensor, "3 *pixels"]:
    """Decode a canvas. The ranks share a large one in tiles.

    Args:
        codec: decodes latents.
        canvas: the latents, `c h w`; of a film, `c t h w`.
        wrap: for each axis, whether the canvas is a ring along it.
        runtime: deals the tiles out to ranks.

    Returns:
        The picture, `3 H W`, in about [0, 1]; or the film, `3 T H W`.
    """
    if canvas.ndim == 3:
        return decoding.decode(codec, canvas, wrap, runtime)
    return _decoded(codec, canvas, wrap, runtime)


def encode(codec: Codec, picture: Float[Tensor, "3 *pixels"], wrap: tuple[bool, ...]) -> Float[Tensor, "c *size"]:
    """Encode a picture or a film, without noise. Every rank encodes it: a large one in tiles that fade into each other.

    Args:
        codec: encodes pictures.
        picture: `3 H W`, or `3 T H W`, in [0, 1]; height, width and frames fit the codec.
        wrap: for each axis, whether the canvas is a ring along it.

    Returns:
        The latents, `c h w`, or `c t h w`.
    """
    if picture.ndim == 3:
        return decoding.encode(codec, picture, wrap)
    loop, *rings = wrap
    high, wide = size = tuple(pixels // codec.factor for pixels in picture.shape[-2:])
    if high * wide <= WHOLE // coarser(codec) ** 2:
        return joined(codec, picture[None], rings, lambda film: encoded(codec, film, loop), codec.factor, 1)[0]
    grid, fade = _tiles(codec, size, tuple(rings), APART, OVERLAP)
    pixels = grid.refined(codec.factor)
    rows = torch.cat([encoded(codec, pixels.crop(picture, [i]), loop) for i in range(len(grid))])
    return Fade(fade).fuse(rows, grid, CLEAN)


def decoded(codec: Codec, latents: Float[Tensor, "n c *window"], loop: bool) -> Float[Tensor, "n 3 *pixels"]:
    """Decode films in one piece.

    Args:
        codec: decodes them.
        latents: `n c t h w`; or of pictures, `n c h w`.
        loop: whether the last frame is followed by the first.

    Returns:
        The films: on a loop they have `codec.time` frames for each latent frame.
    """
    if not loop or latents.ndim == 4:
        return codec.decode(latents)
    return codec.decode(_with_past(latents, PAST))[:, :, 1 + (PAST - 1) * codec.time :]


def encoded(codec: Codec, films: Float[Tensor, "n 3 *pixels"], loop: bool) -> Float[Tensor, "n c *window"]:
    """Encode films in one piece; the inverse of `decoded`."""
    if not loop or films.ndim == 4:
        return codec.encode(films)
    return codec.encode(_with_past(films, 1 + (PAST - 1) * codec.time))[:, :, PAST:]


def frames_of(cells: int, time: int, loop: bool) -> int:
    """Frames of a film.

    Args:
        cells: its latent frames.
        time: frames of a latent frame after the first.
        loop: whether the last frame is followed by the first.
    """
    return cells * time if loop else (cells - 1) * time + 1


def _decoded(codec: Codec, canvas: Tensor, wrap: tuple[bool, ...], runtime: Runtime) -> Tensor:
    """A film, in one piece or in tiles, the same on every rank."""
    loop, *rings = wrap
    frames, size = frames_of(canvas.shape[1], codec.time, loop), (canvas.shape[-2], canvas.shape[-1])
    most, overlap = (pixels and max(1, pixels // codec.factor) for pixels in (runtime.tile, runtime.tile_overlap))
    if size[0] * size[1] <= WHOLE // coarser(codec) ** 2 and (most is None or max(size) <= most):

        def whole(index: Sequence[int]) -> tuple[Tensor, ...]:
            with memory_explained("the film"):
                return (joined(codec, canvas[None], rings, lambda film: decoded(codec, film, loop), 1, codec.factor),)

        try:
            (film,) = runtime.map(whole, 1, [(3, frames, *(cells * codec.factor for cells in size))], micro_batch=1)
            return film[0].to(canvas)
        except OutOfMemoryError as error:
            reason = reason_of(error)
        if runtime.global_rank == 0:
            message = (
                f"the film does not fit the memory in one piece ({reason}), so it is decoded in tiles: set tile=384, their "
                "side in pixels, to avoid the failed attempt"
            )
            warnings.warn(message, ShardingWarning, stacklevel=2)
        most = most or APART // 2
    grid, fade = _tiles(codec, size, tuple(rings), most or APART, OVERLAP if overlap is None else overlap)
    pixels = grid.refined(codec.factor)

    def tile(index: Sequence[int]) -> tuple[Tensor, ...]:
        with memory_explained("a tile of the film"):
            return (decoded(codec, grid.crop(canvas, index), loop),)

    (films,) = runtime.map(tile, len(grid), [(3, frames, *pixels.window)], micro_batch=1)
    return Fade(fade * codec.factor).fuse(films, pixels, CLEAN).to(canvas)


def _tiles(codec: Codec, size: tuple[int, ...], rings: tuple[bool, ...], most: int, overlap: int) -> tuple[Grid, int]:
    """Tiles of a frame, and the cells over which they fade into each other."""
    fade = 2 * (overlap // coarser(codec))
    return even_grid(size, (max(1, most // coarser(codec)),) * 2, fade, rings, codec.multiple), fade


def _with_past(films: Tensor, past: int) -> Tensor:
    """Films, `n c t h w`, with their last frames before the first. A short loop goes round more than once."""
    frames = films.shape[2]
    return films[:, :, torch.arange(-past, frames, device=films.device) % frames]
