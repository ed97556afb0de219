"""The memory of a large panorama that is written while it is decoded, compared with that of an ordinary one.

Each is made by a process of its own, from the first noise to the file. The model is a toy, so that it takes seconds: windows of
64 x 64 cells, and a decoder of factor 8 that repeats three of four channels. As a test it counts the bytes of tensors instead.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from measuring import Bench
from panokit import Model, Sampler
from panokit.testing.memory import peak
from panokit.testing.toys import RepeatingCodec, ToyDenoiser, ToyScheduler

BAR = 1.5
"""The most memory of the large panorama, as a multiple of that of the ordinary one."""


def paint(width: int, height: int, out: str) -> None:
    """Make a panorama, and print the most memory that the process had, in bytes."""
    torch.set_num_threads(1)
    sampler = Sampler(Model(ToyDenoiser((64, 64), 4), RepeatingCodec(), "toy"), scheduler=ToyScheduler())
    panorama = sampler("a lake", width=width, height=height, steps=2, out=out, progress=False)
    assert panorama.size == (width, height)
    print(sampler.runtime.peak_memory)


def peak_of(size: tuple[int, int], out: Path) -> float:
    """The peak memory of a process that makes a panorama, in GB."""
    command = [sys.executable, __file__, *map(str, size), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return float(done.stdout) / 1e9


@pytest.mark.parametrize("ending", ["png", "tif", "dzi"])
def test_a_large_panorama_needs_little_more_memory_than_an_ordinary_one(
    ending: str, tmp_path: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """65,536 x 4,096 pixels and 8,192 x 4,096."""
    if not bench.enabled:
        _tensors_are_few(tmp_path / f"a.{ending}", monkeypatch)
        return
    ordinary, large = peak_of((8192, 4096), tmp_path / "a.png"), peak_of((65_536, 4096), tmp_path / f"b.{ending}")
    what = f"peak memory of a process that paints and writes 65,536 x 4,096 pixels, .{ending}"
    bench.record("P9", what, large / ordinary, f"of 8,192 x 4,096 pixels, {ordinary:.2f} GB", most=BAR)


def _tensors_are_few(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the strips, the tensors that are made while a picture is written are a small part of it."""
    pytest.importorskip("pyvips", reason="TIFF and Deep Zoom pictures are written by pyvips, which is not installed")
    size = (17_600, 1024)
    sampler = Sampler(Model(ToyDenoiser((64, 64), 4), RepeatingCodec(), "toy"), scheduler=ToyScheduler())
    run = sampler.begin("a lake", width=512, height=512, steps=1)
    monkeypatch.setattr(sampler, "_strips", lambda run: (torch.rand(1).expand(3, 512, size[0]) for _ in range(2)))
    panorama, most = peak(lambda: sampler._streamed(run, path, size))
    assert panorama.size == size
    assert most < 0.3 * 3 * 4 * size[0] * size[1]


if __name__ == "__main__":
    paint(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
