"""Fractal noise without detail finer than a pixel. So a zoom adds detail, and nothing aliases."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.floating]
Cells = NDArray[np.int64]


def chance(seed: int, *cells: Cells) -> Array:
    """Independent uniform numbers in [0, 1), one for each cell. A cell has one or two integers, which are broadcast."""
    h = np.array(seed * 0x9E3779B1 & 0xFFFFFFFF, np.uint32)
    for factor, cell in zip((0x85EBCA6B, 0xC2B2AE35), cells, strict=False):
        mixed = (h ^ cell.astype(np.uint32)) * np.uint32(factor)
        mixed = (mixed ^ (mixed >> np.uint32(15))) * np.uint32(0x2C1B3C6D)
        h = mixed ^ (mixed >> np.uint32(13))
    return np.asarray(h >> np.uint32(8), np.float32) * np.float32(2.0**-24)


def cell_of(c: Array) -> tuple[Cells, Array]:
    """The integer cell of each coordinate, and the position inside the cell, in [0, 1)."""
    low = np.floor(c)
    return low.astype(np.int64), c - low


def smooth(t: ArrayLike) -> Array:
    """Smoothstep: 3t^2 - 2t^3, with t clipped to [0, 1]."""
    x = np.clip(np.asarray(t, np.float32), 0, 1)
    return np.asarray(x * x * (3 - 2 * x))


def noise1(seed: int, x: Array, sharp: bool) -> Array:
    """Value noise in [0, 1] on a lattice with spacing 1. It is piecewise linear if `sharp`, else smooth."""
    cell, t = cell_of(x)
    first = int(cell.min())
    values = chance(seed, np.arange(first, int(cell.max()) + 2))
    a, b = values[cell - first], values[cell - first + 1]
    return a + (b - a) * (t if sharp else smooth(t))


def fractal1(seed: int, x: Array, frequency: float, pixel: float, gain: float = 0.5, sharp: bool = False) -> Array:
    """Fractal noise along one axis, with mean 0 and a range of about +-0.5 / (1 - gain).

    Args:
        seed: of the random numbers.
        x: scene coordinates.
        frequency: of the first octave, in lattice cells along 1 of scene coordinates. Each octave about doubles it.
        pixel: size of a pixel in scene coordinates. Octaves that are finer are left out, at most nine are added.
        gain: amplitude of an octave relative to the one before.
        sharp: whether the noise is piecewise linear.
    """
    total, amplitude, octave = np.zeros_like(x), 1.0, 0
    while frequency * pixel < 0.5 and octave < 9:
        fade = min(1.0, 2 - 4 * frequency * pixel)
        total += np.float32(amplitude * fade) * (noise1(seed + octave, x * np.float32(frequency), sharp) - 0.5)
        amplitude, frequency, octave = amplitude * gain, frequency * 2.03, octave + 1
    return total


def _lattice_weights(c: Array) -> tuple[Array, Cells]:
    """The matrix (len(c), n) that interpolates between the n lattice points around the coordinates, and these points."""
    cell, inside = cell_of(c)
    points = np.arange(cell.min(), cell.max() + 2)
    weights = np.zeros((len(c), len(points)), np.float32)
    rows, t = np.arange(len(c)), smooth(inside)
    weights[rows, cell - points[0]] = 1 - t
    weights[rows, cell - points[0] + 1] = t
    return weights, points


def fractal2(seed: int, x: Array, y: Array, step: float, gain: float = 0.5, octaves: int = 6) -> Array:
    """Fractal noise with mean 0 on the grid of y and x, (len(y), len(x)).

    Args:
        seed: of the random numbers.
        x: coordinates of the columns, in lattice cells of the first octave. Each octave doubles the frequency.
        y: coordinates of the rows, in the same unit.
        step: size of a pixel, in lattice cells of the first octave. Octaves that are finer are left out.
        gain: amplitude of an octave relative to the one before.
        octaves: the most octaves to add.
    """
    total, amplitude = np.zeros((len(y), len(x)), np.float32), 1.0
    for octave in range(octaves):
        if step >= 0.5:
            break
        (wx, cx), (wy, cy) = _lattice_weights(x), _lattice_weights(y)
        lattice = chance(seed + octave, cy[:, None], cx[None, :]) - np.float32(0.5)
        total += np.float32(amplitude * min(1.0, 2 - 4 * step)) * (wy @ lattice @ wx.T)
        x, y, step, amplitude = x * 2 + 0.37, y * 2 + 0.71, step * 2, amplitude * gain
    return total
