"""A large canvas decoded in tiles, compared with the whole: operations, peak memory and the difference of the pictures.

The canvas is the paper's, 128 x 512 cells, and docs/large.md has the numbers. It takes minutes, and 4 GB. A test decodes less.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from measuring import Bench
from panokit import Runtime, Sampler, decoding
from panokit.backbones.diffusers.codec import VAECodec
from panokit.denoiser import Codec
from panokit.scheduler import CLEAN
from panokit.testing.memory import peak
from panokit_landscapes.world import render, sample_scene


def codec_like_sd(share: int) -> VAECodec:
    """Stable Diffusion's autoencoder with one of so many channels."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=tuple(channels // share for channels in (128, 256, 512, 512)),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        norm_num_groups=32 // min(share, 8),
        latent_channels=4,
    )
    return VAECodec(vae.requires_grad_(False).eval())


def canvas_of(height: int, width: int) -> Tensor:
    """Latents with coarse and fine parts, as those of pictures have."""
    draw = torch.Generator().manual_seed(0)
    coarse, fine = torch.randn(1, 4, height // 16, width // 16, generator=draw), torch.randn(4, height, width, generator=draw)
    return nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0] + 0.4 * fine


def measured(decode: Callable[[], Tensor]) -> tuple[Tensor, int, int]:
    """A picture, the operations that it took, and the peak of the bytes of all tensors."""
    with torch.no_grad(), FlopCounterMode(display=False) as operations:
        picture, most = peak(decode)
    return picture, operations.get_total_flops(), most


def test_tiles_take_little_memory_and_little_more_work(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the topology of Stable Diffusion's autoencoder, a part of its channels and random weights."""
    full = bench.enabled
    if not full:
        monkeypatch.setattr(decoding, "SAMPLE", 32)
    codec, canvas = (codec_like_sd(4), canvas_of(128, 512)) if full else (codec_like_sd(16), canvas_of(64, 128))
    runtime = Runtime(accelerator="cpu", tile=None if full else 192)
    codec.stages()  # their check is made once
    _, work, most = measured(lambda: codec.decode(canvas[None]))
    picture, more, less = measured(lambda: decoding.decode(codec, canvas, PLANE, runtime))
    assert picture.isfinite().all()
    what = f"{canvas.shape[1]} x {canvas.shape[2]} cells decoded in tiles"
    bench.record("P18", f"{what}: operations", more / work, "of the whole", most=1.4 if full else 2.0, always=True)
    bench.record("P18", f"{what}: peak memory", less / most, "of the whole", most=1 / 8 if full else 0.5, always=True)


def test_the_picture_in_tiles_is_near_that_of_the_whole(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the autoencoder of the embedded model, and latents of true scenes. Steps are from a column of pixels to the next."""
    full, codec = bench.enabled, Sampler().model.codec
    assert codec
    height, width = (1024, 4096) if full else (256, 512)
    if not full:
        monkeypatch.setattr(decoding, "SAMPLE", 64)
    runtime = Runtime(accelerator="cpu", tile=None if full else 128)
    for seed in range(3 if full else 1):
        scene = sample_scene(np.random.default_rng(seed))
        pixels = torch.from_numpy(render(scene, (height, width))).movedim(-1, 0) / 255
        with torch.no_grad():
            canvas = decoding.encode(codec, pixels, PLANE)
            whole = codec.decode(canvas[None])[0]
            apart = 255 * (decoding.decode(codec, canvas, PLANE, runtime) - whole)
            before = 255 * (alone(codec, canvas, 104 if full else 32) - whole)
        what, unit = f"{scene.family}, {height} x {width} pixels in tiles", "grey levels of 255"
        mean, worst = float(apart.abs().mean()), float(apart.abs().max())
        border = 376 if full else 128  # of tiles of 47 or 16 cells
        bench.record("P18", f"{what}: mean difference", mean, unit, most=0.5, peer=float(before.abs().mean()), always=True)
        bench.record("P18", f"{what}: largest difference", worst, unit, peer=float(before.abs().max()))
        at_borders, allowed = steps(apart, border), 2 * steps(apart) + 0.01
        bench.record("P18", f"{what}: steps of the difference at tile borders", at_borders, unit, most=allowed, always=True)


PLANE = (False, False)


def alone(codec: Codec, canvas: Tensor, tile: int) -> Tensor:
    """The picture of tiles that know nothing of each other, and fade into each other over 24 cells."""
    size = (canvas.shape[1], canvas.shape[2])
    tiles = decoding.even_grid(size, (tile,) * 2, 24, PLANE, 1)
    rows = torch.cat([codec.decode(tiles.crop(canvas, [i])) for i in range(len(tiles))])
    return decoding.Fade(24 * codec.factor).fuse(rows, tiles.refined(codec.factor), CLEAN)


def steps(apart: Tensor, every: int = 1) -> float:
    """The mean step from a column to the next, where tiles border on each other or anywhere."""
    return float((apart[..., every::every] - apart[..., every - 1 : -1 : every]).abs().mean())
