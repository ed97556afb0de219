"""Layout: how many horizons, and how many suns or moons, stand one above the other in a picture of landscapes.

A small network says of every point of a picture whether it is above its scene's horizon, and how much it looks like the
centre of a light. A horizon is where, down a column, what is above one ends; so a picture of one scene has one in every column,
and one of scenes stacked on each other has more. The world's scenes know the truth, and so do stacks of them:

    python -m panokit_landscapes.layout --minutes 10

trains the network, measures it on scenes and stacks that it has not seen, and keeps it in this folder.
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
HEIGHT, CELL = 128, 4
"""Rows that a picture is resized to, and pixels along a side of a cell, of which the network says something."""
SURE = 0.8
"""From which probability on a cell is a light's: chosen on other pictures than it is measured on."""
UNSEEN = 1 << 22
"""Seeds from here on are never used in training."""


class Truth(NamedTuple):
    """A picture, and what is in it.

    Attributes:
        picture: uint8 (128, 128, 3).
        above: bool (32, 32), whether a cell is above its scene's horizon.
        lights: centres of suns and moons, (x, y) in pixels.
        scenes: how many stand one above the other.
    """

    picture: NDArray[np.uint8]
    above: NDArray[np.bool_]
    lights: list[tuple[float, float]]
    scenes: int


class Layout(NamedTuple):
    """What a picture shows: means over its columns, 1 horizon and at most 1 light in each where it is one scene."""

    horizons: float
    stacked: float
    """Horizons beyond the first, the mean over columns."""
    lights: int
    """Lights that stand above or below another one, and one more if there is any."""


