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
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from panokit import Sampler
from panokit.study.measures import Pixels, crops, grain, seam
from panokit_landscapes import PATH
from panokit_landscapes.captions import PROMPTS
from panokit_landscapes.data import to_tensor
from panokit_landscapes.evaluate import kid, sample
from panokit_landscapes.world import FAMILIES, render, sample_scene
from panokit_msd import MSDGuidance
from panokit_multidiffusion import MultiDiffusion
from panokit_syncdiffusion import SyncDiffusion

NAMES = {"MSDGuidance": MSDGuidance, "SyncDiffusion": SyncDiffusion}


def saturation(pixels: Pixels) -> float:
    """The mean difference of a pixel's largest and smallest channel, 0 to 255."""
    return float((pixels.max(-1).astype(np.float32) - pixels.min(-1)).mean())


def test_saturation_is_how_far_the_channels_are_apart() -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    picture[..., 0] = 100
    assert saturation(picture) == 100
    assert saturation(np.full((4, 4, 3), 100, np.uint8)) == 0


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
    cut = np.stack([crop for pixels in pictures for crop in crops(pixels, (128, 128))])
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
