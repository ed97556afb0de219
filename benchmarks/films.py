"""What the formats of films keep, how large they are, and how long they take.

    python benchmarks/films.py [--frames 81] [--height 256] [--width 448]

The film is a camera that moves over a panorama of the embedded model, and comes nearer. The script prints a table.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from panokit import Sampler
from panokit.films import ENDINGS, read_frames, write

Frames = NDArray[np.uint8]


def filmed(count: int, height: int, width: int) -> Frames:
    """The frames of the film. They lie between pixels of the panorama, as those of a real camera would."""
    picture = Sampler()("a mountain lake", height=256, width=1024, steps=10).image
    frames = []
    for share in np.linspace(0, 1, count):
        high = 256 * (1 - 0.4 * share)
        wide = high * width / height
        left, top = share * (1024 - wide), (256 - high) / 2
        box = (left, top, left + wide, top + high)
        frames.append(np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC, box=box)))
    return np.stack(frames)


def flat() -> Frames:
    """A film of one colour a frame."""
    colours = np.random.default_rng(0).integers(0, 256, (64, 3), dtype=np.uint8)
    return np.ascontiguousarray(np.broadcast_to(colours[:, None, None], (64, 64, 64, 3)))


def measured(path: Path, frames: Frames) -> str:
    """A row of the table."""
    start = time.perf_counter()
    write(path, frames, 16, {})
    seconds = time.perf_counter() - start
    error = np.square(read_frames(path).astype(np.float32) - frames).mean()
    size = path.stat().st_size
    write(path, flat(), 16, {})
    colours = np.abs((read_frames(path).astype(float) - flat()).mean((1, 2)))
    signal = f"{10 * np.log10(255**2 / error):.1f} dB" if error else "the same bits"
    return f"| `{path.suffix}` | {signal} | {colours.mean():.2f}, {colours.max():.2f} | {size / 1e6:.2f} MB | {seconds:.1f} s |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"frames": 81, "height": 256, "width": 448}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = parser.parse_args()
    frames = filmed(chosen.frames, chosen.height, chosen.width)
    print(f"{frames.shape[0]} frames of {frames.shape[2]} x {frames.shape[1]} pixels, {os.cpu_count()} cores\n")
    print("| ending | PSNR | error of flat colours, of 255: mean, largest | size | to write |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for ending in ENDINGS:
            print(measured(Path(folder) / f"a{ending}", frames))


if __name__ == "__main__":
    main()
