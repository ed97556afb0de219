"""Cameras that look out of the middle of a sphere, and the file `transforms.json` that says where they are.

nerfstudio, instant-ngp and trainers of Gaussian splats read that file. A camera in it is a matrix from its own axes to those of
the world. Its own are to the right, up, and back, as in OpenGL. Those of the world are to the right, ahead, and up, as in
Blender and nerfstudio. Ahead is the centre of the equirectangular picture.
"""

from bisect import bisect
from collections.abc import Sequence
from math import asin, degrees, radians, tan
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from panokit import SettingError
from panokit_sphere.coverage import hole
from panokit_sphere.lattice import lattice
from panokit_sphere.projections import focal, rotation

_MOST = 500
"""The most cameras."""
_TRIED = 4096
"""The directions at which it is tried whether views leave holes, about 3 degrees apart."""
WORLD = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=torch.float64)
"""From right, down and ahead to right, ahead and up."""
_OPENGL = torch.tensor([1.0, -1, -1], dtype=torch.float64)
"""From right, down and ahead to right, up and back."""


@final
class Camera(NamedTuple):
    """A pinhole camera in the middle of the sphere.

    Attributes:
        yaw: how far it is turned to the right, in degrees.
        pitch: how far it looks up, in degrees.
        fov: the angle from its left border to the right one, and from its upper border to the lower one, in degrees.
    """

    yaw: float
    pitch: float
    fov: float

    def places(self, directions: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, "n 2"], Bool[Tensor, "n"]]:
        """Where directions lie on its picture, from -1 at the left and upper border to 1; and whether they are on it.

        Args:
            directions: of any length but 0.
        """
        x, y, z = (directions @ rotation(self.yaw, self.pitch).to(directions)).unbind(-1)
        where = torch.stack([x, y], dim=-1) / (z * tan(radians(self.fov / 2)))[:, None]
        return where, (z > 0) & (where.abs().amax(-1) <= 1)

    def shows(self, directions: Float[Tensor, "n 3"]) -> Bool[Tensor, " n"]:
        """Whether directions lie on its picture."""
        return self.places(directions)[1]


def cameras(count: int, fov: float) -> list[Camera]:
    """Cameras that are spread evenly over the sphere, and see all of it.

    Args:
        count: how many.
        fov: the angle across each picture, in degrees.

    Raises:
        SettingError: the angle is no angle of a view, or so few cameras leave holes.
    """
    if not 0 < fov <= 150:
        raise SettingError(f"fov is {fov}: it must be the angle of a view in degrees, above 0 and up to 150")
    if not 1 <= count <= _MOST:
        raise SettingError(f"count is {count}: it must be a number of views, from 1 to {_MOST}")
    spread = _spread(count, fov)
    if (latitude := _hole(spread)) is not None:
        advice = "take a larger fov"
        if _hole(_spread(_MOST, fov)) is None:
            enough = bisect(range(_MOST), False, lo=count, key=lambda more: _hole(_spread(more, fov)) is None)
            advice = f"take {enough} views, or a larger fov"
        raise SettingError(f"{count} views of {fov:g} degrees leave holes, the first at latitude {latitude}: {advice}")
    return spread


def _spread(count: int, fov: float) -> list[Camera]:
    return [Camera(degrees(torch.atan2(x, z)), degrees(asin(-y)), fov) for x, y, z in lattice(count)]


def _hole(spread: Sequence[Camera]) -> int | None:
    return hole((camera.shows for camera in spread), _TRIED)


def transforms(
    views: Sequence[tuple[str, Camera]], size: int, depths: Sequence[str] = (), points: str | None = None
) -> dict[str, Any]:
    """What `transforms.json` says of pictures.

    Args:
        views: the file of each picture, and its camera. All have one field of view.
        size: pixels along a side of each picture.
        depths: the file of the depth of each picture, if there are any.
        points: the file of points to start from, if there is one.
    """
    frames = [{"file_path": name, "transform_matrix": _matrix(camera).tolist()} for name, camera in views]
    for frame, depth in zip(frames, depths, strict=False):
        frame["depth_file_path"] = depth
    length = focal(views[0][1].fov, size)
    return {
        "camera_model": "OPENCV",
        "fl_x": length,
        "fl_y": length,
        "cx": size / 2,
        "cy": size / 2,
        "w": size,
        "h": size,
        **dict.fromkeys(("k1", "k2", "p1", "p2"), 0.0),
        "orientation_override": "none",  # the world is upright already
        **({} if points is None else {"ply_file_path": points}),
        "frames": frames,
    }


def _matrix(camera: Camera) -> Float[Tensor, "4 4"]:
    """From a camera's axes to those of the world. All cameras are at its origin."""
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = WORLD @ rotation(camera.yaw, camera.pitch) * _OPENGL
    return matrix
