"""Pictures that a run starts from: to vary, to enlarge, to paint a part of anew, or to continue beyond their borders."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from panokit.denoiser import Codec
from panokit.errors import SettingError
from panokit.guidance import Known
from panokit.projecting import canvas_of
from panokit.scheduler import Level
from panokit.settings import Settings
from panokit.windows import Projected, Windows, sampled

SIZE = tuple[int, int]
"""Height and width, in pixels."""
JOIN = 4
"""Pixels at the edge of a mask over which the picture fades into what is painted."""
STRENGTH = 0.8
"""The strength with neither a mask nor a place, as in diffusers' pipelines."""


@final
@dataclass(frozen=True, eq=False)
class Start:
    """What a run starts from: a picture as large as the canvas, and which of its pixels stay.

    Attributes:
        picture: `3 H W`, in [0, 1]. Beyond the borders of a smaller picture, its border pixels go on.
        covered: where the picture lies on the canvas, `H W`.
        stays: the pixels that stay as they are, `H W`: covered ones that are not painted anew.
        strength: the share of the steps that paint, in (0, 1]. In the steps before, all that is covered is known.
        wrap: whether the canvas is a ring along its height, and along its width.
    """

    picture: Float[Tensor, "3 H W"]
    covered: Bool[Tensor, "H W"]
    stays: Bool[Tensor, "H W"]
    strength: float
    wrap: tuple[bool, ...]

    def on(self, windows: Windows, codec: Codec | None, like: Tensor) -> "Latents":
        """Encode the picture for one canvas of the run: its own, or a smaller one, for which the picture is shrunk.

        Args:
            windows: the windows of the canvas.
            codec: encodes the picture; None where the canvas is the picture.
            like: a tensor of the dtype and device of the canvas.
        """
        factor = codec.factor if codec else 1
        picture = self.picture.to(like.device, torch.float32)
        if isinstance(windows, Projected):
            x0 = canvas_of(codec, picture, windows)
            places = windows.places()
            covered, stays = (sampled(pixels[None].float(), places)[0] > 0.999 for pixels in (self.covered, self.stays))
            return Latents(x0.to(like), covered, stays, self.strength)
        high, wide = (cells * factor for cells in windows.size)
        if picture.shape[-2:] != (high, wide):
            picture = nn.functional.interpolate(picture[None], size=(high, wide), mode="area")[0]
        x0 = canvas_of(codec, picture, windows)
        covered, stays = (_whole_cells(pixels, windows.size) for pixels in (self.covered, self.stays))
        return Latents(x0.to(like), covered, stays, self.strength)

    def join(self, painted: Float[Tensor, "3 h W"], top: int = 0) -> Float[Tensor, "3 h W"]:
        """Put the pixels that stay into a painted picture, with a soft edge of `JOIN` pixels around them.

        Args:
            painted: the decoded canvas, or a strip of it.
            top: the row of the canvas with which the strip begins.

        Returns:
            The picture, or the strip of it. Where pixels stay it has their values exactly.
        """
        stays = self._around(top, painted.shape[1])
        if not stays.any():
            return painted
        grown = (self._grown(stays, reach) for reach in range(1, JOIN + 1))
        share = sum(grown, torch.zeros(painted.shape[1:])) / (JOIN + 1)
        share = share.masked_fill(self.stays[top : top + painted.shape[1]], 1).to(painted)
        picture = self.picture[:, top : top + painted.shape[1]].to(painted)
        return torch.where(share == 1, picture, torch.lerp(painted, picture, share))

    def _around(self, top: int, high: int) -> Tensor:
        """The pixels that stay in some rows, and `JOIN` pixels around them on all sides, as 1 and 0."""
        rows, height = torch.arange(top - JOIN, top + high + JOIN), self.stays.shape[0]
        stays = self.stays[rows % height].float()[None, None]
        if not self.wrap[0]:
            stays[..., (rows < 0) | (rows >= height), :] = 0
        return nn.functional.pad(stays, (JOIN, JOIN, 0, 0), mode="circular" if self.wrap[1] else "constant")

    def _grown(self, stays: Tensor, reach: int) -> Tensor:
        """The pixels that stay, and those up to `reach` pixels beside them, as 1 and 0, without what lies around."""
        grown, rest = nn.functional.max_pool2d(stays, 2 * reach + 1, stride=1), JOIN - reach
        return grown[0, 0, rest : grown.shape[-2] - rest, rest : grown.shape[-1] - rest]


