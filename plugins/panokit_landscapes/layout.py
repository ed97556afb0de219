"""Layout: how many horizons, and how many suns or moons, lie one above the other in a picture of landscapes.

A small network looks at each cell of a picture. It tells whether the cell is above the horizon of its scene, and whether it is
the centre of a light. Down a column, there is a horizon wherever cells above a horizon end. So a picture of one scene has one
horizon in each column, and a picture of stacked scenes has more. The truth is known for scenes of the world and for stacks of
them. So they train and test the network:

    python -m panokit_landscapes.layout --minutes 10

trains the network, measures it on unseen scenes and stacks, and saves it in this folder.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.ndimage import center_of_mass, label
from torch import Tensor, nn

from panokit_landscapes.data import to_tensor
from panokit_landscapes.world import render, sample_scene

WEIGHTS = Path(__file__).parent / "layout.safetensors"
"""File with the weights of the network."""
HEIGHT, CELL = 128, 4
"""Height in pixels to which pictures are resized, and side of a cell in pixels. The network returns numbers for each cell."""
SURE = 0.8
"""From this probability on, a cell belongs to a light. It was chosen on other pictures than those of the test."""
UNSEEN = 1 << 22
"""Training never uses seeds from here on."""


class Truth(NamedTuple):
    """A picture whose layout is known.

    Attributes:
        picture: uint8 (128, 128, 3).
        above: whether each cell is above the horizon of its scene, bool (32, 32).
        lights: centres of suns and moons, (x, y) in pixels.
        scenes: number of scenes that lie one above the other.
    """

    picture: NDArray[np.uint8]
    above: NDArray[np.bool_]
    lights: list[tuple[float, float]]
    scenes: int


class Layout(NamedTuple):
    """The layout of a picture.

    Attributes:
        horizons: number of horizons in a column, the mean over columns; 1 for a picture of one scene.
        stacked: number of horizons beyond the first in a column, the mean over columns; 0 for a picture of one scene.
        lights: the largest number of lights that lie one above the other; 0 or 1 for a picture of one scene.
    """

    horizons: float
    stacked: float
    lights: int


def stack(rng: np.random.Generator, scenes: int) -> Truth:
    """Paint a random picture of scenes that lie one above the other and fade into each other.

    Args:
        rng: the random numbers.
        scenes: number of scenes.
    """
    shares = rng.dirichlet(np.full(scenes, 12.0)) if scenes > 1 else np.ones(1)
    edges = np.round(np.cumsum(shares) * HEIGHT).astype(int)
    picture, above = np.zeros((HEIGHT, HEIGHT, 3), np.float32), np.zeros((HEIGHT, HEIGHT), bool)
    lights: list[tuple[float, float]] = []
    top = 0
    for bottom in edges:
        scene = sample_scene(rng)
        side, left = int(bottom - top), float(rng.uniform(-0.3, 0.3)) if scenes > 1 else 0.0
        fade = int(rng.integers(1, max(2, side // 4))) if top else 0
        # The fade lies above the scene's own rows, over the rows of the scene before.
        box = (left, -fade / side, left + HEIGHT / side, 1.0)
        rows = slice(top - fade, bottom)
        painted = render(scene, (side + fade, HEIGHT), box).astype(np.float32)
        alpha = np.minimum(1, (np.arange(side + fade, dtype=np.float32) + 0.5) / max(fade, 1))[:, None, None] if fade else 1.0
        picture[rows] = alpha * painted + (1 - alpha) * picture[rows]
        y = (np.arange(side) + 0.5) / side
        above[top:bottom] = (y < scene.horizon)[:, None]
        if scene.light is not None:
            x = (scene.light[0] - left) * side
            if 0 <= x < HEIGHT:
                lights.append((x, top + scene.light[1] * side))
        top = int(bottom)
    return Truth(picture.round().astype(np.uint8), above[CELL // 2 :: CELL, CELL // 2 :: CELL], lights, scenes)


@final
class Net(nn.Module):
    """The network. It takes pictures (n, 3, h, w) in [-1, 1] and returns two logits for each cell, (n, 2, h/4, w/4).

    The first logit is for being above a horizon, the second for being the centre of a light.

    Args:
        width: number of channels of the first block.
    """

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        widths = [width, 2 * width, 3 * width, 4 * width]
        self.down = nn.ModuleList(_block(a, b, 2) for a, b in zip([3, *widths[:-1]], widths, strict=True))
        self.up = nn.ModuleList(_block(a + b, b, 1) for a, b in zip(widths[:1:-1], widths[-2:0:-1], strict=True))
        self.out = nn.Conv2d(widths[1], 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
        for block, skip in zip(self.up, skips[-2:0:-1], strict=True):
            x = block(torch.cat([F.interpolate(x, size=skip.shape[-2:], mode="nearest"), skip], dim=1))
        return torch.as_tensor(self.out(x))


def _block(channels: int, out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, stride, 1, padding_mode="replicate"),
        nn.GroupNorm(4, out),
        nn.SiLU(),
        nn.Conv2d(out, out, 3, 1, 1, padding_mode="replicate"),
        nn.GroupNorm(4, out),
        nn.SiLU(),
    )


@final
class Detector:
    """Counts horizons and lights with the network.

    Args:
        net: the network; None loads the one in this folder.
    """

    def __init__(self, net: Net | None = None) -> None:
        if net is None:
            net = Net()
            net.load_state_dict({name: tensor.float() for name, tensor in load_file(WEIGHTS).items()})
        self.net = net.eval()

    @torch.no_grad()
    def __call__(self, picture: NDArray[np.uint8]) -> Layout:
        """Measure the layout of a picture.

        Args:
            picture: uint8 (H, W, 3). One scene should fill its full height.
        """
        width = round(picture.shape[1] * HEIGHT / picture.shape[0] / 16) * 16
        small = np.asarray(Image.fromarray(picture).resize((width, HEIGHT), Image.Resampling.BOX))
        above, light = self.net(to_tensor(small[None])).sigmoid()[0].numpy()
        horizons = _horizons(above > 0.5)
        return Layout(float(horizons.mean()), float((horizons - 1).clip(0).mean()), _stacked(light > SURE))


def _horizons(above: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Count the horizons of each column: the places where cells above a horizon end. A run of a single cell is noise."""
    padded = np.pad(above, ((1, 1), (0, 0)), mode="edge")
    steady = padded[:-2].astype(int) + padded[1:-1] + padded[2:] >= 2
    return np.asarray((steady[:-1] & ~steady[1:]).sum(axis=0))


