"""Seams: the mean gradient across window borders over the mean gradient elsewhere, by fuser weights.

`python benchmarks/bench_seams.py` measures the two kinds of weights on `landscapes` and prints a table; as a test it checks
the measure itself. 1 is no seam at all.
"""

import argparse
import json
from statistics import mean

import numpy as np
import pytest
from PIL.Image import Image

from panokit import Grid, Sampler
from panokit_landscapes.captions import PROMPTS
from panokit_multidiffusion import MultiDiffusion


def seam(image: Image, grid: Grid, factor: int) -> float:
    """The mean absolute difference of neighbouring pixels across window borders, over that of all other neighbours.

    The mean over the axes that have borders: up and down, a landscape's gradients differ from those sideways.
    """
    pixels = np.asarray(image, dtype=np.float32)
    ratios = []
    for axis in range(2):
        steps = np.abs(np.diff(pixels, axis=axis)).mean(axis=(1 - axis, 2))
        edges = {edge for origin in grid.origins for edge in (origin[axis], origin[axis] + grid.window[axis])}
        borders = [edge * factor - 1 for edge in edges if 0 < edge < grid.size[axis]]
        if borders:
            ratios.append(float(steps[borders].mean() / np.delete(steps, borders).mean()))
    return mean(ratios)


def test_a_step_at_every_border_is_a_seam_and_a_ramp_is_none() -> None:
    from PIL import Image as images

    grid = Grid((4, 16), (4, 4), (4, 4), (False, False))
    x = np.arange(32)
    ramp, stairs = (np.broadcast_to(row.astype(np.uint8)[None, :, None], (8, 32, 3)) for row in (x * 4, x * 4 + x // 8 * 40))
    assert seam(images.fromarray(np.ascontiguousarray(ramp)), grid, 2) == pytest.approx(1, abs=0.01)
    assert seam(images.fromarray(np.ascontiguousarray(stairs)), grid, 2) == pytest.approx(11, abs=0.01)


def main() -> None:
    """Print the table as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["128x1024", "256x1024"], help="height x width, in pixels")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    model = Sampler().model
    for size in args.sizes:
        height, width = map(int, size.split("x"))
        found: dict[str, list[float]] = {}
        for weights in ("uniform", "gaussian"):
            sampler = Sampler(model, fuser=MultiDiffusion(weights))
            grid = sampler.grid(height, width)
            for seed in range(args.seeds):
                for prompt in PROMPTS:
                    panorama = sampler(prompt, height=height, width=width, steps=args.steps, seed=seed)
                    found.setdefault(weights, []).append(seam(panorama.image, grid, model.factor))
        print(json.dumps({"size": size, "n": len(PROMPTS) * args.seeds, **{k: round(mean(v), 3) for k, v in found.items()}}))


if __name__ == "__main__":
    main()
