"""Rings of one window and of overlapping windows: what they cost, and what is to be seen of their joins.

python benchmarks/rings.py --seeds 8
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from panokit import Runtime, Sampler

PROMPT, ROLL, BORDER = "a mountain lake at dusk", 4, 32
"""The prompt, cells by which noise is rolled, and pixels from one border to the next that are compared with the join."""
CASES: Sequence[tuple[str, Any, int, tuple[str, ...]]] = (
    ("one window", "landscapes", 128, ()),
    ("overlapping windows", {"plugin": "landscapes", "ring": "windows"}, 128, ()),
    ("one window of 16 x 64", {"plugin": "landscapes", "window": (16, 64)}, 512, ()),
    ("windows on a longer ring", "landscapes", 512, ()),
    ("msd, its smaller canvas one window", "landscapes", 256, ("msd",)),
    ("msd, its smaller canvas in windows", {"plugin": "landscapes", "ring": "windows"}, 256, ("msd",)),
)
"""For each row a name, the model, the width in pixels and guidances. Pictures with guidances are as high as wide."""


def painted(sampler: Sampler, width: int, seed: int, by: int = 0) -> tuple[Tensor, float, int]:
    """A picture from noise that is rolled by some cells, the CPU time of a step in milliseconds, and the number of windows."""
    height = width if sampler.guidances else 128
    run = sampler.begin(PROMPT, height=height, width=width, steps=25, seed=seed, wrap=True)
    run.canvas.copy_(run.canvas.roll(by, -1))
    began = time.process_time()
    while not run.done:
        run.step()
    return sampler.decode(run), (time.process_time() - began) * 1000 / 25, len(run.windows)


def main() -> None:
    """Print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=8)
    seeds = range(parser.parse_args().seeds)
    torch.set_num_threads(1)
    for name, model, width, guidances in CASES:
        sampler = Sampler(model, guidances=guidances, runtime=Runtime(accelerator="cpu"))
        pictures, times, (windows, *_) = zip(*(painted(sampler, width, seed) for seed in seeds), strict=True)
        apart = (painted(sampler, width, 1, ROLL)[0] - pictures[1].roll(ROLL * sampler.model.factor, -1)).abs().max()
        steps = torch.stack([(picture.roll(-1, -1) - picture).abs().mean((0, 1)) for picture in pictures])
        join, others = steps[:, -1], steps[:, BORDER - 1 : -1 : BORDER].mean(1)
        error = join.std() / len(seeds) ** 0.5
        print(
            f"{name:<36}{windows:>3} windows {sorted(times)[len(seeds) // 2]:6.0f} ms a step, rolled {float(apart):.1g} apart, "
            f"colours across the join {float(join.mean()):.4f} +- {float(error):.4f}, other borders {float(others.mean()):.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
