"""Measures, on pictures whose numbers are known."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from panokit import Grid, PanokitError, SettingError
from panokit.errors import OutputError
from panokit.study.measures import Features, corners, crops, fid, grain, kid, made, pixels, seam
from panokit.study.statistics import interval
from panokit.testing.toys import Colours


def gaussian(mean: float, count: int = 400, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + mean


def panoramas(mean: float, count: int = 40) -> list[torch.Tensor]:
    return [*gaussian(mean, 10 * count).split(10)]


def test_a_step_at_every_border_is_a_seam_and_a_ramp_is_none() -> None:
    grid = Grid((4, 16), (4, 4), (4, 4), (False, False))
    x = np.arange(32)
    ramp, stairs = (np.broadcast_to(row.astype(np.uint8)[None, :, None], (8, 32, 3)) for row in (x * 4, x * 4 + x // 8 * 40))
    assert seam(ramp, grid, 2) == pytest.approx(1, abs=0.01)
    assert seam(stairs, grid, 2) == pytest.approx(11, abs=0.01)
    assert seam(ramp, Grid((4, 16), (4, 16), (4, 4), (False, False)), 2) == 1
    assert seam(np.zeros((8, 32, 3), np.uint8), grid, 2) == 1


def test_grain_is_in_detail_and_not_in_a_ramp() -> None:
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None], (64, 64, 3))
    assert grain(ramp) == 0
    assert grain(np.random.default_rng(0).integers(0, 9, (64, 64, 3), dtype=np.uint8)) > 1


def test_where_a_picture_is_plain_there_is_noise_and_no_edge() -> None:
    edges = np.zeros((64, 64, 3), np.uint8)
    edges[20:40] = 200
    noisy = edges + np.random.default_rng(0).integers(0, 9, edges.shape, dtype=np.uint8)
    assert grain(edges) > 1000
    assert grain(edges, 0.75) == 0
    assert 1 < grain(noisy, 0.75) < 30 < grain(noisy)


def test_crops_are_full_height_squares_side_by_side() -> None:
    picture = np.repeat(np.arange(4, dtype=np.uint8) * 60, 256)[None, :, None] * np.ones((256, 1, 3), np.uint8)
    found = crops(picture, (128, 128))
    assert found.shape == (4, 128, 128, 3)
    assert [int(square[64, 64, 0]) for square in found] == [0, 60, 120, 180]


def test_squares_may_be_smaller_and_fewer() -> None:
    assert corners((100, 250), 100) == [(0, 25), (0, 125)]
    assert corners((100, 250), 50) == [(top, left) for top in (0, 50) for left in range(0, 250, 50)]
    assert corners((100, 400), 100, 2) == [(0, 0), (0, 200)]
    assert corners((100, 400), 100, 9) == corners((100, 400), 100)
    assert corners((100, 90), 100) == []
    picture = np.random.default_rng(0).integers(256, size=(64, 128, 3), dtype=np.uint8)
    assert np.array_equal(crops(picture, (32, 32), side=32, count=2), [picture[:32, :32], picture[32:, :32]])


def test_a_file_that_is_no_picture_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(OutputError, match=r"a.png cannot be read as a picture: .*, or remove it"):
        pixels(tmp_path / "a.png")


def test_distances_grow_with_what_is_different() -> None:
    """Frechet's of two Gaussians with unit covariance is the squared distance of their means, 4 m^2 in four dimensions."""
    same, near, far = (fid(gaussian(mean, 4000), gaussian(0, 4000, seed=1)) for mean in (0.0, 0.5, 1.0))
    assert same < 0.05
    assert near == pytest.approx(1.0, abs=0.1)
    assert far == pytest.approx(4.0, abs=0.2)
    kids = [kid([panoramas(mean)], [gaussian(0, 100, seed=1)], 20) for mean in (0.0, 0.5, 1.0)]
    assert abs(kids[0].mean()) < 3 * kids[0].std()
    assert kids[0].mean() < kids[1].mean() < kids[2].mean()


def test_kernel_distance_is_the_cubic_kernels() -> None:
    """By hand: two panoramas of one square each, two references, so every subset is all of them."""
    own, beside = gaussian(1, 2), gaussian(0, 2, seed=1)

    def kernel(a: int, b: int, x: torch.Tensor = own, y: torch.Tensor = own) -> float:
        return float((x[a] @ y[b] / 4 + 1) ** 3)

    between = sum(kernel(a, b, own, beside) for a in range(2) for b in range(2)) / 4
    expected = kernel(0, 1) + kernel(0, 1, beside, beside) - 2 * between
    assert kid([[own[:1], own[1:]]], [beside]) == pytest.approx(np.full(100, expected))


