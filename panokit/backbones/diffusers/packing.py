"""How pipelines lay latents out: as a canvas, as tokens that are patches of cells, or as a film."""

import inspect
import math
from functools import cache
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

SIDE = 2
"""Cells along a side of a patch, in all pipelines of diffusers that pack."""


def packs(pipe: Any) -> bool:
    """Whether a pipeline takes its latents in patches."""
    return hasattr(pipe, "_pack_latents") or patchifies(pipe)


def patchifies(pipe: Any) -> bool:
    """Whether the channels of a pipeline's latents are those of whole patches (FLUX.2)."""
    return hasattr(pipe, "_patchify_latents")


def packed(pipe: Any, x: Float[Tensor, "n c *window"]) -> Tensor:
    """Latents as the argument `latents` of a pipeline's call. A picture is a film of one frame for a pipeline of films.

    Args:
        pipe: the pipeline.
        x: the latents, cell by cell: of pictures, `n c h w`, or of films, `n c t h w`.
    """
    if "num_frames" in _takes(type(pipe).__call__):
        return x if x.ndim == 5 else x[:, :, None]
    if patchifies(pipe):
        return pipe._patchify_latents(x)
    if hasattr(pipe, "_pack_latents"):
        n, c, height, width = x.shape
        known = {"batch_size": n, "num_channels_latents": c, "height": height, "width": width, "patch_size": SIDE}
        takes = _takes(type(pipe)._pack_latents)
        return pipe._pack_latents(x, **{name: value for name, value in known.items() if name in takes})
    return x


@cache
def _takes(function: Any) -> frozenset[str]:
    """The arguments of a function. To read them anew at each step would take as long as the rest of it."""
    return frozenset(inspect.signature(function).parameters)


def unpacked(pred: Tensor, x: Float[Tensor, "n c *window"]) -> Float[Tensor, "n c *window"]:
    """A prediction, cell by cell.

    Args:
        pred: what arrived at the pipeline's scheduler.
        x: the latents that it is for.
    """
    if x.ndim == 5:
        return pred
    if pred.ndim == 3:
        side = math.isqrt(pred.shape[2] // x.shape[1])
        return rearrange(pred, "n (h w) (c p q) -> n c (h p) (w q)", h=x.shape[2] // side, p=side, q=side)
    if pred.ndim == 4 and pred.shape[-2:] != x.shape[-2:]:
        return rearrange(pred, "n (c p q) h w -> n c (h p) (w q)", p=SIDE, q=SIDE)
    return pred[:, :, 0] if pred.ndim == 5 else pred


def patched_noise(channels: int, size: tuple[int, ...], generator: torch.Generator) -> Float[Tensor, "c h w"]:
    """Noise in the order in which a pipeline with channels of whole patches draws it.

    Args:
        channels: channels of a cell.
        size: height and width in cells.
        generator: draws it, on the CPU.
    """
    patches = torch.randn((channels * SIDE**2, *(cells // SIDE for cells in size)), generator=generator)
    return rearrange(patches, "(c p q) h w -> c (h p) (w q)", p=SIDE, q=SIDE)
