"""Directions, and where they lie on an equirectangular picture and in a pinhole view.

A direction is `x y z`: to the right, down, and ahead, as OpenCV has it. The centre of an equirectangular picture is ahead. Its
columns are longitudes, which grow to the right, and its first row is the zenith. The centre of a picture's first pixel is at
0.5, so its borders are at 0 and at its width. A view turns to the right by its yaw, and up by its pitch, without a roll.
"""

from math import ceil, cos, pi, radians, sin, tan
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def rotation(yaw: float, pitch: float) -> Float[Tensor, "3 3"]:
    """The directions to the right of a view, down in it, and ahead, as columns.

    Args:
        yaw: how far it is turned to the right, in degrees.
        pitch: how far it looks up, in degrees.
    """
    (c, s), (cp, sp) = ((cos(radians(angle)), sin(radians(angle))) for angle in (yaw, pitch))
    return torch.tensor([[c, s * sp, s * cp], [0, cp, -sp], [-s, c * sp, c * cp]], dtype=torch.float64)


def focal(fov: float, width: int) -> float:
    """The focal length of a view, in pixels.

    Args:
        fov: the angle from its left border to the right one, in degrees, below 180.
        width: in pixels.
    """
    return width / 2 / tan(radians(fov / 2))


def rays(fov: float, size: tuple[int, int]) -> Float[Tensor, "h w 3"]:
    """Where the pixels of a view look, as the view itself has it: a distance of one ahead, and so not of unit length.

    Args:
        fov: the angle across its width, in degrees, below 180.
        size: height and width in pixels.
    """
    height, width = size
    y, x = (torch.arange(n, dtype=torch.float64) + 0.5 - n / 2 for n in (height, width))
    down, right = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([right, down, torch.full_like(down, focal(fov, width))], dim=-1) / focal(fov, width)


def directions(yaw: float, pitch: float, fov: float, size: tuple[int, int]) -> Float[Tensor, "h w 3"]:
    """The direction of each pixel of a view, of unit length.

    Args:
        yaw: how far it is turned to the right, in degrees.
        pitch: how far it looks up, in degrees.
        fov: the angle across its width, in degrees, below 180.
        size: height and width in pixels.
    """
    return F.normalize(rays(fov, size) @ rotation(yaw, pitch).T, dim=-1)


def pixels(
    directions: Float[Tensor, "*places 3"], size: tuple[int, int]
) -> tuple[Float[Tensor, "*places"], Float[Tensor, "*places"]]:
    """Where directions lie on an equirectangular picture: row and column, from 0 to its height and width.

    Args:
        directions: of any length but 0.
        size: height and width of the picture.
    """
    right, down, ahead = directions.unbind(-1)
    latitude, longitude = torch.atan2(-down, torch.hypot(right, ahead)), torch.atan2(right, ahead)
    return (0.5 - latitude / pi) * size[0], (0.5 + longitude / (2 * pi)) * size[1]


def pixel_directions(size: tuple[int, int]) -> Float[Tensor, "H W 3"]:
    """The direction of each pixel of an equirectangular picture, of unit length.

    Args:
        size: its height and width.
    """
    height, width = size
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) + 0.5 for n in (height, width)), indexing="ij")
    return at(rows, columns, size)


def at(rows: Float[Tensor, "*places"], columns: Float[Tensor, "*places"], size: tuple[int, int]) -> Float[Tensor, "*places 3"]:
    """The directions of places on an equirectangular picture: what `pixels` undoes.

    Args:
        rows: from 0 to the height.
        columns: from 0 to the width.
        size: height and width of the picture.
    """
    latitude, longitude = (0.5 - rows / size[0]) * pi, (columns / size[1] - 0.5) * 2 * pi
    across = latitude.cos()
    return torch.stack([across * longitude.sin(), -latitude.sin(), across * longitude.cos()], dim=-1)


def sample(
    picture: Float[Tensor, "c H W"], directions: Float[Tensor, "h w 3"], mode: Literal["bilinear", "nearest"] = "bilinear"
) -> Float[Tensor, "c h w"]:
    """What an equirectangular picture shows in some directions.

    The picture has no border: its left joins its right, and beyond a pole it goes on at the opposite longitude.

    Args:
        picture: of an even width.
        directions: of any length but 0.
        mode: between pixels, mix them by their distance, or take the nearest.
    """
    height, width = picture.shape[1:]
    over = picture.roll(width // 2, dims=-1)
    whole = torch.cat([over[:, :1], picture, over[:, -1:]], dim=1)
    whole = torch.cat([whole[..., -1:], whole, whole[..., :1]], dim=2)
    row, column = pixels(directions.to(picture), (height, width))
    grid = torch.stack([2 * (column + 1) / (width + 2) - 1, 2 * (row + 1) / (height + 2) - 1], dim=-1)
    return F.grid_sample(whole[None], grid[None], mode=mode, align_corners=False)[0]


def view(
    picture: Float[Tensor, "c H W"], yaw: float, pitch: float, fov: float, size: tuple[int, int]
) -> Float[Tensor, "c h w"]:
    """What a pinhole camera sees of an equirectangular picture.

    Where the picture has more pixels than the view, a pixel of the view is the mean of several.

    Args:
        picture: of an even width.
        yaw: how far the camera is turned to the right, in degrees.
        pitch: how far it looks up, in degrees.
        fov: the angle across the width of the view, in degrees, below 180.
        size: height and width of the view, in pixels.
    """
    height, width = size
    factor = ceil(picture.shape[-1] / (2 * pi) / focal(fov, width))  # the picture's pixels in one of the view's
    fine = sample(picture, directions(yaw, pitch, fov, (height * factor, width * factor)))
    return F.avg_pool2d(fine[None], factor)[0]