def test_a_prompt_is_compared_with_its_own_references() -> None:
    """Prompts far apart are as near to their own as if they were alone, and far from each other's."""
    one, two = panoramas(0), panoramas(5)
    own = [gaussian(0, 100, seed=1), gaussian(5, 100, seed=1)]
    right, wrong = kid([one, two], own, 10), kid([one, two], own[::-1], 10)
    assert right == pytest.approx((kid([one], own[:1], 10) + kid([two], own[1:], 10)) / 2)
    assert abs(right.mean()) < 3 * right.std()
    assert wrong.mean() > 100


def alike(rng: np.random.Generator, likeness: float, seeds: int) -> list[torch.Tensor]:
    """Panoramas of four squares from a standard normal distribution, which are so much alike within each."""
    shared, own = rng.normal(size=(seeds, 1, 8)), rng.normal(size=(seeds, 4, 8))
    return [torch.from_numpy(each) for each in likeness**0.5 * shared + (1 - likeness) ** 0.5 * own]


def test_likeness_within_panoramas_is_no_difference_between_methods(sweeps: bool) -> None:
    """Squares of both methods are of one distribution; in one they are more alike within a panorama."""
    rng = np.random.default_rng(0)
    held, means = [], []
    for _ in range(24 if sweeps else 10):
        beside = [torch.from_numpy(rng.normal(size=(16, 8))) for _ in range(2)]
        one, two = ([alike(rng, likeness, 8) for _ in range(2)] for likeness in (0.7, 0.3))
        found = interval(kid(one, beside, 30) - kid(two, beside, 30))
        held.append(found.low <= 0 <= found.high)
        means.append(found.mean)
    assert np.mean(held) >= 0.8
    assert abs(np.mean(means)) < 3 * np.std(means) / len(means) ** 0.5


def test_the_nearer_of_two_methods_is_told() -> None:
    near, far = ([[gaussian(mean, 4, seed) for seed in range(20)]] * 2 for mean in (0.2, 1.0))
    beside = [gaussian(0, 40, seed=99)] * 2
    assert interval(kid(near, beside) - kid(far, beside)).high < 0


def test_too_few_pictures_are_told() -> None:
    with pytest.raises(
        SettingError, match="KID needs at least 2 panoramas and 2 references for each prompt, but there are 1 and 400"
    ):
        kid([panoramas(0)[:1]], [gaussian(0)])
    with pytest.raises(SettingError, match="FID needs at least 2 squares and 2 references, but there are 1 and 400"):
        fid(gaussian(0, 1), gaussian(0))


def test_features_are_computed_once_and_again_where_they_are_broken(tmp_path: Path) -> None:
    features = Features(Colours(), tmp_path)
    cut = np.full((2, 8, 8, 3), 51, np.uint8)
    first = features.of("a", lambda: cut)
    assert torch.equal(first, torch.full((2, 3), 0.2))
    assert torch.equal(features.of("a", lambda: np.zeros_like(cut)), first)
    (tmp_path / "a.npy").write_text("no features")
    assert torch.equal(features.of("a", lambda: np.zeros_like(cut)), torch.zeros(2, 3))
    assert torch.equal(features.of("a", lambda: cut), torch.zeros(2, 3))


def test_a_network_without_its_files_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lost_network.py").write_text("def Lost():\n    raise FileNotFoundError(2, 'No such file', 'inception.pth')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        SettingError, match=r"lost_network:Lost cannot be made \(FileNotFoundError: .*inception.pth.*\): leave it out"
    ):
        made("lost_network:Lost")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"weights": "a.pth"}, "must be module:Class, or"),
        ("Colours", "a network came as 'Colours': it must be module:Class, or"),
        (
            {"plugin": "panokit.testing.toys:Colours", "weights": "a.pth"},
            "Colours cannot be made .*unexpected keyword argument",
        ),
        ({"plugin": "panokit.study.networks:Inception", "weights": "no.pth"}, "Inception-v3 needs no.pth"),
    ],
)
def test_a_network_that_cannot_be_is_told(network: Any, message: str) -> None:
    with pytest.raises(PanokitError, match=message):
        made(network)
