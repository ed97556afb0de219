"""From a finished canvas to that of a larger picture: decoded, enlarged and encoded, in tiles where the picture is large.

A picture has many times the numbers of its canvas: 48 times with 4 channels and cells of 8 x 8 pixels. So a large one is never
whole in the memory.
"""

from jaxtyping import Float
from torch import Tensor

from panokit.decoding import Fade, even_grid
from panokit.denoiser import Codec
from panokit.enlarging import enlarged
from panokit.errors import SettingError
from panokit.footage import decode, decoded, encode, encoded
from panokit.grid import Grid
from panokit.memory import memory_explained
from panokit.projecting import canvas_of, picture_of
from panokit.runtime import Runtime
from panokit.scheduler import CLEAN
from panokit.windows import Factor, Projected, Windows

WHOLE = 1 << 23
"""The most pixels of a larger picture that is made in one piece."""
TILE, SHARED = 1024, 256
"""Pixels along a side of a tile of the larger picture, about, and of those, how many it shares with a neighbour."""


def magnified(
    codec: Codec | None, canvas: Float[Tensor, "*c_small"], windows: Windows, runtime: Runtime, factor: Factor
) -> Float[Tensor, "*c_large"]:
    """The canvas of a picture, or a film, that is `factor` times as large. Neighbouring tiles fade into each other.

    Args:
        codec: decodes and encodes; None where the canvas is the picture.
        canvas: the finished canvas.
        windows: windows of the canvas; of a plane, windows of any canvas of its scene.
        runtime: deals the tiles out to ranks.
        factor: how many times larger the picture becomes along its height and width.

    Raises:
        SettingError: there are several factors, and they are not one for height and width, and 1 for time.
    """
    wrap = windows.wrap
    by, rings, size = _in_space(factor, len(windows.window)), wrap[-2:], (canvas.shape[-2], canvas.shape[-1])
    if isinstance(windows, Projected):
        larger = windows.on(tuple(cells * by**2 for cells in windows.size))
        pixels = codec.factor if codec else 1
        size = larger.picture[0] * pixels, larger.picture[1] * pixels
        return canvas_of(codec, picture_of(codec, canvas, windows, runtime, size).clamp_(0, 1), larger)
    if codec is None:
        return enlarged(canvas, rings, by)
    loop, frames = len(wrap) == 3 and wrap[0], canvas.shape[1] * codec.time if canvas.ndim == 4 else 1
    if size[0] * size[1] * (codec.factor * by) ** 2 * frames <= WHOLE:
        return encode(codec, enlarged(decode(codec, canvas, wrap, runtime), rings, by).clamp_(0, 1), wrap)
    tiles = _tiles(size, rings, codec, by)
    large = tiles.refined(by)

    def one(index: list[int]) -> tuple[Tensor]:
        with memory_explained("a tile of the larger picture"):
            picture = enlarged(decoded(codec, tiles.crop(canvas, index), loop), (False, False), by)
            return (encoded(codec, picture.clamp_(0, 1), loop).to(canvas),)

    (rows,) = runtime.map(one, len(tiles), [(*canvas.shape[:-2], *large.window)], micro_batch=1)
    return Fade(SHARED // codec.factor).fuse(rows, large, CLEAN)


def _in_space(factor: Factor, axes: int) -> int:
    """The factor of height and width."""
    if isinstance(factor, int):
        return factor
    if len(factor) != axes or any(by != 1 for by in factor[:-2]) or len(set(factor[-2:])) > 1:
        raise SettingError(f"a picture cannot become larger by {factor}: give one factor for height and width, and 1 for time")
    return factor[-1]


def _tiles(size: tuple[int, int], wrap: tuple[bool, ...], codec: Codec, factor: int) -> Grid:
    """Tiles of one size on the smaller canvas, which begin at the codec's multiples."""
    unit = codec.multiple
    most, shared = (max(1, pixels // (codec.factor * factor * unit)) for pixels in (TILE, SHARED))
    return even_grid(size, (max(1, most - shared) * unit,) * 2, shared * unit, wrap, unit)
