"""Measures, on pictures whose numbers are known."""

from pathlib import Path

import numpy as np
import pytest
import torch

from panokit import Grid, PanokitError, SettingError
from panokit.study.measures import Features, apart, crops, fid, grain, kid, made, seam, table
from panokit.testing.toys import Colours


def gaussian(mean: float, count: int = 400, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + mean


def test_a_step_at_every_border_is_a_seam_and_a_ramp_is_none() -> None:
    grid = Grid((4, 16), (4, 4), (4, 4), (False, False))
    x = np.arange(32)
    ramp, stairs = (np.broadcast_to(row.astype(np.uint8)[None, :, None], (8, 32, 3)) for row in (x * 4, x * 4 + x // 8 * 40))
    assert seam(ramp, grid, 2) == pytest.approx(1, abs=0.01)
    assert seam(stairs, grid, 2) == pytest.approx(11, abs=0.01)
    assert seam(ramp, Grid((4, 16), (4, 16), (4, 4), (False, False)), 2) == 1


def test_grain_is_in_detail_and_not_in_a_ramp() -> None:
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None], (64, 64, 3))
    assert grain(ramp) == 0
    assert grain(np.random.default_rng(0).integers(0, 9, (64, 64, 3), dtype=np.uint8)) > 1


def test_crops_are_full_height_squares_side_by_side() -> None:
    picture = np.repeat(np.arange(4, dtype=np.uint8) * 60, 256)[None, :, None] * np.ones((256, 1, 3), np.uint8)
    found = crops(picture, (128, 128))
    assert found.shape == (4, 128, 128, 3)
    assert [int(square[64, 64, 0]) for square in found] == [0, 60, 120, 180]


def test_distances_grow_with_what_is_different() -> None:
    """Frechet's of two Gaussians with unit covariance is the squared distance of their means, 4 m^2 in four dimensions."""
    same, near, far = (fid(gaussian(mean, 4000), gaussian(0, 4000, seed=1)) for mean in (0.0, 0.5, 1.0))
    assert same < 0.05
    assert near == pytest.approx(1.0, abs=0.1)
    assert far == pytest.approx(4.0, abs=0.2)
    kids = [kid([gaussian(mean)], [gaussian(0, seed=1)]) for mean in (0.0, 0.5, 1.0)]
    assert abs(kids[0].mean) < 3 * kids[0].deviation
    assert kids[0].mean < kids[1].mean < kids[2].mean


def test_a_prompt_is_compared_with_its_own_references() -> None:
    """Prompts far apart are as near to their own as if they were alone, and far from each other's."""
    one, two = gaussian(0), gaussian(5)
    own = [gaussian(0, seed=1), gaussian(5, seed=1)]
    right, wrong = kid([one, two], own), kid([one, two], own[::-1])
    assert right.mean == pytest.approx(np.mean([kid([one], own[:1]).mean, kid([two], own[1:]).mean]))
    assert abs(right.mean) < 3 * right.deviation
    assert wrong.mean > 100


def test_the_nearer_of_two_methods_is_told() -> None:
    near, far = ([[gaussian(mean, 4, seed) for seed in range(20)]] * 2 for mean in (0.2, 1.0))
    found = apart(near, far, [gaussian(0, seed=99)] * 2)
    assert np.percentile(found, 97.5) < 0
    same = apart(near, [[gaussian(0.2, 4, seed + 100) for seed in range(20)]] * 2, [gaussian(0, seed=99)] * 2)
    assert np.percentile(same, 2.5) < 0 < np.percentile(same, 97.5)


def test_too_few_pictures_are_told() -> None:
    with pytest.raises(SettingError, match="KID needs 4 pictures or more of each kind and prompt: there are 3 and 400"):
        kid([gaussian(0), gaussian(0, 3)], [gaussian(0), gaussian(0)])
    with pytest.raises(SettingError, match="FID needs 2 pictures or more of each kind: there are 1 and 400"):
        fid(gaussian(0, 1), gaussian(0))


def test_features_are_computed_once(tmp_path: Path) -> None:
    features = Features(Colours(), tmp_path / "kept")
    cut = np.full((2, 8, 8, 3), 51, np.uint8)
    first = features.of(tmp_path / "a.png", cut)
    assert torch.equal(first, torch.full((2, 3), 0.2))
    assert torch.equal(features.of(tmp_path / "a.png", np.zeros_like(cut)), first)


def test_a_network_without_its_files_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lost_network.py").write_text("def Lost():\n    raise FileNotFoundError(2, 'No such file', 'inception.pth')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SettingError, match=r"lost_network:Lost cannot be made \(.*inception.pth.*\): leave it out"):
        made("lost_network:Lost")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"weights": "a.pth"}, "must be module:Class, or"),
        (
            {"plugin": "panokit.testing.toys:Colours", "weights": "a.pth"},
            "Colours cannot be made .*unexpected keyword argument",
        ),
        ({"plugin": "panokit.study.networks:Inception", "weights": "no.pth"}, "Inception-v3 needs no.pth"),
    ],
)
def test_a_network_that_cannot_be_is_told(network: dict[str, str], message: str) -> None:
    with pytest.raises(PanokitError, match=message):
        made(network)


def test_a_table_is_markdown() -> None:
    assert table([["a", "b"], ["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"
