"""The memory of a large panorama that is written while it is decoded, compared with that of an ordinary one.

Each is made by a process of its own, from the first noise to the file. The model is a toy, so that it takes seconds: windows of
64 x 64 cells, and a decoder of factor 8 that repeats three of four channels. `pytest benchmarks/bench_writing.py
--benchmark-enable -s` prints the peaks and checks them against the bar. As a test it counts the bytes of tensors instead.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import final

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from panokit import Model, Sampler
from panokit.denoiser import Codec
from panokit.testing.memory import peak
from panokit.testing.toys import ToyDenoiser, ToyScheduler

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


def peak_of(size: tuple[int, int], out: Path) -> tuple[float, float]:
    """The peak memory of a process that makes a panorama, in GB; and the seconds that it takes after the imports."""
    command = [sys.executable, __file__, *map(str, size), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    memory, seconds = map(float, done.stdout.split())
    return memory / 1e9, seconds


@pytest.mark.parametrize("ending", ["png", "tif", "dzi"])
def test_a_large_panorama_needs_little_more_memory_than_an_ordinary_one(
    ending: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """65,536 x 4,096 pixels and 8,192 x 4,096."""
    if not request.config.getoption("--benchmark-enable"):
        return _tensors_are_few(tmp_path / f"a.{ending}", monkeypatch)
    (ordinary, _), (large, seconds) = (
        peak_of((8192, 4096), tmp_path / "a.png"),
        peak_of((65_536, 4096), tmp_path / f"b.{ending}"),
    )
    print(f"\n{ending}: {large:.2f} GB in {seconds:.0f} s, of the ordinary one {ordinary:.2f} GB: {large / ordinary:.2f}")
    assert large <= BAR * ordinary
    return None


def _tensors_are_few(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the strips, the tensors that are made while a picture is written are a small part of it."""
    pytest.importorskip("pyvips", reason="TIFF and Deep Zoom pictures are written by pyvips, which is not installed")
    size = (17_600, 1024)
    sampler = Sampler(Model(ToyDenoiser((64, 64), 4), Nearest(), "toy"), scheduler=ToyScheduler())
    run = sampler.begin("a lake", width=512, height=512, steps=1)
    monkeypatch.setattr(sampler, "_strips", lambda run: (torch.rand(1).expand(3, 512, size[0]) for _ in range(2)))
    panorama, most = peak(lambda: sampler._streamed(run, path, size))
    assert panorama.size == size
    assert most < 0.3 * 3 * 4 * size[0] * size[1]


if __name__ == "__main__":
    paint(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