def _stacked(light: NDArray[np.bool_]) -> int:
    """The largest number of lights that lie one above the other, in columns that are nearly the same."""
    labels, count = label(light, structure=np.ones((3, 3)))
    return _most([float(x) for _, x in center_of_mass(light, labels, range(1, count + 1))])


def _most(columns: Sequence[float]) -> int:
    """The largest number of columns, in cells, that are less than a sixth of the height from one of them."""
    return max((sum(abs(one - other) < HEIGHT / CELL / 6 for other in columns) for one in columns), default=0)


def examples(rng: np.random.Generator, count: int) -> list[Truth]:
    """Paint pictures for training. Half of them show one scene, the others two to four."""
    return [stack(rng, 1 if rng.random() < 0.5 else int(rng.integers(2, 5))) for _ in range(count)]


def targets(truths: Sequence[Truth]) -> tuple[Tensor, Tensor]:
    """Convert pictures for training.

    Args:
        truths: n pictures.

    Returns:
        The pictures, (n, 3, 128, 128) in [-1, 1], and the answers that the network should give, 0 or 1, (n, 2, 32, 32).
    """
    cells = HEIGHT // CELL
    y, x = np.mgrid[:cells, :cells] * CELL + CELL / 2
    wanted = np.zeros((len(truths), 2, cells, cells), np.float32)
    for k, truth in enumerate(truths):
        wanted[k, 0] = truth.above
        for left, top in truth.lights:
            wanted[k, 1] = np.maximum(wanted[k, 1], (x - left) ** 2 + (y - top) ** 2 < (1.2 * CELL) ** 2)
    return to_tensor(np.stack([truth.picture for truth in truths])), torch.from_numpy(wanted)


def accuracy(detector: Detector, count: int = 400) -> dict[str, float]:
    """Measure how often a detector is right on unseen pictures.

    Args:
        detector: the detector.
        count: number of pictures with one scene, with two and with three.

    Returns:
        The share of pictures with the right number of horizons, and with the right number of lights, 0 to 1, by name.
    """
    shares: dict[str, float] = {}
    for scenes in (1, 2, 3):
        rng = np.random.default_rng((UNSEEN, scenes))
        truths = [stack(rng, scenes) for _ in range(count)]
        layouts = [detector(truth.picture) for truth in truths]
        shares[f"horizons of {scenes}"] = float(np.mean([round(layout.horizons) == scenes for layout in layouts]))
        lights = [_most([x / CELL - 0.5 for x, _ in truth.lights]) for truth in truths]
        right = [layout.lights == expected for layout, expected in zip(layouts, lights, strict=True)]
        shares[f"lights of {scenes}"] = float(np.mean(right))
    return shares


def train(minutes: float, path: Path = WEIGHTS, batch: int = 32, lr: float = 3e-3) -> Net:
    """Train a network and save it.

    Args:
        minutes: elapsed time of the training.
        path: the file to save the weights in.
        batch: number of pictures in a step.
        lr: the learning rate of the first step. It falls linearly to zero.
    """
    torch.manual_seed(0)
    net, rng = Net(), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=1e-2)
    start, done, next_line = time.monotonic(), 0.0, 0.0
    pool: list[Truth] = []
    while done < 1:
        pool = [*pool[-4096:], *examples(rng, 8)]  # painting takes longer than training, so pictures are used several times
        chosen = rng.integers(len(pool), size=batch)
        pictures, wanted = targets([pool[k] for k in chosen])
        flipped = torch.from_numpy(rng.random(batch) < 0.5)
        pictures[flipped], wanted[flipped] = pictures[flipped].flip(-1), wanted[flipped].flip(-1)
        pictures = pictures * torch.empty(batch, 1, 1, 1).uniform_(0.8, 1.1) + torch.empty(batch, 3, 1, 1).uniform_(-0.1, 0.1)
        logits = net.train()(pictures)
        weight = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)
        loss = F.binary_cross_entropy_with_logits(logits, wanted, weight=torch.where(wanted > 0, weight, 1.0))
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - done)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        done = (time.monotonic() - start) / (60 * minutes)
        if done > next_line:
            print(f"{done:.0%} loss {loss.item():.4f}", flush=True)
            next_line += 0.05
    save_file({name: tensor.half().contiguous() for name, tensor in net.state_dict().items()}, path)
    return net


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--minutes", type=float, default=0.0, help="minutes of training; 0 only measures (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="file for the weights (default: %(default)s)")
    args = parser.parse_args()
    detector = Detector(train(args.minutes, args.out) if args.minutes else None)
    for name, share in accuracy(detector).items():
        print(f"{name}: {share:.1%}")


if __name__ == "__main__":
    main()
