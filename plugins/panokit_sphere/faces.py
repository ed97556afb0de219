"""The six faces of a cube around the viewer, as game engines and viewers take a sky.

A face is a view of 90 degrees, seen from inside. The four around stand upright. The lower border of `up` and the upper border
of `down` join `front`. So cube maps lie in OpenGL, Vulkan and Direct3D, where they are +X right, -X left, +Y up, -Y down, +Z
front, -Z back; and so pannellum's `cubemap` takes them.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from panokit import SettingError
from panokit_sphere.projections import view

FACES: Mapping[str, tuple[float, float]] = {
    "front": (0.0, 0.0),
    "right": (90.0, 0.0),
    "back": (180.0, 0.0),
    "left": (-90.0, 0.0),
    "up": (0.0, 90.0),
    "down": (0.0, -90.0),
}
"""The faces, and the yaw and pitch of each in degrees."""
_CROSS = {"up": (0, 1), "left": (1, 0), "front": (1, 1), "right": (1, 2), "back": (1, 3), "down": (2, 1)}
"""Where the faces lie on a cross: row and column."""


def faces(picture: Float[Tensor, "c H W"], size: int | None = None) -> dict[str, Float[Tensor, "c size size"]]:
    """The faces of a cube, by their names.

    Args:
        picture: an equirectangular picture.
        size: pixels along a side of a face; None for a quarter of the picture's width, as many as it has at the horizon.

    Raises:
        SettingError: the size is less than a pixel.
    """
    size = picture.shape[-1] // 4 if size is None else size
    if size < 1:
        raise SettingError(f"size is {size}: it must be a number of pixels along a side of a face, 1 or more")
    return {name: view(picture, yaw, pitch, 90.0, (size, size)) for name, (yaw, pitch) in FACES.items()}


def cross(sides: Mapping[str, Float[Tensor, "c size size"]]) -> Float[Tensor, "c h w"]:
    """The faces on one picture, four wide and three high, each beside those that it joins. The rest is black.

    Args:
        sides: the faces, as `faces` gives them.
    """
    front = sides["front"]
    channels, size, _ = front.shape
    whole = torch.zeros(channels, 3 * size, 4 * size).to(front)
    for name, (row, column) in _CROSS.items():
        whole[:, row * size : (row + 1) * size, column * size : (column + 1) * size] = sides[name]
    return whole
