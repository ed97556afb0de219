"""Projections between equirectangular pictures and pinhole views, against geometry that is written out here."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from panokit_sphere.projections import at, directions, pixel_directions, pixels, rays, rotation, sample, view

SIZE = (64, 128)


def smooth(where: Tensor) -> Tensor:
    """Three colours that are smooth all over the sphere, in [0, 1]."""
    x, y, z = where.unbind(-1)
    return torch.stack([0.5 + 0.4 * x, 0.5 + 0.3 * y * z, 0.5 + 0.2 * z + 0.2 * x * y])


@pytest.mark.parametrize(
    ("yaw", "pitch", "ahead"),
    [
        (0.0, 0.0, (0, 0, 1)),
        (90.0, 0.0, (1, 0, 0)),
        (-90.0, 0.0, (-1, 0, 0)),
        (180.0, 0.0, (0, 0, -1)),
        (0.0, 90.0, (0, -1, 0)),
        (0.0, -90.0, (0, 1, 0)),
        (90.0, 45.0, (math.sqrt(0.5), -math.sqrt(0.5), 0)),
    ],
)
def test_yaw_turns_right_and_pitch_looks_up(yaw: float, pitch: float, ahead: tuple[float, float, float]) -> None:
    turned = rotation(yaw, pitch)
    assert turned[:, 2].tolist() == pytest.approx(ahead, abs=1e-12)
    assert torch.allclose(turned @ turned.T, torch.eye(3, dtype=torch.float64))
    assert torch.linalg.det(turned) == pytest.approx(1)  # no mirror
    assert turned[1, 0] == 0  # no roll: right is level


def test_the_places_of_the_main_directions_on_the_picture() -> None:
    named = {
        (0, 0, 1): (32, 64),
        (1, 0, 0): (32, 96),
        (-1, 0, 0): (32, 32),
        (0, -1, 0): (0, None),
        (0, 1, 0): (64, None),
        (0, -1, 1): (16, 64),
        (0, 0, 7): (32, 64),
    }
    for direction, (row, column) in named.items():
        where = pixels(torch.tensor(direction, dtype=torch.float64), SIZE)
        assert where[0].item() == pytest.approx(row)
        assert column is None or where[1].item() == pytest.approx(column)


def test_places_and_directions_undo_each_other() -> None:
    where = pixel_directions(SIZE)
    rows, columns = pixels(where, SIZE)
    expected = np.meshgrid(np.arange(64) + 0.5, np.arange(128) + 0.5, indexing="ij")
    assert np.allclose(rows, expected[0])
    assert np.allclose(columns, expected[1])
    assert torch.allclose(at(rows, columns, SIZE), where)


def test_a_view_is_a_pinhole_camera() -> None:
    """Its borders are half of the field of view away, its pixels are even on a plane, and its axis is its middle."""
    for fov, (height, width) in ((90.0, (32, 32)), (60.0, (20, 40))):
        x, y, z = rays(fov, (height, width)).unbind(-1)
        assert torch.equal(z, torch.ones_like(z))
        edge = x[0, -1] + (x[0, 1] - x[0, 0]) / 2
        assert math.degrees(math.atan(edge)) == pytest.approx(fov / 2)
        assert torch.allclose(x.diff(dim=1), y.diff(dim=0)[0, 0].expand(height, width - 1))  # square pixels
        assert directions(70.0, 20.0, fov, (height, width)).mean((0, 1)) @ rotation(70.0, 20.0)[:, :2] == pytest.approx(
            [0, 0], abs=1e-9
        )


@pytest.mark.parametrize(
    ("yaw", "pitch"), [(0.0, 0.0), (180.0, 0.0), (-175.0, 10.0), (0.0, 90.0), (37.0, -90.0), (120.0, 80.0)]
)
def test_a_view_shows_what_lies_in_its_directions_over_the_join_and_the_poles(yaw: float, pitch: float) -> None:
    picture = smooth(pixel_directions(SIZE))
    for fov, size in ((90.0, (32, 32)), (60.0, (16, 48))):
        expected = smooth(directions(yaw, pitch, fov, size))
        assert (view(picture, yaw, pitch, fov, size) - expected).abs().max() < 2e-3  # bilinear: (2 pi / 128)^2 / 2


def test_pixels_are_weighted_by_their_distance_across_the_join_and_the_poles() -> None:
    """Bilinear weights, written out with whole numbers of pixels."""
    picture = torch.rand(3, 8, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    places = torch.tensor([[4.5, 0.0], [4.5, 16.0], [2.75, 5.25]], dtype=torch.float64)  # on the join, twice, and elsewhere
    poles = torch.tensor([[0, -1, 0], [0, 1, 0]], dtype=torch.float64)
    where = torch.cat([at(places[:, 0], places[:, 1], (8, 16)), poles])
    expected = [
        (picture[:, 4, 0] + picture[:, 4, 15]) / 2,
        (picture[:, 4, 0] + picture[:, 4, 15]) / 2,
        0.1875 * picture[:, 2, 4] + 0.5625 * picture[:, 2, 5] + 0.0625 * picture[:, 3, 4] + 0.1875 * picture[:, 3, 5],
        picture[:, 0, [7, 8, 15, 0]].mean(1),  # atan2(0, 0) is 0: half ahead, and half behind
        picture[:, 7, [7, 8, 15, 0]].mean(1),
    ]
    assert torch.allclose(sample(picture, where[None])[:, 0], torch.stack(expected, dim=1))


def test_a_small_view_of_a_large_picture_is_the_mean_of_its_pixels() -> None:
    """Of stripes as wide as a pixel only grey is left, not other stripes."""
    picture = (torch.arange(512) % 2).double().expand(3, 256, 512)
    shown = view(picture, 0.0, 0.0, 90.0, (16, 16))
    assert (shown - 0.5).abs().max() < 0.06
    assert view(picture, 0.0, 0.0, 60.0, (512, 512)).std() > 0.2  # and a large view shows them
