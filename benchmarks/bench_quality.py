"""What fusers and guidances do to pictures, on `landscapes`: layout, grain and seams, each beside what it should be.

    python benchmarks/bench_quality.py "" "MSDGuidance()" "MSDGuidance(), SyncDiffusion()" --out study

makes a panorama for each of the eight prompts and each composition, an expression of guidances (none: plain MultiDiffusion; it
may begin with a fuser's weights, `uniform:`), keeps them in `study` and prints a line of JSON a composition:

* kid: kernel distance of full-height square crops to pictures that the model makes at its own size (EfficientNet-Lite0);
* grain: power of the finest detail over that of true scenes of the same size, 1 where as rich;
* seam: mean gradient across window borders over the mean gradient elsewhere, 1 where nothing shows;
* colour: mean saturation over that of the model's own pictures;
* seconds: CPU time a panorama.

As a test it checks the measures themselves.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image

from panokit import Grid, Sampler
from panokit_landscapes import PATH
from panokit_landscapes.captions import PROMPTS
from panokit_landscapes.data import to_tensor
from panokit_landscapes.evaluate import kid, sample
from panokit_landscapes.world import FAMILIES, render, sample_scene
from panokit_msd import MSDGuidance
from panokit_multidiffusion import MultiDiffusion
from panokit_syncdiffusion import SyncDiffusion

Pixels = NDArray[np.uint8]
NAMES = {"MSDGuidance": MSDGuidance, "SyncDiffusion": SyncDiffusion}


def seam(pixels: Pixels, grid: Grid, factor: int) -> float:
    """The mean absolute difference of neighbouring pixels across window borders, over that of all other neighbours.

    The mean over the axes that have borders: up and down, a landscape's gradients differ from those sideways.
    """
    ratios = []
    for axis in range(2):
        steps = np.abs(np.diff(pixels.astype(np.float32), axis=axis)).mean(axis=(1 - axis, 2))
        edges = {edge for origin in grid.origins for edge in (origin[axis], origin[axis] + grid.window[axis])}
        borders = [edge * factor - 1 for edge in edges if 0 < edge < grid.size[axis]]
        if borders:
            ratios.append(float(steps[borders].mean() / np.delete(steps, borders).mean()))
    return mean(ratios)


def grain(pixels: Pixels) -> float:
    """The mean square of the second differences of brightness along both axes: the power of the finest detail."""
    grey = pixels.astype(np.float32).mean(-1)
    return mean(float(np.square(np.diff(grey, 2, axis)).mean()) for axis in range(2))


def saturation(pixels: Pixels) -> float:
    """The mean difference of a pixel's largest and smallest channel, 0 to 255."""
    return float((pixels.max(-1).astype(np.float32) - pixels.min(-1)).mean())


def crops(pixels: Pixels) -> list[Pixels]:
    """Full-height squares, side by side, at the model's 128 pixels."""
    side = pixels.shape[0]
    squares = [pixels[:, left : left + side] for left in range(0, pixels.shape[1] - side + 1, side)]
    return [np.asarray(Image.fromarray(square).resize((128, 128), Image.Resampling.LANCZOS)) for square in squares]


def test_a_step_at_every_border_is_a_seam_and_a_ramp_is_none() -> None:
    grid = Grid((4, 16), (4, 4), (4, 4), (False, False))
    x = np.arange(32)
    ramp, stairs = (np.broadcast_to(row.astype(np.uint8)[None, :, None], (8, 32, 3)) for row in (x * 4, x * 4 + x // 8 * 40))
    assert seam(ramp, grid, 2) == pytest.approx(1, abs=0.01)
    assert seam(stairs, grid, 2) == pytest.approx(11, abs=0.01)


def test_grain_is_in_detail_and_not_in_a_ramp() -> None:
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None], (64, 64, 3))
    noise = np.random.default_rng(0).integers(0, 9, (64, 64, 3), dtype=np.uint8)
    assert grain(ramp) == 0
    assert grain(noise) > 1
    assert saturation(ramp) == 0


def test_crops_are_full_height_squares_side_by_side() -> None:
    found = crops(np.zeros((256, 1024, 3), np.uint8))
    assert [square.shape for square in found] == [(128, 128, 3)] * 4


def references(out: Path, count: int) -> Pixels:
    """Pictures of the model's own size for the eight prompts, `count` of each, by 50 DDIM steps."""
    path = out / "references.npy"
    if not path.exists():
        pipeline = StableDiffusionPipeline.from_pretrained(PATH, local_files_only=True, torch_dtype=torch.float32)
        images = (sample(pipeline, [prompt for prompt in PROMPTS for _ in range(count)]).clamp(-1, 1) + 1) * 127.5
        np.save(path, images.round().byte().permute(0, 2, 3, 1).numpy())
    return np.load(path)


def true_grain(height: int, count: int = 4) -> list[float]:
    """The grain of true scenes of that height, of each family."""
    rng = np.random.default_rng(1 << 21)
    return [mean(grain(render(sample_scene(rng, family), height)) for _ in range(count)) for family in FAMILIES]


def study(composition: str, args: Any, model: Any) -> dict[str, Any]:
    """Make what is missing of a composition's panoramas, and measure all of them."""
    weights, _, guidances = composition.rpartition(":")
    sampler = Sampler(
        model, fuser=MultiDiffusion(weights or "gaussian"), guidances=eval(f"({guidances},)", NAMES) if guidances else ()
    )
    height, width = map(int, args.size.split("x"))
    grid = sampler.grid(height, width)
    recipe = f"{sampler.fuser}{sampler.guidances}{args.size}{args.steps}"
    folder = args.out / hashlib.sha256(recipe.encode()).hexdigest()[:10]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.txt").write_text(recipe + "\n")
    pictures, seconds = [], []
    for seed in range(args.seeds):
        for number, prompt in enumerate(PROMPTS):
            path = folder / f"{FAMILIES[number]}-{seed}.png"
            if not path.exists():
                start = time.process_time()
                sampler(prompt, height=height, width=width, steps=args.steps, seed=seed).save(path)
                seconds.append(time.process_time() - start)
            pictures.append(np.asarray(Image.open(path)))
    own = references(args.out, args.references)
    cut = np.stack([crop for pixels in pictures for crop in crops(pixels)])
    torch.manual_seed(0)
    distance, deviation = kid(to_tensor(cut), to_tensor(own))
    truth = true_grain(height)
    return {
        "composition": composition or "(none)",
        "n": len(pictures),
        "kid": round(distance, 4),
        "kid deviation": round(deviation, 4),
        "grain": round(mean(grain(pixels) / truth[k % len(truth)] for k, pixels in enumerate(pictures)), 3),
        "seam": round(mean(seam(pixels, grid, model.factor) for pixels in pictures), 3),
        "colour": round(mean(map(saturation, pictures)) / mean(map(saturation, own)), 3),
        "seconds": round(mean(seconds), 1) if seconds else None,
        "folder": str(folder),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line of JSON for each composition."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("compositions", nargs="+")
    parser.add_argument("--size", default="256x1024", help="height x width, in pixels (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=1, help="panoramas of each prompt (default: %(default)s)")
    parser.add_argument(
        "--references", type=int, default=16, help="the model's own pictures of each prompt (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder that keeps what was made")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    model = Sampler().model
    for composition in args.compositions:
        print(json.dumps(study(composition, args, model)), flush=True)


if __name__ == "__main__":
    main()
