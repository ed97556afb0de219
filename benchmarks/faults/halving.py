"""How far a picture moves when windows are computed in smaller micro-batches, as they are after memory ran out.

    python benchmarks/faults/halving.py [SEEDS]

Kernels round otherwise for another number of windows, and a guidance may enlarge what they round. The script prints the largest
differences of the latents, whose standard deviation is about 1, and of the pixels, from 0 to 255, over some seeds.
"""

import sys
import warnings

import numpy as np

from panokit import Runtime, Sampler, load_model

METHODS = {
    "MultiDiffusion": [],
    "MSD": ["msd"],
    "MSD as in the paper": ["msd_paper"],
    "SyncDiffusion": ["syncdiffusion"],
    "SyncDiffusion and MSD": ["syncdiffusion", "msd"],
}
PRECISIONS = ("32-true", "64-true")


def moved(guidances: list[str], precision: str, seed: int, model: object) -> tuple[float, float, int]:
    """The largest and the mean difference of the latents, and the largest of the pixels, for micro-batches of 8, 4 and 1."""
    panoramas = [
        Sampler(model, guidances=guidances, runtime=Runtime(accelerator="cpu", micro_batch=size, precision=precision))(
            "a lake", height=256, width=384, steps=10, seed=seed, progress=False
        )
        for size in (8, 4, 1)
    ]
    whole = panoramas[0]
    apart = [(other.latents - whole.latents).abs() for other in panoramas[1:]]
    pixels = [np.abs(np.asarray(other.image, int) - np.asarray(whole.image, int)).max() for other in panoramas[1:]]
    return max(float(gap.max()) for gap in apart), max(float(gap.mean()) for gap in apart), int(max(pixels))


if __name__ == "__main__":
    seeds = int(sys.argv[1]) if sys.argv[1:] else 5
    warnings.simplefilter("ignore")
    landscapes = load_model("landscapes")
    print("| method | precision | latents, at most | latents, mean | pixels, at most |\n|---|---|---|---|---|")
    for name, guidances in METHODS.items():
        for precision in PRECISIONS:
            rows = [moved(guidances, precision, seed, landscapes) for seed in range(seeds)]
            most, mean, pixels = (max(column) for column in zip(*rows, strict=True))
            print(f"| {name} | {precision} | {most:.1e} | {mean:.1e} | {pixels} |", flush=True)
