"""Which network separates views of one landscape from views of two? SyncDiffusion's default metric follows from it.

    python benchmarks/bench_metrics.py

prints, for each metric, how often two overlapping views of a true scene are nearer to each other than views of two scenes
of the same family and time of day (1: always, 0.5: no better than chance), and the CPU time of the gradient of a distance.
As a test it checks that measure.
"""

import time
from collections.abc import Sequence
from typing import final

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPModel

from panokit_landscapes import JUDGE
from panokit_landscapes.data import to_tensor
from panokit_landscapes.evaluate import UNSEEN
from panokit_landscapes.world import FAMILIES, TIMES, render, sample_scene
from panokit_syncdiffusion.metric import EfficientNet, Features, Metric, Perceptual


@final
class Tower(Perceptual):
    """The squared distance in layers of the CLIP image tower that was trained on the world of `landscapes`."""

    def __init__(self) -> None:
        model = CLIPModel.from_pretrained(JUDGE, local_files_only=True, dtype=torch.float32).eval().requires_grad_(False)
        self.net = model.vision_model

    def features(self, images: Tensor) -> Features:
        states = self.net(images * 2 - 1, output_hidden_states=True).hidden_states
        return [nn.functional.normalize(layer[:, 1:], dim=-1) for layer in states]

    def distance(self, a: Features, b: Features) -> Tensor:
        return torch.stack([(x - y).square().sum(-1).mean(1) for x, y in zip(a, b, strict=True)]).mean(0)


def pixels(a: Tensor, b: Tensor) -> Tensor:
    """The mean squared difference of pixels. A network must do better."""
    return (a - b).square().mean((1, 2, 3))


def views(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views in [0, 1]: of scenes, of the same scenes with a third of overlap, and of others of the same family and time."""
    rng = np.random.default_rng((UNSEEN, 3))
    sets: list[list[NDArray[np.uint8]]] = [[], [], []]
    for k in range(count):
        family, hour = FAMILIES[k % len(FAMILIES)], TIMES[k // len(FAMILIES) % len(TIMES)]
        scene, other = (sample_scene(rng, family, hour) for _ in range(2))
        sets[0].append(render(scene, 128, (0, 0, 0.6, 1)))
        sets[1].append(render(scene, 128, (0.4, 0, 1, 1)))
        sets[2].append(render(other, 128, (0.4, 0, 1, 1)))
    here, beside, elsewhere = ((to_tensor(np.stack(pictures)) + 1) / 2 for pictures in sets)
    return here, beside, elsewhere


@torch.no_grad()
def share_nearer(metric: Metric, here: Tensor, beside: Tensor, elsewhere: Tensor) -> float:
    """The share of views that are nearer to a view of their own scene than to a view of another one. A tie counts as half."""
    near, far = (
        torch.cat([metric(a, b) for a, b in zip(here.split(16), x.split(16), strict=True)]) for x in (beside, elsewhere)
    )
    return float(((near < far).float() + 0.5 * (near == far).float()).mean())


def gradient_seconds(metric: Metric, here: Tensor, times: int = 5) -> float:
    """CPU time of the distances of eight pictures from one, with their gradient."""
    x = here[:8].requires_grad_()
    seconds = []
    for _ in range(times):
        start = time.process_time()
        torch.autograd.grad(metric(x, here[8:9]).sum(), x)
        seconds.append(time.process_time() - start)
    return sorted(seconds)[times // 2]


def test_what_is_the_same_is_nearer_and_a_constant_tells_nothing() -> None:
    here, beside, elsewhere = views(8)
    assert share_nearer(pixels, here, here, elsewhere) == 1
    assert share_nearer(lambda a, b: torch.zeros(len(a)), here, beside, elsewhere) == 0.5


@pytest.mark.parametrize("network", [EfficientNet, Tower])
def test_a_network_finds_a_picture_like_itself_and_has_a_gradient(network: type[Perceptual]) -> None:
    here, _, elsewhere = views(4)
    assert share_nearer(network(), here, here, elsewhere) == 1
    assert gradient_seconds(network(), torch.cat([here, elsewhere, here]), 1) > 0


def main() -> None:
    """Print a line for each metric."""
    three = views(256)
    metrics: Sequence[tuple[str, Metric]] = [("pixels", pixels), ("efficientnet", EfficientNet()), ("CLIP tower", Tower())]
    for name, metric in metrics:
        print(f"{name}: {share_nearer(metric, *three):.3f}, {gradient_seconds(metric, three[0]):.3f} s", flush=True)


if __name__ == "__main__":
    main()
