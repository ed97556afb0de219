"""Between a canvas and its picture, whatever the canvas is: a plane, or one whose picture is a projection of it."""

import torch
from jaxtyping import Float
from torch import Tensor

from panokit.denoiser import Codec
from panokit.footage import decode, encode
from panokit.memory import memory_explained
from panokit.runtime import Runtime
from panokit.windows import Projected, Windows


@torch.no_grad()
def picture_of(
    codec: Codec | None,
    canvas: Float[Tensor, "*c_size"],
    windows: Windows,
    runtime: Runtime,
    size: tuple[int, int] | None = None,
) -> Float[Tensor, "*c_pixels"]:
    """Decode a canvas.

    A plane is decoded as a whole, or in tiles. Of other canvases each window is decoded, and what the windows show is laid onto
    the picture. The ranks share the windows.

    Args:
        codec: decodes latents; None where the canvas is the picture.
        canvas: the clean canvas, `c *size`.
        windows: windows of the canvas; of a plane, windows of any canvas of its scene.
        runtime: deals windows, or tiles, out to ranks.
        size: height and width of the picture in pixels, for a canvas that is no plane; None for those of its `picture`.

    Returns:
        The picture, `3 H W`, in about [0, 1]; a plane without a codec as it is.
    """
    if not isinstance(windows, Projected):
        return decode(codec, canvas, windows.wrap, runtime) if codec else canvas
    pixels = codec.factor if codec else 1

    def views(index: list[int]) -> tuple[Tensor]:
        crops = windows.crop(canvas, index)
        with memory_explained("the view of a window"):
            return (codec.decode(crops).to(crops) if codec else crops,)

    shape = (3 if codec else canvas.shape[0], windows.window[0] * pixels, windows.window[1] * pixels)
    (rows,) = runtime.map(views, len(windows), [shape], micro_batch=1)
    return windows.project(rows, size or (windows.picture[0] * pixels, windows.picture[1] * pixels))


@torch.no_grad()
def canvas_of(codec: Codec | None, picture: Float[Tensor, "*c_pixels"], windows: Windows) -> Float[Tensor, "*c_size"]:
    """Encode a picture, without noise. Every rank encodes it.

    Args:
        codec: encodes pictures; None where the canvas is the picture.
        picture: `3 H W`, in [0, 1].
        windows: windows of the canvas; of a plane, windows of any canvas of its scene.

    Returns:
        The clean canvas, `c *size`. On a canvas that is no plane, a cell is the mean of the windows that hold it.
    """
    if not isinstance(windows, Projected):
        return encode(codec, picture, windows.wrap) if codec else picture
    views = windows.views(picture, codec.factor if codec else 1)
    rows = torch.cat([codec.encode(view[None]) for view in views]) if codec else views
    canvas, count = (rows.new_zeros(channels, *windows.size) for channels in (rows.shape[1], 1))
    for i, row in enumerate(rows):
        windows.put(canvas, i, row)
        windows.put(count, i, torch.ones_like(row[:1]))
    return canvas / count