@final
@dataclass(frozen=True, eq=False)
class Latents:
    """A start on one canvas.

    Attributes:
        x0: the encoded picture, `c *size`.
        covered: the cells that the picture covers, `*size`.
        stays: the cells that stay, `*size`.
        strength: see `Start`.
    """

    x0: Float[Tensor, "*c_size"]
    covered: Bool[Tensor, "*size"]
    stays: Bool[Tensor, "*size"]
    strength: float

    def covered_first(self, steps: int) -> Bool[Tensor, "*size"] | None:
        """The cells that are known in the first steps, before any is painted; None if all steps paint."""
        return self.covered if painted_steps(steps, self.strength) < steps else None

    def known(self, level: Level) -> Known | None:
        """What is known of the clean canvas at a noise level; None if it is nothing."""
        early = level.step < level.steps - painted_steps(level.steps, self.strength)
        where = self.covered if early else self.stays
        return Known(self.x0, None if where.all() else where) if where.any() else None


def painted_steps(steps: int, strength: float) -> int:
    """The number of steps that paint; the others only add noise to the picture."""
    return min(int(steps * strength), steps)


def start(
    settings: Settings, pictures: Mapping[str, Float[Tensor, "3 H W"]], factor: int, multiple: int | None = None
) -> Start:
    """Make the start of a run from its picture, and its mask if there is one.

    Args:
        settings: height, width, steps, strength, at and wrap, of which height, width and steps are filled in.
        pictures: the pixels of `image`, and perhaps of `mask`, in [0, 1].
        factor: pixels along a side of a cell.
        multiple: sizes of the canvas are multiples of so many pixels; None for those of a cell.

    Returns:
        The start.

    Raises:
        SettingError: a picture does not fit the canvas, or nothing is left to paint.
    """
    pixels, size, steps = pictures["image"], (settings.height or 0, settings.width or 0), settings.steps or 0
    anew: Tensor | None = None
    if "mask" in pictures:
        anew = _fitted_mask(pictures["mask"].mean(0) >= 0.5, (pixels.shape[1], pixels.shape[2]))
    if settings.place is None:
        advice = ", or place the picture on a larger canvas with at, such as 0,0"
        require_shape((pixels.shape[1], pixels.shape[2]), size, multiple or factor, advice=advice)
        pixels = _resized(pixels, size)
        anew = None if anew is None else _any(anew, size)
        top, left = 0, 0
    else:
        left, top = settings.place
        _require_place((left, top), (pixels.shape[1], pixels.shape[2]), size, factor)
    high, wide = pixels.shape[1:]
    around = (left, size[1] - left - wide, top, size[0] - top - high)
    covered = nn.functional.pad(torch.ones(high, wide, dtype=torch.bool), around)
    stays = covered if settings.place else torch.zeros_like(covered)
    if anew is not None:
        stays = covered & ~nn.functional.pad(anew, around)
    if bool(stays.all()):
        raise SettingError(
            "the picture covers the whole canvas, and nothing is left to paint: make the canvas larger, or give a mask that is "
            "white where it should be painted anew"
        )
    strength = (
        (STRENGTH if settings.place is None and anew is None else 1.0) if settings.strength is None else settings.strength
    )
    if painted_steps(steps, strength) < 1:
        raise SettingError(
            f"strength is {strength} with {steps} steps, which leaves none to paint: "
            f"it must be {-(-100 // steps) / 100:g} or more, or there must be more steps"
        )
    filled = nn.functional.pad(pixels[None], around, mode="replicate")[0]
    return Start(filled, covered, stays, strength, settings.wraps)


