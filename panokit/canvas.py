"""The canvas of a panorama: its size, from settings and the model's defaults, and where its windows lie."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, final

from jaxtyping import Float
from torch import Tensor

from panokit.denoiser import Model
from panokit.errors import ContractError, FallbackWarning, SettingError
from panokit.footage import frames_of
from panokit.layout import Layout
from panokit.picture import own_size
from panokit.rings import Ring
from panokit.settings import Settings
from panokit.windows import Projected, Windows
from panokit.wording import counted

LARGEST = 1 << 30
"""The most pixels of a canvas, in all of its frames: neither memory nor picture formats hold more."""


def filled(settings: Settings, model: Model, image: Float[Tensor, "3 H W"] | None) -> Settings:
    """The settings with the model's defaults.

    Args:
        settings: those that the user has chosen.
        model: makes the panorama.
        image: a picture that the canvas starts from, or a control picture; None for neither. If it is not placed on a larger
            canvas, it gives the default of height and width.
    """
    denoiser, factor = model.denoiser, model.factor
    high, wide = (cells * factor for cells in denoiser.window[-2:])
    films = len(denoiser.window) == 3
    default = (high, wide if films and settings.frames != 1 else 4 * wide)
    if image is not None and settings.place is None and settings.height is None and settings.width is None:
        default = own_size(image, (high, wide), model.unit)
    defaults: dict[str, Any] = {
        "height": default[0],
        "width": default[1],
        "steps": denoiser.steps,
        "guidance_scale": denoiser.guidance_scale,
    }
    if films:
        frames = settings.frames or frames_of(denoiser.window[0], model.time, settings.loops)
        defaults |= {"frames": frames, **({"fps": denoiser.fps} if frames > 1 else {})}
    elif settings.frames == 1:  # which all pictures have
        settings = replace(settings, frames=None)
    return replace(settings, **{name: value for name, value in defaults.items() if getattr(settings, name) is None})


def windows_of(settings: Settings, model: Model, layout: Layout) -> Windows:
    """Where the windows of a panorama lie.

    Args:
        settings: those of the call, with height, width and frames.
        model: makes the panorama.
        layout: lays the windows out.

    Raises:
        ContractError: the layout returned something else.
        SettingError: a size is below one window, no multiple of the codec's factor, or above `LARGEST`; or the stride is
            not from one cell to one window. The message offers the nearest that works.
    """
    multiple, window, stride = model.denoiser.multiple, model.denoiser.window[-2:], settings.stride
    factor = model.unit
    window = tuple(cells // multiple for cells in window)
    pixels = {"height": settings.height or 0, "width": settings.width or 0}
    size = tuple(_cells(n, w, factor, name) for (name, n), w in zip(pixels.items(), window, strict=True))
    if stride is not None and (stride < factor or stride % factor or stride // factor > min(window)):
        largest = min(window) * factor
        near = min(max(round(stride / factor), 1) * factor, largest)
        raise SettingError(
            f"a stride of {stride} pixels does not work with {model.name}: it must be a multiple of {factor} from "
            f"{factor} to {largest}, the window; the nearest is {near}"
        )
    time = _time_of(settings, model)
    if pixels["height"] * pixels["width"] * (settings.frames or 1) > LARGEST:
        canvas = f"{pixels['width']} x {pixels['height']} pixels" + (f" in {settings.frames} frames" if time else "")
        raise SettingError(f"{canvas} are more than a canvas may have, {LARGEST}: make it smaller")
    strides: tuple[int, ...] | None = None
    if stride is not None or settings.frame_stride is not None:
        strides = tuple(max(1, cells // 2) if stride is None else stride // factor for cells in window)
    wraps: tuple[bool, ...] = settings.wraps
    if time:
        size, window, wraps = (time.size, *size), (time.window, *window), (settings.loops, *wraps)
        strides = strides and (time.stride, *strides)
    with pixels_explained(factor, model.time if time else None):
        windows: Any = layout.begin(size, window, strides, wraps, settings.seed)  # in multiples of cells
    name = f"{type(layout).__name__}.begin"
    if not isinstance(windows, Windows):
        raise ContractError(f"{name} returned a {type(windows).__name__}; it must return Windows")
    wrap = wraps if isinstance(windows, Projected) else windows.wrap  # a sphere has no borders to join
    came, asked = ((*windows.size[:-2], *pictured(windows)), windows.window, wrap), (size, window, wraps)
    if came != asked:
        raise ContractError(f"{name} returned windows with (size, window, wrap) {came}; it must be {asked}")
    if stride is None and any(wraps):
        windows = _once_around(windows, model)
    return windows.refined((*(1,) * len(size[:-2]), multiple, multiple)) if multiple > 1 else windows


def pictured(windows: Windows) -> tuple[int, ...]:
    """Height and width of the picture, in cells."""
    return windows.picture if isinstance(windows, Projected) else windows.size[-2:]


@contextmanager
def pixels_explained(side: int, time: int | None = None) -> Iterator[None]:
    """Inside, errors about cells get the size of a cell: layouts and guidances give sizes in cells, users in pixels.

    Args:
        side: pixels along a side of a cell.
        time: frames of a cell of a film; None for a picture.
    """
    try:
        yield
    except SettingError as error:
        if not re.search(r"\bcells?\b", str(error)):
            raise
        cell = f"{side} x {side} pixels"
        if time is not None:
            cell = f"{counted(time, 'frame')} of {cell}, and axis 0 is time"
        raise SettingError(f"{error} (a cell is {cell})") from error


@final
class _Time(NamedTuple):
    """The axis of time of a film, in latent frames.

    Attributes:
        size: of the film.
        window: of a window.
        stride: from one window to the next.
    """

    size: int
    window: int
    stride: int


def _time_of(settings: Settings, model: Model) -> _Time | None:
    """The axis of time; None for a picture.

    Raises:
        SettingError: the model makes pictures, frames do not fit its autoencoder, or frame_stride does not fit a window.
    """
    name, by, frames = model.name, model.time, settings.frames or 1
    if len(model.denoiser.window) == 2:
        if frames != 1:
            advice = "leave frames out"
            if by > 1:
                advice += ", or leave num_frames=1 of the model out"
            raise SettingError(f"frames is {frames}, and {name} makes pictures: it has no time; {advice}")
        given = {
            "frame_stride": settings.frame_stride,
            "fps": settings.fps,
            "wrap": settings.wrap if settings.loops else None,
        }
        for setting, value in given.items():
            if value:
                raise SettingError(f"{setting} {value} is for films, and {name} makes pictures: it has no time; leave it out")
        return None
    if frames == 1 and settings.frame_stride:
        raise SettingError(f"frame_stride is {settings.frame_stride}, and frames is 1, a picture: leave one of them out")
    if frames == 1 and not settings.loops:
        return None
    rest = 0 if settings.loops else 1
    if frames < max(2, by + rest) or (frames - rest) % by:
        low = max(2, by + rest, (frames - rest) // by * by + rest)
        why = f"a loop needs a multiple of {by}" if settings.loops else f"it makes 1, {by + 1}, {2 * by + 1}, ... frames"
        why = "a loop needs 2 or more" if by == 1 else why
        nearest = f"the nearest are {low} and {low + by}" if frames > low else f"the nearest is {low}"
        raise SettingError(f"frames is {frames}, which {name} cannot make: {why}; {nearest}")
    cells = (frames - rest) // by + rest
    window = min(model.denoiser.window[0], cells)
    stride = settings.frame_stride
    if stride is not None and (stride % by or stride // by > window):
        near = min(max(round(stride / by), 1), window) * by
        raise SettingError(
            f"a frame_stride of {stride} does not work with {name}: it must be a multiple of {by} from {by} to "
            f"{window * by}, the window; the nearest is {near}"
        )
    return _Time(cells, window, max(1, window // 2) if stride is None else stride // by)


def _once_around(windows: Windows, model: Model) -> Windows:
    """Windows of which one suffices around a ring of its length, here or on smaller canvases, if the model sees rings."""
    denoiser = model.denoiser
    if denoiser.ringless and Ring.of(windows.once_around()):
        message = (
            f"the model {model.name} does not see a window as a ring ({denoiser.ringless}): windows that overlap go around it"
        )
        warnings.warn(message, FallbackWarning, stacklevel=5)
    return windows.once_around() if denoiser.rings else windows


def _cells(pixels: int, window: int, factor: int, name: str) -> int:
    """Convert pixels to cells of the canvas."""
    least = window * factor
    if pixels < least:
        raise SettingError(
            f"{name} {pixels} is below one window: this model needs {least} pixels or more, in steps of {factor}"
        )
    if pixels % factor:
        near = f"{pixels // factor * factor} or {-(-pixels // factor) * factor}"
        raise SettingError(f"{name} {pixels} is no multiple of {factor}, which this model needs: the nearest are {near}")
    return pixels // factor
