"""Previews: what a canvas will look like. A linear map of the latents takes the place of the decoder."""

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor, nn

from panokit.denoiser import Codec
from panokit.windows import Projected, Windows

_SIDE, _FIELDS = 32, 8
"""Cells along a side of the random latents that the map is fitted to, and how many there are."""


def preview(codec: Codec | None, x0: Float[Tensor, "*c_size"], windows: Windows | None = None) -> Float[Tensor, "3 *cells"]:
    r"""A small picture or film of latents, $A x_0 + b$ at each cell.

    The map is fitted by least squares, once for each codec. Its targets are decoded pictures of smooth random latents, averaged
    over the pixels of a cell.

    Args:
        codec: decodes the latents; None where the canvas is the picture.
        x0: the clean estimate of the canvas.
        windows: windows of the canvas, if it may be no plane.

    Returns:
        The picture, `3 h w`, in [0, 1], one pixel for each cell; of a film, `3 t h w`, one frame for each latent frame.
    """
    small = x0
    if codec is not None:
        weight, bias = _linear(codec, x0.shape[0], x0.device, x0.dtype)
        small = torch.einsum("oc,c...->o...", weight, x0) + bias.view(-1, *(1,) * (x0.ndim - 1))
    if isinstance(windows, Projected):
        small = windows.project(windows.crop(small), windows.picture)
    return small.clamp(0, 1)


@lru_cache(maxsize=4)
@torch.no_grad()
def _linear(codec: Codec, channels: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The matrix A and the vector b."""
    generator = torch.Generator().manual_seed(0)
    fields = [
        nn.functional.interpolate(torch.randn(1, channels, side, side, generator=generator), size=_SIDE, mode="bicubic")
        for side in (2, 4, 8, 16) * (_FIELDS // 4)
    ]
    latents = torch.cat([field / field.std() for field in fields]).to(device, dtype)
    pictures = nn.functional.avg_pool2d(torch.cat([codec.decode(field[None]) for field in latents]), codec.factor)
    inputs, targets = (batch.movedim(1, -1).flatten(0, 2).cpu().double() for batch in (latents, pictures))
    ones = torch.ones(len(inputs), 1, dtype=inputs.dtype)
    solution = torch.linalg.lstsq(torch.cat([inputs, ones], dim=1), targets).solution
    return solution[:-1].T.to(device, dtype), solution[-1].to(device, dtype)