def own_size(pixels: Float[Tensor, "3 H W"], window: SIZE, factor: int) -> SIZE:
    """The size of a canvas for a picture if none is given: that of the picture, in whole cells, and at least one window."""
    high, wide = pixels.shape[1], pixels.shape[2]
    least = max(1.0, window[0] / high, window[1] / wide)  # a smaller picture is enlarged as a whole
    return round(high * least / factor) * factor, round(wide * least / factor) * factor


def _resized(pixels: Tensor, size: SIZE) -> Tensor:
    if pixels.shape[1:] == size:
        return pixels
    resized = nn.functional.interpolate(pixels[None], size=size, mode="bicubic", antialias=True, align_corners=False)
    return resized[0].clamp(0, 1)


def _fitted_mask(anew: Tensor, size: SIZE) -> Tensor:
    """The mask in the size of its picture.

    Raises:
        SettingError: it has another shape, or is black everywhere.
    """
    high, wide = anew.shape
    if abs(high * size[1] - wide * size[0]) > max(size):
        raise SettingError(
            f"the mask of {wide} x {high} pixels has another shape than the picture of {size[1]} x {size[0]}: "
            "make it as large as the picture"
        )
    if not anew.any():
        raise SettingError("the mask is black everywhere, so nothing would be painted: white is painted anew")
    return _any(anew, size)


def require_shape(picture: SIZE, canvas: SIZE, factor: int, name: str = "the picture", advice: str = "") -> None:
    """Check that a picture can be resized to the canvas without being stretched by more than a cell.

    Args:
        picture: height and width of the picture.
        canvas: height and width of the canvas.
        factor: pixels along a side of a cell.
        name: what the picture is for, for the error.
        advice: what else the user may do, for the error.

    Raises:
        SettingError: it has another shape.
    """
    (high, wide), (height, width) = picture, canvas
    scale = max(height / high, width / wide)
    if max(abs(high * scale - height), abs(wide * scale - width)) > factor * max(1.0, scale):
        fit = round(height / high * wide / factor) * factor
        raise SettingError(
            f"{name} of {wide} x {high} pixels has another shape than the canvas of {width} x {height}: make the width "
            f"{fit}{advice}"
        )


def _require_place(at: SIZE, picture: SIZE, canvas: SIZE, factor: int) -> None:
    """Check that a picture lies on the canvas, at whole cells."""
    (left, top), (high, wide), (height, width) = at, picture, canvas
    if left % factor or top % factor:
        near = tuple(round(n / factor) * factor for n in at)
        raise SettingError(
            f"at is {left},{top}: both must be multiples of {factor}, the pixels of a cell; the nearest is {near[0]},{near[1]}"
        )
    if left < 0 or top < 0 or left + wide > width or top + high > height:
        raise SettingError(
            f"the picture of {wide} x {high} pixels at {left},{top} leaves the canvas of {width} x {height}: "
            f"at goes up to {max(width - wide, 0) // factor * factor},{max(height - high, 0) // factor * factor}"
            + ("; the canvas must be at least as large as the picture" if wide > width or high > height else "")
        )


def _any(pixels: Tensor, size: SIZE) -> Tensor:
    """A mask in another size. A pixel that covers a white one is white, so that no thin stroke is lost."""
    return nn.functional.adaptive_max_pool2d(pixels[None, None].float(), size)[0, 0].bool()


def _whole_cells(pixels: Tensor, size: tuple[int, ...]) -> Tensor:
    """The cells all of whose pixels are true."""
    return -nn.functional.adaptive_max_pool2d(-pixels[None, None].float(), size)[0, 0] > 0.5