def stack(rng: np.random.Generator, scenes: int) -> Truth:
    """So many scenes one above the other, which fade into each other over a random width."""
    shares = rng.dirichlet(np.full(scenes, 12.0)) if scenes > 1 else np.ones(1)
    edges = np.round(np.cumsum(shares) * HEIGHT).astype(int)
    picture, above = np.zeros((HEIGHT, HEIGHT, 3), np.float32), np.zeros((HEIGHT, HEIGHT), bool)
    lights: list[tuple[float, float]] = []
    top = 0
    for bottom in edges:
        scene = sample_scene(rng)
        side, left = int(bottom - top), float(rng.uniform(-0.3, 0.3)) if scenes > 1 else 0.0
        fade = int(rng.integers(1, max(2, side // 4))) if top else 0
        # The fade is painted above the scene's own rows, over what is there.
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
    """Two logits a cell, (n, 2, h/4, w/4), of pictures (n, 3, h, w) in [-1, 1]: above a horizon, and the centre of a light."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        widths = [width, 2 * width, 3 * width, 4 * width]
        self.down = nn.ModuleList(_block(a, b, 2) for a, b in zip([3, *widths[:-1]], widths, strict=True))
        self.up = nn.ModuleList(_block(a + b, b, 1) for a, b in zip(widths[:1:-1], widths[-2:0:-1], strict=True))
        self.out = nn.Conv2d(widths[1], 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for block in self.down:
            x = block(x)
            kept.append(x)
        for block, beside in zip(self.up, kept[-2:0:-1], strict=True):
            x = block(torch.cat([F.interpolate(x, size=beside.shape[-2:], mode="nearest"), beside], dim=1))
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
    """Counts horizons and lights, as the network sees them.

    Args:
        net: the network; the one in this folder unless given.
    """

    def __init__(self, net: Net | None = None) -> None:
        if net is None:
            net = Net()
            net.load_state_dict({name: tensor.float() for name, tensor in load_file(WEIGHTS).items()})
        self.net = net.eval()

    @torch.no_grad()
    def __call__(self, picture: NDArray[np.uint8]) -> Layout:
        """The layout of a picture, uint8 (H, W, 3), whose full height is what one scene should fill."""
        width = round(picture.shape[1] * HEIGHT / picture.shape[0] / 16) * 16
        small = np.asarray(Image.fromarray(picture).resize((width, HEIGHT), Image.Resampling.BOX))
        above, light = self.net(to_tensor(small[None])).sigmoid()[0].numpy()
        horizons = _horizons(above > 0.5)
        return Layout(float(horizons.mean()), float((horizons - 1).clip(0).mean()), _stacked(light > SURE))


def _horizons(above: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How often, down each column, what is above a horizon ends; runs of a single cell are noise."""
    padded = np.pad(above, ((1, 1), (0, 0)), mode="edge")
    steady = padded[:-2].astype(int) + padded[1:-1] + padded[2:] >= 2
    return np.asarray((steady[:-1] & ~steady[1:]).sum(axis=0))


def _stacked(light: NDArray[np.bool_]) -> int:
    """The most lights that stand one above the other; their columns must meet, or nearly."""
    found, count = label(light, structure=np.ones((3, 3)))
    return _most([float(x) for _, x in center_of_mass(light, found, range(1, count + 1))])


def _most(columns: Sequence[float]) -> int:
    """The most of the columns, in cells, that are nearly the same: a sixth of the height apart."""
    return max((sum(abs(one - other) < HEIGHT / CELL / 6 for other in columns) for one in columns), default=0)


def examples(rng: np.random.Generator, count: int) -> list[Truth]:
    """Pictures to learn from, half of one scene."""
    return [stack(rng, 1 if rng.random() < 0.5 else int(rng.integers(2, 5))) for _ in range(count)]


def targets(truths: Sequence[Truth]) -> tuple[Tensor, Tensor]:
    """Pictures in [-1, 1], and what the network should say of them."""
    cells = HEIGHT // CELL
    y, x = np.mgrid[:cells, :cells] * CELL + CELL / 2
    wanted = np.zeros((len(truths), 2, cells, cells), np.float32)
    for k, truth in enumerate(truths):
        wanted[k, 0] = truth.above
        for left, top in truth.lights:
            wanted[k, 1] = np.maximum(wanted[k, 1], (x - left) ** 2 + (y - top) ** 2 < (1.2 * CELL) ** 2)
    return to_tensor(np.stack([truth.picture for truth in truths])), torch.from_numpy(wanted)


def accuracy(detector: Detector, count: int = 400) -> dict[str, float]:
    """The share of unseen pictures whose horizons and lights are counted right: of one scene, and of two and three stacked."""
    shares: dict[str, float] = {}
    for scenes in (1, 2, 3):
        rng = np.random.default_rng((UNSEEN, scenes))
        truths = [stack(rng, scenes) for _ in range(count)]
        found = [detector(truth.picture) for truth in truths]
        shares[f"horizons of {scenes}"] = float(np.mean([round(each.horizons) == scenes for each in found]))
        wanted = [_most([x / CELL - 0.5 for x, _ in truth.lights]) for truth in truths]
        lights = [each.lights == count for each, count in zip(found, wanted, strict=True)]
        shares[f"lights of {scenes}"] = float(np.mean(lights))
    return shares


def train(minutes: float, path: Path = WEIGHTS, batch: int = 32, lr: float = 3e-3) -> Net:
    """A network, learnt for so many minutes of this process's time, and kept."""
    torch.manual_seed(0)
    net, rng = Net(), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=1e-2)
    start, done, told = time.monotonic(), 0.0, 0.0
    pool: list[Truth] = []
    while done < 1:
        pool = [*pool[-4096:], *examples(rng, 8)]  # painting takes longer than learning: each picture is seen some times
        chosen = rng.integers(len(pool), size=batch)
        pictures, wanted = targets([pool[k] for k in chosen])
        flipped = torch.from_numpy(rng.random(batch) < 0.5)
        pictures[flipped], wanted[flipped] = pictures[flipped].flip(-1), wanted[flipped].flip(-1)
        pictures = pictures * torch.empty(batch, 1, 1, 1).uniform_(0.8, 1.1) + torch.empty(batch, 3, 1, 1).uniform_(-0.1, 0.1)
        said = net.train()(pictures)
        weight = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)
        loss = F.binary_cross_entropy_with_logits(said, wanted, weight=torch.where(wanted > 0, weight, 1.0))
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - done)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        done = (time.monotonic() - start) / (60 * minutes)
        if done > told:
            print(f"{done:.0%} loss {loss.item():.4f}", flush=True)
            told += 0.05
    save_file({name: tensor.half().contiguous() for name, tensor in net.state_dict().items()}, path)
    return net


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=0.0, help="to train for; 0 only measures (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where to keep it (default: %(default)s)")
    args = parser.parse_args()
    detector = Detector(train(args.minutes, args.out) if args.minutes else None)
    for name, share in accuracy(detector).items():
        print(f"{name}: {share:.1%}")


if __name__ == "__main__":
    main()
