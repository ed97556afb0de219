"""The procedural world: reproducible, at most one light, one scene at every zoom."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from panokit_landscapes.world import FAMILIES, TIMES, render, sample_scene, training_picture, zoom_box

SCENES = [(family, time) for family in FAMILIES for time in TIMES]


@pytest.mark.parametrize("family", FAMILIES)
def test_same_seed_same_picture(family: str) -> None:
    first, again, other = (sample_scene(np.random.default_rng(seed), family) for seed in (3, 3, 4))
    assert first == again != other
    np.testing.assert_array_equal(render(first, 64), render(again, 64))
    assert (render(first, 64) != render(other, 64)).any()


@pytest.mark.parametrize(("family", "time"), SCENES)
def test_scene_is_as_asked_and_has_at_most_one_light(family: str, time: str) -> None:
    for seed in range(10):
        scene = sample_scene(np.random.default_rng(seed), family, time)
        assert (scene.family, scene.time) == (family, time)
        assert 0 < scene.horizon < 1
        assert (scene.light is None) == (scene.light_kind == "none")
        if scene.light is not None:
            assert scene.light_kind == ("moon" if time == "night" else "sun")
            assert 0 < scene.light[0] < 1
            assert 0 < scene.light[1] < scene.horizon


@pytest.mark.parametrize(("family", "time"), SCENES)
def test_light_is_the_only_bright_disc_of_a_wide_clear_sky(family: str, time: str) -> None:
    lit = (sample_scene(np.random.default_rng(seed), family, time) for seed in range(100))
    scene = next(s for s in lit if s.light is not None and s.weather == "clear")
    dark = dataclasses.replace(scene, light=None, light_kind="none", seed=scene.seed // 2 * 2 + (scene.light[0] > 0.5))
    with_light, without = (
        render(dataclasses.replace(s, seed=dark.seed), (64, 256), (-1, 0, 3, 1)).astype(int) for s in (scene, dark)
    )
    sky = slice(0, int(64 * scene.light[1]) + 8)
    rows, columns = np.nonzero((with_light - without).max(axis=2)[sky] > 60)
    assert len(columns) > 0
    assert np.ptp(columns) < 32
    assert abs(columns.mean() - 64 * (1 + scene.light[0])) < 4
    assert abs(rows.mean() - 64 * scene.light[1]) < 6


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("zoom", [1.0, 1.7, 3.0, 4.0])
def test_zoomed_box_shows_the_same_scene(family: str, zoom: float) -> None:
    rng = np.random.default_rng(int(zoom * 10))
    scene = sample_scene(rng, family)
    box = zoom_box(rng, zoom)
    whole = Image.fromarray(render(scene, 512))
    crop = np.asarray(whole.resize((128, 128), Image.Resampling.BOX, tuple(512 * v for v in box)), float)
    assert np.abs(render(scene, 128, box) - crop).mean() < 4


@pytest.mark.parametrize("family", FAMILIES)
def test_zoom_adds_detail(family: str) -> None:
    scene = sample_scene(np.random.default_rng(5), family, "day")
    box = (0.3, scene.horizon - 0.2, 0.55, scene.horizon + 0.05)
    near = render(scene, 128, box).astype(float)
    far = Image.fromarray(render(scene, 32, box)).resize((128, 128), Image.Resampling.BICUBIC)
    assert np.abs(near - np.asarray(far, float)).mean() > 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_tiles_of_a_wide_scene_agree_with_the_whole(family: str) -> None:
    scene = sample_scene(np.random.default_rng(2), family)
    wide = render(scene, (64, 256), (0, 0, 4, 1))
    assert wide.shape == (64, 256, 3)
    tiles = np.concatenate([render(scene, 64, (i, 0, i + 1, 1)) for i in range(4)], axis=1)
    assert np.abs(wide.astype(int) - tiles).mean() < 1


@pytest.mark.parametrize("family", FAMILIES)
def test_any_part_can_be_painted(family: str) -> None:
    rng = np.random.default_rng(7)
    scene = sample_scene(rng, family)
    for _ in range(20):
        x, y, side = rng.uniform(-3, 3), rng.uniform(0, 0.9), rng.uniform(0.01, 0.1)
        assert render(scene, (8, 12), (x, y, x + side, y + side)).shape == (8, 12, 3)


def test_zoom_box_lies_in_the_scene() -> None:
    rng = np.random.default_rng(0)
    for zoom in (1, 1.5, 4):
        x0, y0, x1, y1 = zoom_box(rng, zoom)
        assert min(x0, y0) >= 0
        assert max(x1, y1) <= 1 + 1e-9
        assert x1 - x0 == pytest.approx(1 / zoom)
        assert y1 - y0 == pytest.approx(1 / zoom)


def test_training_picture() -> None:
    rng = np.random.default_rng(1)
    drawn = [training_picture(rng) for _ in range(24)]
    assert all(p.shape == (128, 128, 3) and p.dtype == np.uint8 for p, _, _ in drawn)
    assert all(text == scene.caption for _, text, scene in drawn)
    assert len({scene.family for _, _, scene in drawn}) > 4
    again = training_picture(np.random.default_rng(1))
    np.testing.assert_array_equal(drawn[0][0], again[0])


def test_errors_name_what_came_and_what_was_expected() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"'swamp'.*lake"):
        sample_scene(rng, "swamp")
    with pytest.raises(ValueError, match=r"'noon'.*dawn"):
        sample_scene(rng, "lake", "noon")
    with pytest.raises(ValueError, match=r"0\.5.*zoom >= 1"):
        zoom_box(rng, 0.5)
    with pytest.raises(ValueError, match="empty box"):
        render(sample_scene(rng), 8, (0.5, 0, 0.5, 1))
