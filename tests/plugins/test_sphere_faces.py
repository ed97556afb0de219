"""Cube faces: they join without a gap, and lie as OpenGL says."""

import pytest
import torch
from torch import Tensor

from panokit import SettingError
from panokit_sphere.faces import FACES, cross, faces
from panokit_sphere.projections import directions, pixel_directions

SIZE = 24
JOINS = [
    ("front", "right", "right", "left"),
    ("right", "right", "back", "left"),
    ("back", "right", "left", "left"),
    ("left", "right", "front", "left"),
    ("up", "bottom", "front", "top"),
    ("down", "top", "front", "bottom"),
    ("up", "right", "right", "top"),
    ("down", "right", "right", "bottom"),
    ("up", "top", "back", "top"),
    ("down", "bottom", "back", "bottom"),
    ("up", "left", "left", "top"),
    ("down", "left", "left", "bottom"),
]
"""All twelve edges of the cube: a face, its border, and the face and border that join it."""


def border(face: Tensor, side: str) -> Tensor:
    """The last pixels before a border, from left to right or from top to bottom."""
    return {"left": face[:, :, 0], "right": face[:, :, -1], "top": face[:, 0], "bottom": face[:, -1]}[side]


@pytest.fixture(scope="module")
def places() -> dict[str, Tensor]:
    """The faces of a picture whose colours are its directions."""
    return faces(pixel_directions((256, 512)).movedim(-1, 0), SIZE)


@pytest.mark.parametrize("edge", JOINS, ids=lambda edge: "-".join(edge[::2]))
def test_faces_join_at_every_edge(edge: tuple[str, str, str, str], places: dict[str, Tensor]) -> None:
    """Pixels on both sides of an edge look half a pixel to each side of it: so they are one pixel apart, as all neighbours."""
    one, two = border(places[edge[0]], edge[1]), border(places[edge[2]], edge[3])
    best = min((two, two.flip(-1)), key=lambda other: (one - other).norm())
    assert (one - best).norm(dim=0).max() < 1.05 * 2 / SIZE
    middle = (one + best) / 2
    assert (
        middle.abs().sort(dim=0).values[1] - middle.abs().amax(0)
    ).abs().max() < 0.02  # two coordinates of an edge are alike


@pytest.mark.parametrize("name", FACES)
def test_a_face_lies_as_in_a_cube_map_of_opengl(name: str, places: dict[str, Tensor]) -> None:
    """The table of the specification (OpenGL 4.6, 8.13), in its left-handed axes: x right, y up, z ahead."""
    s, t = ((torch.arange(SIZE) + 0.5) / SIZE * 2 - 1,) * 2
    t, s = torch.meshgrid(t, s, indexing="ij")  # the first row of a picture has the smallest t
    one = torch.ones_like(s)
    x, y, z = {
        "right": (one, -t, -s),
        "left": (-one, -t, s),
        "up": (s, one, t),
        "down": (s, -one, -t),
        "front": (s, -t, one),
        "back": (-s, -t, -one),
    }[name]
    expected = torch.nn.functional.normalize(torch.stack([x, -y, z]), dim=0)
    assert (places[name] - expected).abs().max() < 0.01


def test_a_cross_shows_each_face_once_beside_those_it_joins(places: dict[str, Tensor]) -> None:
    whole = cross(places)
    assert whole.shape == (3, 3 * SIZE, 4 * SIZE)
    for name, (row, column) in {"up": (0, 1), "left": (1, 0), "front": (1, 1), "back": (1, 3), "down": (2, 1)}.items():
        assert torch.equal(whole[:, row * SIZE : (row + 1) * SIZE, column * SIZE : (column + 1) * SIZE], places[name])
    steps = whole[:, SIZE : 2 * SIZE].diff(dim=-1).norm(dim=0)
    assert steps.max() < 1.05 * 2 / SIZE  # around the horizon there is no jump
    assert whole[:, :SIZE, :SIZE].abs().max() == 0


def test_a_face_has_the_pixels_of_the_picture_at_its_horizon() -> None:
    assert faces(torch.zeros(3, 32, 64))["up"].shape == (3, 16, 16)
    assert directions(0.0, 0.0, 90.0, (16, 16)).shape == (16, 16, 3)
    with pytest.raises(SettingError, match="size is 0: it must be a number of pixels"):
        faces(torch.zeros(3, 32, 64), 0)
