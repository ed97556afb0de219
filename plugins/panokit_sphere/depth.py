r"""How far everything on an equirectangular picture is: from a file, or from a model that knows pinhole pictures.

A model gives each view $v$ numbers $p_v$ that are an inverse depth but for a scale and a shift of its own, as MiDaS and Depth
Anything do: $1 / z = a_v p_v + b_v$. A direction at the angle $\theta_v$ from the view's axis is then at the inverse distance
$\cos\theta_v (a_v p_v + b_v)$. Views that share a direction must agree there, so $a$ and $b$ are those with the least squares
of the differences. The mean of $a$ is 1, because nothing says how large the scene is. A model that gives distances along the
axis is put together in the same way, with $p_v = 1 / z$.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from panokit import SettingError
from panokit.equirectangular import check_size
from panokit.errors import reason_of
from panokit.opening import decoded, opened
from panokit_sphere.cameras import Camera
from panokit_sphere.lattice import lattice
from panokit_sphere.projections import directions, pixel_directions, rotation, sample, view

if TYPE_CHECKING:
    from transformers import DepthEstimationPipeline

ENDINGS = (".npy", ".png", ".tif", ".tiff")
"""The endings of files of depths."""
VIEWS, FOV, SIDE = 20, 90.0, 512
"""The views that a model gets, the angle of each in degrees, and its pixels along a side. Each direction is in two or more."""
_COMPARED = 4096
"""The directions in which views are compared."""
_FIRM = 1e-6
"""How firmly shifts are held at 0, against the squares of differences: where nothing else decides."""
_DISTANCES = ("depth_pro", "glpn", "zoedepth")
"""Kinds of models, in transformers' names, that give distances."""


def read(path: Path, inverse: bool = False, far: float = 10.0) -> Float[Tensor, "H W"]:
    """Read the distances on an equirectangular picture.

    Args:
        path: an array of numpy (.npy), or a grey picture with 8 or 16 bits. A number is a distance from the middle, not from a
            plane, in any unit. It may have another size than the picture.
        inverse: whether the numbers are 1 / distance.
        far: the largest distance, as a multiple of the median one. What lies beyond is moved there.

    Raises:
        SettingError: there is no such file, it is none of these, it is not twice as wide as high, or a number is no distance.
    """
    depth = _array(path) if path.suffix.lower() == ".npy" else _grey(path)
    if depth.ndim != 2 or not (np.issubdtype(depth.dtype, np.floating) or np.issubdtype(depth.dtype, np.integer)):
        raise SettingError(f"{path} holds {depth.dtype} numbers in the shape {depth.shape}: give distances, height x width")
    check_size((depth.shape[1], depth.shape[0]), str(path))
    numbers = torch.from_numpy(depth.astype(np.float64))
    if wrong := int((~(numbers.isfinite() & (numbers >= 0 if inverse else numbers > 0))).sum()):
        raise SettingError(
            f"{path} holds {wrong} numbers that are no {'inverse ' * inverse}distances: each must be finite, and "
            f"{'0 or more' if inverse else 'above 0'}"
        )
    return _limited(numbers if inverse else 1 / numbers, far)


def _limited(nearness: Float[Tensor, "H W"], far: float) -> Float[Tensor, "H W"]:
    """The distances of inverse distances, none of them farther than a multiple of the median one."""
    median = nearness.median()
    if not median > 0:
        raise SettingError("at least half of the depths are no distances: do they come from a model that estimates depth?")
    return 1 / nearness.clamp(min=median / far)


