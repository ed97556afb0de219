"""What a canvas will look like, without its decoder: latents through a linear map, a pixel a cell."""

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor, nn

from panokit.denoiser import Codec

_SIDE, _FIELDS = 32, 8
"""Cells and number of the random latents that the map is fitted to."""


def preview(codec: Codec | None, x0: Float[Tensor, "c h w"]) -> Float[Tensor, "3 h w"]:
    r"""A picture of latents in [0, 1], a pixel a cell: $A x_0 + b$ at each cell.

    The map is fitted once per codec, by least squares, to what the decoder makes of smooth random latents, averaged over the
    pixels of a cell. Without a codec the canvas is the picture.
    """
    if codec is None:
        return x0.clamp(0, 1)
    weight, bias = _linear(codec, x0.shape[0], x0.device, x0.dtype)
    return (torch.einsum("oc,chw->ohw", weight, x0) + bias[:, None, None]).clamp(0, 1)


@lru_cache(maxsize=4)
@torch.no_grad()
def _linear(codec: Codec, channels: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A and b."""
    generator = torch.Generator().manual_seed(0)
    fields = [
        nn.functional.interpolate(torch.randn(1, channels, side, side, generator=generator), size=_SIDE, mode="bicubic")
        for side in (2, 4, 8, 16) * (_FIELDS // 4)
    ]
    latents = torch.cat([field / field.std() for field in fields]).to(device, dtype)
    pictures = nn.functional.avg_pool2d(torch.cat([codec.decode(each[None]) for each in latents]), codec.factor)
    given, wanted = (each.movedim(1, -1).flatten(0, 2).cpu().double() for each in (latents, pictures))
    solution = torch.linalg.lstsq(torch.cat([given, torch.ones(len(given), 1, dtype=given.dtype)], dim=1), wanted).solution
    return solution[:-1].T.to(device, dtype), solution[-1].to(device, dtype)
