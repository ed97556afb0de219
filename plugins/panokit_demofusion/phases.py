"""The phases of a canvas: how many it holds, and how the influence of the phase before fades within one."""

import math
from collections.abc import Iterable
from functools import lru_cache

import torch
from jaxtyping import Bool
from torch import Tensor

from panokit import Level, SettingError, Windows


def most(size: tuple[int, ...], window: tuple[int, ...]) -> int:
    """The largest number of phases of a canvas: it divides the canvas, and the canvas of the first phase holds a window."""
    largest = min(cells // w for cells, w in zip(size, window, strict=True))
    return max((phases for phases in range(1, largest + 1) if not any(cells % phases for cells in size)), default=1)


def base_of(size: tuple[int, ...], window: tuple[int, ...], phases: int) -> tuple[int, ...]:
    """The canvas of the first of some phases.

    Args:
        size: the canvas of the last phase, one number of cells for each axis.
        window: cells of a window, one number for each axis.
        phases: their number.

    Raises:
        SettingError: `phases` does not divide the canvas, or the base canvas holds no window.
    """
    fits = tuple(max(-(-cells // phases), w) * phases for cells, w in zip(size, window, strict=True))
    if fits != size:
        room = most(size, window)
        raise SettingError(
            f"DemoFusion in {phases} phases needs a canvas of {_by(w * phases for w in window)} cells or more, in steps of "
            f"{phases}, and this one is {_by(size)}: the next that works is {_by(fits)}"
            + (f", and {room} phases fit this one" if room > 1 else "")
        )
    return tuple(cells // phases for cells in size)


def require_phases(phases: int | None, least: int) -> None:
    """Check a number of phases. None is allowed: as many as the canvas holds.

    Raises:
        SettingError: it is smaller than `least`.
    """
    if phases is not None and phases < least:
        raise SettingError(f"phases is {phases}: it must be {least} or more, or None for as many as the canvas holds")


def require_at_least_0(**settings: float) -> None:
    """Check exponents and standard deviations.

    Raises:
        SettingError: a setting is below 0, or not a number.
    """
    for name, value in settings.items():
        if not value >= 0:
            raise SettingError(f"{name} is {value}: it must be 0 or more")


def fading(level: Level, exponent: float) -> float:
    r"""$\left(\tfrac12 (1 + \cos \pi \tau)\right)^\alpha$: from 1 at the first step to nearly 0 at the last one."""
    return ((1 + math.cos(math.pi * level.progress)) / 2) ** exponent


@lru_cache(maxsize=4)
def dilated(windows: Windows) -> Bool[Tensor, " n"]:
    """For each window, whether it spans more cells than it has. Then its cells lie apart."""
    spans = [windows.cells([i])[0].flatten(1) for i in range(len(windows))]
    has = torch.tensor(windows.window)
    return torch.stack([(places.amax(1) - places.amin(1) >= has).any() for places in spans])


def _by(cells: Iterable[int]) -> str:
    return " x ".join(map(str, cells))
