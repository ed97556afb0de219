"""The layout detector, against scenes and stacks of scenes whose truth is known."""

import numpy as np
import pytest
import torch

from panokit_landscapes.layout import CELL, HEIGHT, Detector, Net, _horizons, _most, _stacked, accuracy, stack, targets


def test_it_counts_what_is_there_on_unseen_scenes_and_stacks() -> None:
    for what, share in accuracy(Detector(), count=60).items():
        assert share >= (0.85 if what == "lights of 3" else 0.95), what


def test_a_panorama_is_measured_at_the_height_of_one_scene() -> None:
    """The same at any number of pixels, and as wide as it is."""
    truth = stack(np.random.default_rng((1 << 22, 9)), 2)
    large = np.repeat(np.repeat(np.tile(truth.picture, (1, 3, 1)), 2, 0), 2, 1)
    found = Detector()(large)
    assert found.horizons == pytest.approx(2, abs=0.1)


def test_a_column_counts_where_what_is_above_ends() -> None:
    above = np.zeros((10, 4), bool)
    above[:4, 0] = True  # one
    above[[0, 1, 2, 5, 6, 7], 1] = True  # two
    above[:4, 2] = True
    above[7, 2] = True  # one, and a cell of noise
    assert _horizons(above).tolist() == [1, 2, 1, 0]


def test_lights_are_stacked_where_their_columns_meet() -> None:
    assert _most([]) == 0
    assert _most([3.0, 40.0]) == 1
    assert _most([3.0, 5.0, 40.0]) == 2
    light = np.zeros((32, 32), bool)
    light[4:6, 8:10] = light[20:22, 9:11] = light[4:6, 28:30] = True
    assert _stacked(light) == 2


def test_a_stack_is_what_it_says() -> None:
    for scenes in (1, 2, 3, 4):
        truth = stack(np.random.default_rng(scenes), scenes)
        assert truth.picture.shape == (HEIGHT, HEIGHT, 3)
        assert _horizons(truth.above).tolist() == [scenes] * (HEIGHT // CELL)
        pictures, wanted = targets([truth])
        assert wanted.shape == (1, 2, HEIGHT // CELL, HEIGHT // CELL)
        assert bool(wanted[0, 1].any()) == bool(truth.lights)
        assert float(pictures.abs().max()) <= 1


def test_the_network_says_something_of_every_cell_of_a_picture_of_any_width() -> None:
    with torch.no_grad():
        assert Net()(torch.zeros(2, 3, 128, 512)).shape == (2, 2, 32, 128)
