"""Cameras and `transforms.json`: the matrices put every pixel of every view back where it was on the picture."""

import json
import math
from itertools import product

import numpy as np
import pytest
import torch

from panokit import SettingError
from panokit_sphere.cameras import Camera, cameras, transforms
from panokit_sphere.lattice import lattice
from panokit_sphere.projections import pixel_directions, view

SIZE = 48


def test_directions_are_even_and_go_from_the_zenith_to_the_nadir() -> None:
    where = lattice(1000)
    assert torch.allclose(where.norm(dim=-1), torch.ones(1000, dtype=torch.float64))
    assert where.mean(0).norm() < 0.01
    near = (where @ where.T - 2 * torch.eye(1000)).amax(1).acos()
    assert near.min() > 0.6 * math.sqrt(4 * math.pi / 1000)
    assert where[0, 1] < -0.99
    assert where[-1, 1] > 0.99


def test_what_tools_read_puts_all_views_back_on_the_picture() -> None:
    """Written out as a reader does it: rays in OpenGL's axes, through the matrix, to a world whose z is up."""
    picture = pixel_directions((128, 256)).movedim(-1, 0)  # its colours are its directions: right, down, ahead
    spread = cameras(20, 90.0)
    names = [f"images/{k}.png" for k in range(20)]
    data = json.loads(json.dumps(transforms(list(zip(names, spread, strict=True)), SIZE)))
    assert (data["w"], data["h"], data["camera_model"]) == (SIZE, SIZE, "OPENCV")
    assert [frame["file_path"] for frame in data["frames"]] == names
    reached = np.zeros((16, 32), int)
    for camera, frame in zip(spread, data["frames"], strict=True):
        shown = view(picture, camera.yaw, camera.pitch, 90.0, (SIZE, SIZE)).movedim(0, -1).numpy()
        matrix = np.array(frame["transform_matrix"])
        assert matrix[3].tolist() == [0, 0, 0, 1]
        assert np.allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3))
        assert np.linalg.det(matrix[:3, :3]) == pytest.approx(1)
        for row, column in product(range(0, SIZE, 6), range(5, SIZE, 6)):
            ray = [(column + 0.5 - data["cx"]) / data["fl_x"], -(row + 0.5 - data["cy"]) / data["fl_y"], -1]
            right, ahead, up = matrix[:3, :3] @ ray / np.linalg.norm(ray)
            assert shown[row, column] == pytest.approx([right, -up, ahead], abs=2e-3)
            longitude, latitude = math.atan2(right, ahead), math.asin(up)
            reached[int((0.5 - latitude / math.pi) * 16), int((longitude / (2 * math.pi) + 0.5) * 32)] += 1
    assert (reached.sum(1) > 0).all()  # from the zenith to the nadir, and all around the horizon
    assert (reached[8] > 0).all()


def test_a_camera_says_where_directions_lie_on_its_picture() -> None:
    camera = Camera(yaw=90.0, pitch=0.0, fov=90.0)
    directions = torch.tensor([[1.0, 0, 0], [1, 0, -1], [2, 0, 1], [5, -5, 0], [5, 6, 0], [-1, 0, 0]])
    where, on = camera.places(directions)
    assert torch.allclose(where[:5], torch.tensor([[0.0, 0], [1, 0], [-0.5, 0], [0, -1], [0, 1.2]]), atol=1e-6)
    assert on[[0, 2, 4, 5]].tolist() == [True, True, False, False]


@pytest.mark.parametrize("fov", [60.0, 100.0])
def test_the_count_that_a_message_advises_is_enough_and_one_fewer_is_not(fov: float) -> None:
    with pytest.raises(SettingError, match=r"5 views of \d+ degrees leave holes, the first at latitude -?\d+: take \d+ ") as e:
        cameras(5, fov)
    enough = int(str(e.value).partition("take ")[2].split()[0])
    assert len(cameras(enough, fov)) == enough
    with pytest.raises(SettingError):
        cameras(enough - 1, fov)


@pytest.mark.parametrize(
    ("count", "fov", "message"),
    [
        (20, 0.0, "fov is 0.0: it must be the angle of a view in degrees"),
        (20, 180.0, "fov is 180.0: it must be"),
        (20, math.nan, "fov is nan: it must be"),
        (0, 90.0, "count is 0: it must be a number of views"),
        (501, 90.0, "count is 501"),
        (5, 4.0, r"5 views of 4 degrees leave holes, .*: take a larger fov"),
    ],
)
def test_what_no_camera_can_be_is_one_line(count: int, fov: float, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        cameras(count, fov)