def _array(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError as cause:
        raise SettingError(f"there is no file {path}") from cause
    except Exception as cause:  # a damaged file can break its reader anywhere
        raise SettingError(f"{path} cannot be read as an array of numpy: {reason_of(cause)}") from cause


def _grey(path: Path) -> Any:
    with opened(path) as image:
        if image.mode not in ("L", "I", "I;16", "I;16B", "F"):
            raise SettingError(f"{path} has colours (mode {image.mode}): distances are shades of grey, with 8 or 16 bits")
        return np.asarray(decoded(image, path))


def load(model: str, device: str | None = None) -> "DepthEstimationPipeline":
    """Load a model that estimates depth.

    Args:
        model: a folder, or a model of the Hugging Face hub. Its weights are safetensors, because pickled ones can hold code.
        device: where it runs, as torch names it; None for transformers' choice.

    Raises:
        SettingError: it cannot be loaded.
    """
    from transformers import pipeline
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return pipeline("depth-estimation", model=model, device=device, model_kwargs={"use_safetensors": True})
    except Exception as cause:  # each kind of model fails in its own way
        advice = "give a folder, or a model of the hub, that transformers' pipeline for depth-estimation takes"
        raise SettingError(f"the depth model {model} cannot be loaded ({reason_of(cause)}): {advice}") from cause
    finally:
        if bars:
            logging.enable_progress_bar()


def gives_inverse(model: "DepthEstimationPipeline") -> bool:
    """Whether a model gives inverse depths. It gives distances if it says so of itself, or is of a kind that does.

    Args:
        model: the model.
    """
    config: Any = model.model.config
    return getattr(config, "depth_estimation_type", "") != "metric" and config.model_type not in _DISTANCES


def estimate(
    picture: Float[Tensor, "3 H W"],
    model: "DepthEstimationPipeline",
    cameras: Sequence[Camera],
    *,
    inverse: bool | None = None,
    far: float = 10.0,
) -> Float[Tensor, "h w"]:
    """Estimate the distances on an equirectangular picture, view by view.

    Args:
        picture: the picture, in [0, 1].
        model: what estimates the depth of a view.
        cameras: the views. They must leave no hole.
        inverse: whether it gives inverse depths, and no distances along the axis of a view; None for what it says itself.
        far: the largest distance, as a multiple of the median one. What lies beyond is moved there.

    Returns:
        The distances. Of inverse depths nobody knows the unit, so their median is 1.

    Raises:
        SettingError: the model gives numbers that are no depths.
    """
    from tqdm import tqdm

    inverse = gives_inverse(model) if inverse is None else inverse
    maps = []
    for camera in tqdm(cameras, desc="depth", leave=False, disable=None):
        maps.append(_depth_of(view(picture, camera.yaw, camera.pitch, camera.fov, (SIDE, SIDE)), model, inverse))
    made = _limited(merged(maps, cameras, SIDE), far)
    return made / made.median() if inverse else made


def along(distances: Float[Tensor, "H W"], camera: Camera, side: int) -> Float[Tensor, "side side"]:
    """The depth of each pixel of a view: how far it is along the axis, and not from the camera.

    Args:
        distances: on an equirectangular picture.
        camera: the view.
        side: its pixels along a side.
    """
    where = directions(camera.yaw, camera.pitch, camera.fov, (side, side))
    return sample(distances[None], where)[0] * _axial(where.flatten(0, 1), camera).reshape(side, side)


def _depth_of(shown: Float[Tensor, "3 h w"], model: "DepthEstimationPipeline", inverse: bool) -> Float[Tensor, "h w"]:
    """The inverse depths of a view, but for a scale and a shift."""
    from panokit.panorama import to_image

    with np.errstate(all="ignore"):  # transformers also makes a picture of them, which divides by 0 where all are alike
        depth = model(to_image(shown))["predicted_depth"].squeeze().cpu().double()
    if depth.ndim != 2 or not depth.isfinite().all():
        raise SettingError(f"the depth model gave numbers in the shape {tuple(depth.shape)} that are no depths of a view")
    return depth if inverse else 1 / depth.clamp(min=1e-6)


def merged(maps: Sequence[Float[Tensor, "h w"]], cameras: Sequence[Camera], height: int) -> Float[Tensor, "height width"]:
    """Put the inverse depths of views together on one equirectangular picture of inverse distances.

    Each view weighs most at its middle and nothing at its border, so that no border shows.

    Args:
        maps: the inverse depths of each view, but for a scale and a shift.
        cameras: the views. They must leave no hole.
        height: of the picture; its width is twice that.
    """
    where = pixel_directions((height, 2 * height)).reshape(-1, 3)
    total, weight = torch.zeros(len(where)).double(), torch.full((len(where),), 1e-12).double()
    for inverse, camera, (scale, shift) in zip(maps, cameras, align(maps, cameras), strict=True):
        places, on = camera.places(where)
        share = (1 - places[on].abs()).clamp(min=1e-3).prod(-1).square()
        total[on] += share * _axial(where[on], camera) * (scale * _at(inverse, places[on]) + shift)
        weight[on] += share
    return (total / weight).reshape(height, 2 * height)


def align(maps: Sequence[Float[Tensor, "h w"]], cameras: Sequence[Camera]) -> list[tuple[float, float]]:
    """The scale and the shift of each view's inverse depths with which views agree best.

    Args:
        maps: the inverse depths of each view.
        cameras: the views.
    """
    where, count = lattice(_COMPARED), len(maps)
    size = torch.cat([inverse.flatten() for inverse in maps]).abs().mean().clamp(min=1e-12)
    rows = torch.zeros(_COMPARED, count, 2 * count, dtype=torch.float64)  # what each view says, by all scales and shifts
    on = torch.zeros(_COMPARED, count, dtype=torch.bool)
    for k, (inverse, camera) in enumerate(zip(maps, cameras, strict=True)):
        places, on[:, k] = camera.places(where)
        axial = _axial(where, camera)
        rows[:, k, k] = axial * _at(inverse, places) / size
        rows[:, k, count + k] = axial
    rows = rows * on[..., None]
    mean = rows.sum(1, keepdim=True) / on.sum(1).clamp(min=1)[:, None, None]
    rows = ((rows - mean) * on[..., None]).flatten(0, 1)
    # Least squares under the condition that the mean of the scales is 1, by a multiplier.
    square = rows.T @ rows / _COMPARED
    square[range(count, 2 * count), range(count, 2 * count)] += _FIRM
    one = torch.cat([torch.ones(count), torch.zeros(count + 1)]).double()
    system = torch.cat([torch.cat([square, one[None, :-1]]), one[:, None]], dim=1)
    solved = torch.linalg.lstsq(system, F.one_hot(torch.tensor(2 * count), 2 * count + 1).double()[:, None] * count).solution
    scales, shifts = solved[:count, 0], solved[count:-1, 0] * size
    return list(zip(scales.tolist(), shifts.tolist(), strict=True))


def _axial(directions: Float[Tensor, "n 3"], camera: Camera) -> Float[Tensor, "n"]:
    """The cosine of the angle between directions of unit length and the axis of a camera."""
    return directions @ rotation(camera.yaw, camera.pitch)[:, 2]


def _at(inverse: Float[Tensor, "h w"], places: Float[Tensor, "n 2"]) -> Float[Tensor, "n"]:
    """The inverse depths at places of a view, between its pixels."""
    grid = places.to(inverse)[None, None]
    return F.grid_sample(inverse[None, None], grid, padding_mode="border", align_corners=False)[0, 0, 0]
