"""The memory of a large panorama that is written while it is decoded, compared with that of an ordinary one.

Each is made by a process of its own, from the first noise to the file. The model is a toy, so that it takes seconds:
its windows have 64 x 64 cells, and its decoder, of factor 8, repeats three of four channels. As a test it makes smaller panoramas.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from panokit import Model, Sampler
from panokit.denoiser import Codec
from panokit.testing.toys import ToyDenoiser, ToyScheduler

ORDINARY, LARGE = (8192, 4096), (65_536, 4096)
BAR = 1.5
"""The most memory of the large panorama, as a multiple of that of the ordinary one."""


@final
class Nearest(Codec):
    """A decoder that repeats each cell, and looks at no other."""

    factor = 8

    def modules(self) -> Iterable[nn.Module]:
        return ()

    def encode(self, images: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n 4 h w"]:
        return nn.functional.pad(nn.functional.avg_pool2d(images, 8), (0, 0, 0, 0, 0, 1))

    def decode(self, latents: Float[Tensor, "n 4 h w"]) -> Float[Tensor, "n 3 H W"]:
        return nn.functional.interpolate(latents[:, :3] / 4 + 0.5, scale_factor=8)


def paint(width: int, height: int, out: str) -> None:
    """Make a panorama, and print the most memory that the process had, in bytes."""
    torch.set_num_threads(1)
    sampler = Sampler(Model(ToyDenoiser((64, 64), 4), Nearest(), "toy"), scheduler=ToyScheduler())
    begun = time.monotonic()
    panorama = sampler("a lake", width=width, height=height, steps=2, out=out, progress=False)
    assert panorama.size == (width, height)
    print(sampler.runtime.peak_memory, time.monotonic() - begun)


def peak(size: tuple[int, int], out: Path) -> tuple[float, float]:
    """The peak memory of a process that makes a panorama, in GB; and the seconds that it takes after the imports."""
    command = [sys.executable, __file__, *map(str, size), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    memory, seconds = map(float, done.stdout.split())
    return memory / 1e9, seconds


if __name__ == "__main__":
    paint(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
