"""The codec of every autoencoder of diffusers: the network, and an affine map of its latents."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from panokit.backbones.diffusers.execution import set_checkpointing
from panokit.backbones.diffusers.networks import computing, copied, moves_itself, weights_kept
from panokit.backbones.diffusers.stages import stages_of
from panokit.denoiser import Codec, Stage
from panokit.errors import FallbackWarning
from panokit.runtime.offload import let_in
from panokit.settings import Execution


@final
class VAECodec(Codec):
    r"""Encodes to the mode, and decodes.

    The model's latents are $x = s (z - \mu)$ for the autoencoder's latents $z$. Its configuration gives $s$ and $\mu$: one
    scale and one shift, a mean and a deviation for each channel (Qwen-Image, Wan), or the statistics of a batch norm over
    patches of 2 x 2 cells (FLUX.2). An autoencoder of films takes them, too, and sees a picture as a film of one frame.
    One that knows opacity too (Qwen-Image 2.1) sees an opaque picture.

    Args:
        vae: the autoencoder.
        factor: pixels along a side of a latent cell; None to count the levels of the autoencoder.
    """

    choices = frozenset({"checkpointing"})
    rings = True

    def __init__(self, vae: Any, factor: int | None = None) -> None:
        self.vae, config = vae, vae.config
        self._moves = moves_itself(vae)
        self._staged: bool | None = None
        self.multiple = 2 if hasattr(vae, "bn") else 1
        self.factor = factor or 2 ** (len(config.block_out_channels) - 1)
        self.channels: int = config.get("latent_channels") or config.z_dim
        self.films = "temperal_downsample" in config  # diffusers' spelling
        self.time = 2 ** sum(map(bool, config["temperal_downsample"])) if self.films else 1
        self._opacity = config.get("in_channels") == 4
        self.scale, self.mean = _statistics(vae)
        self._affine: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def modules(self) -> Iterable[nn.Module]:
        return () if self._moves else (self.vae,)

    def __deepcopy__(self, memo: dict[int, Any]) -> "VAECodec":
        """A copy in another precision, or on another device. An autoencoder that moves itself stays the same object."""
        return copied(self, memo, [self.vae] if self._moves else [])

    def configure(self, execution: Execution) -> None:
        set_checkpointing(self.vae, execution.checkpointing)

    def encode(self, images: Float[Tensor, "n 3 *pixels"]) -> Float[Tensor, "n c *window"]:
        pixels = images * 2 - 1
        if self._opacity:
            pixels = torch.cat([pixels, torch.ones_like(pixels[:, :1])], 1)
        with computing("the vae"):
            z = mode_of(self.vae, self._as_film(pixels))
        z = self._as_came(z, images).to(images.dtype)
        scale, mean = self._tiled(z)
        return (z - mean) * scale

    def decode(self, latents: Float[Tensor, "n c *window"]) -> Float[Tensor, "n 3 *pixels"]:
        scale, mean = self._tiled(latents)
        z = latents / scale + mean
        with computing("the vae"), weights_kept() if self._moves else nullcontext():
            images = self.vae.decode(self._as_film(z.to(self._dtype)), return_dict=False)[0]
        return self._as_came(images, latents)[:, :3].to(latents.dtype) / 2 + 0.5

    def stages(self) -> Sequence[Stage]:
        if self._moves or self._staged is False or not (stages := stages_of(self.vae)):
            return ()  # parts of a network that moves itself cannot be called alone
        first, *middle, last = stages

        def begin(latents: Tensor) -> Tensor:
            scale, mean = self._tiled(latents)
            return first.run(self._as_film((latents / scale + mean).to(self._dtype)))

        def end(x: Tensor) -> Tensor:
            images = last.run(x)
            images = (images[:, :, 0] if self.films else images)[:, :3]
            return images.to(torch.promote_types(images.dtype, torch.float32)) / 2 + 0.5

        def placed(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
            with computing("the vae"):
                let_in(self.vae)
                return run(x)

        stages = [replace(first, run=begin), *middle, replace(last, run=end)]
        stages = [replace(stage, run=partial(placed, stage.run)) for stage in stages]
        if self._staged is None:
            self._staged = self._is_made_of(stages)
        return stages if self._staged else ()

    def _is_made_of(self, stages: Sequence[Stage]) -> bool:
        """Whether stages make the picture that the autoencoder makes: another version of diffusers may compute otherwise."""
        let_in(self.vae)
        latents = torch.randn(1, self.channels, 8, 8, generator=torch.Generator().manual_seed(0))
        picture = latents = latents.to(next(self.vae.parameters()).device)
        for stage in stages:
            picture = stage.run(picture)
        if torch.allclose(picture, self.decode(latents), rtol=0, atol=0.01, equal_nan=True):
            return True
        message = f"diffusers' {type(self.vae).__name__} decodes otherwise than panokit knows: tiles fade into each other"
        warnings.warn(message, FallbackWarning, stacklevel=2)
        return False

    def _tiled(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and mean, over the latents. They stay on the device, for a copy to it waits."""
        key = latents.device, latents.dtype
        if key not in self._affine:
            self._affine[key] = self.scale.to(latents), self.mean.to(latents)
        scale, mean = self._affine[key]
        if latents.ndim == 5:
            return scale[:, None], mean[:, None]
        side = self.mean.shape[-1]
        if side == 1:
            return scale, mean
        times = [cells // side for cells in latents.shape[-2:]]
        return scale.repeat(1, *times), mean.repeat(1, *times)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.vae.parameters()).dtype  # diffusers' own `dtype` goes through all modules each time

    def _as_film(self, x: Tensor) -> Tensor:
        return x[:, :, None] if self.films and x.ndim == 4 else x

    def _as_came(self, x: Tensor, came: Tensor) -> Tensor:
        """What the autoencoder makes of a picture is a film of one frame."""
        return x[:, :, 0] if self.films and came.ndim == 4 else x


def mode_of(vae: Any, pixels: Tensor) -> Tensor:
    """Latents of an autoencoder, without noise.

    Args:
        vae: an autoencoder of diffusers.
        pixels: in [-1, 1].
    """
    code = vae.encode(pixels.to(next(vae.parameters()).dtype), return_dict=False)[0]
    return code if isinstance(code, Tensor) else code.mode()


def _statistics(vae: Any) -> tuple[Tensor, Tensor]:
    r"""$s$ and $\mu$, each `c p p`: one number for all channels, one for each, or one for each cell of a patch."""
    config = vae.config
    factor = config.get("scaling_factor") or 1.0
    if hasattr(vae, "bn"):
        deviation = (vae.bn.running_var.double() + config.batch_norm_eps).sqrt()
        return 1 / deviation.view(-1, 2, 2), vae.bn.running_mean.double().view(-1, 2, 2)
    if config.get("latents_mean") is not None:
        mean, deviation = (
            torch.tensor(config[name], dtype=torch.float64).view(-1, 1, 1) for name in ("latents_mean", "latents_std")
        )
        return factor / deviation, mean
    shift = config.get("shift_factor") or 0.0
    return torch.full((1, 1, 1), factor, dtype=torch.float64), torch.full((1, 1, 1), shift, dtype=torch.float64)
