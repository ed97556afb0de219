"""Paints each of the eight families of landscapes, from far to near."""

from collections.abc import Callable

import numpy as np

from panokit_landscapes.world.noise import Array, cell_of, chance, fractal1, fractal2, noise1, smooth
from panokit_landscapes.world.painter import Painter, mix, rgb


def _range(
    p: Painter,
    level: float,
    height: float,
    frequency: float,
    albedo: Array,
    haze: float,
    snow: float = 0.0,
    fog: float = 0.3,
) -> None:
    """Paint a mountain range. Its sharp ridge line rises up to about `height` above `level`."""
    seed = p.seed()

    def rise(x: Array, pixel: float = 0.02) -> Array:
        return height * (0.45 + 0.9 * fractal1(seed, x, frequency, pixel, 0.45, True))

    p.mountains(level - rise(p.x, p.pixel), rise, albedo, haze, snow, fog)


def _rolling(p: Painter, level: float, height: float, frequency: float, gain: float = 0.35) -> Array:
    """A smooth hill line y(x)."""
    return level - height * fractal1(p.seed(), p.x, frequency, p.pixel, gain)


def _lake(p: Painter, true_rows: Array) -> None:
    h = p.scene.horizon
    _range(p, h - 0.02, 0.34, 2.2, rgb("7c86a4"), 0.5, snow=0.10)
    _range(p, h, 0.22, 2.8, rgb("5c7a78"), 0.26)
    shore = np.minimum(_rolling(p, h - 0.012, 0.07, 2.0), h - 0.004)
    p.hill(shore, rgb("3c6438"), 0.06)
    p.pines(shore + 0.004, 0.075, 0.13, p.hazy(p.lit(rgb("24482c"), 0.4), 0.06), 0.5)
    p.water(true_rows, rgb("1c5c84"), 0.55, 0.9)


def _desert(p: Painter, _: Array) -> None:
    h = p.scene.horizon
    sand = rgb("f8b858") if p.scene.time != "night" else rgb("d8bcac")
    _range(p, h + 0.02, 0.13, 2.5, rgb("c08060"), 0.55)
    for level, height, frequency, haze in ((0.02, 0.09, 1.9, 0.35), (0.12, 0.16, 1.3, 0.15), (0.30, 0.22, 0.9, 0.0)):
        _dune(p, h + level, height, frequency, sand, haze)


def _dune(p: Painter, level: float, height: float, frequency: float, sand: Array, haze: float) -> None:
    """Paint a chain of dunes. From each peak, a crest winds down between the lit and the shaded slope."""
    seed, bend = p.seed(), p.seed()

    def rise(x: Array) -> Array:
        return np.asarray(1 - np.abs(2 * noise1(seed, x * np.float32(frequency), False) - 1))

    top = level - height * (rise(p.x) - 0.4)
    rows = p.span(float(top.min()))
    depth = np.maximum(p.y[rows] - top, 0)
    swing = 0.30 * depth * np.sin(depth * 14 + 6 * noise1(bend, p.x * 2, False))
    light = p.facets(rise, 0.5 * depth + swing, -0.6 / frequency, 0.0) * (1 - 0.3 * smooth(depth / 0.4))
    p.cover(p.hazy(p.lit(sand, light), haze), p.below(top)[rows], rows)


def _forest(p: Painter, _: Array) -> None:
    h = p.scene.horizon
    _range(p, h, 0.26, 2.0, rgb("6c8c94"), 0.6)
    for k, haze in enumerate((0.55, 0.36, 0.18, 0.02)):
        base = _rolling(p, h + 0.02 + 0.09 * k + 0.012 * k * k, 0.10, 1.6)
        tall = 0.13 + 0.065 * k + 0.02 * k * k
        colour = p.hazy(p.lit(rgb("2c6a3c"), 0.75 - 0.16 * k), haze)
        p.pines(base, tall * 0.42, tall, colour, 0.85)
        fog = smooth((p.y - base) / 0.2) * ((0.45 + p.mist) * (1 - 0.33 * k))
        p.cover(mix(colour, p.fog, fog), p.below(base - 0.01))


def _coast(p: Painter, true_rows: Array) -> None:
    h = p.scene.horizon
    _headland(p, 0.75, 0.45)
    _headland(p, 0.42, 0.15)
    p.water(true_rows, rgb("0c88a0"), 0.2, 0.55)
    tilt = 0.10 * p.side * np.sin(p.x - 0.5)
    beach = h + 0.30 + tilt + 0.05 * fractal1(p.seed(), p.x, 1.5, p.pixel, 0.4)
    y = true_rows[:, None]
    foam = p.lit(rgb("ffffff"), 0.9)
    for before, width in ((0.11, 0.008), (0.055, 0.012), (0.0, 0.02)):
        crest = beach - before + 0.02 * fractal1(p.seed(), p.x, 3.0, p.pixel, 0.5)
        wave = np.exp(-(((y - crest) / width) ** 2)) * np.where(y < crest, np.float32(0.5), np.float32(0.85))
        p.cover(foam, wave * smooth(0.9 + 1.6 * fractal1(p.seed(), p.x, 3.0, p.pixel)) if before else wave)
    sand = p.lit(rgb("f0d49c"), 0.55 + 0.45 * smooth((y - beach) / 0.15))
    p.cover(sand, np.clip((y - beach) / p.pixel + 0.5, 0, 1))
    p.cover(foam, 0.8 * np.exp(-(((y - beach) / 0.012) ** 2)))


def _headland(p: Painter, reach: float, haze: float) -> None:
    """Paint a grassy cliff that reaches into the sea, from the edge opposite to the light."""
    seed = p.seed()
    from_edge = np.abs(((p.x if p.side > 0 else 1 - p.x) + 2) % 4 - 2)
    rise = np.clip((reach - from_edge) / 0.22, 0, 1) * (1 + 0.8 * fractal1(seed, p.x, 3, p.pixel, 0.5, True))
    top = p.scene.horizon - 0.20 * (1.1 - haze) * rise + np.float32(0.02) * (rise < 0.02)
    p.mountains(top, lambda x: 0.5 * fractal1(seed, x, 3, 0.02, 0.5, True), rgb("8a7a5c"), haze, fog=0.2)
    grass = smooth((top + 0.03 - p.y) / 0.02) * p.below(top)
    p.cover(p.hazy(p.lit(rgb("5c8a40"), 0.8), haze), grass)


def _snow(p: Painter, _: Array) -> None:
    h = p.scene.horizon
    rock = rgb("5a6078")
    p.sunlit, p.haze = mix(p.sunlit, rgb("fff4fa") * p.sunlit.max(), 0.4), mix(p.haze, p.shaded, 0.25)
    p.fog = mix(p.fog, p.haze, 0.6)
    _range(p, h, 0.42, 1.9, rock, 0.38, snow=0.22)
    _range(p, h + 0.10, 0.36, 2.2, rock, 0.14, snow=0.20)
    for level, haze in ((0.14, 0.12), (0.26, 0.0)):
        base = _rolling(p, h + level, 0.12, 1.4)
        p.hill(base, rgb("f6faff"), haze, 0.0)
        tall = 0.12 + 0.5 * level
        p.pines(base + 0.02, tall * 0.55, tall, p.hazy(p.lit(rgb("24483c"), 0.3), haze), 0.3)


def _city(p: Painter, true_rows: Array) -> None:
    h, dark = p.scene.horizon, p.scene.time in ("night", "dusk")
    _towers(p, 0.09, 0.30, 0.6, 0.25)
    _towers(p, 0.14, 0.42, 0.3, 0.4)
    _towers(p, 0.19, 0.24, 0.06, 0.5)
    p.cover(p.hazy(p.lit(rgb("4c5c50"), 0.3), 0.05), p.below(np.full_like(p.x, h - 0.012)))
    if dark:
        p.cover(rgb("ffb060"), np.repeat(0.28 * np.exp(-np.abs(p.y - h) / 0.10), len(p.x), axis=1))
    p.water(true_rows, rgb("24587c"), 0.35, 0.85)


def _towers(p: Painter, width: float, height: float, haze: float, share: float) -> None:
    """Paint a row of houses, some with a stepped top or a spire. A `share` of their windows shines."""
    seed, dark = p.seed(), p.scene.time in ("night", "dusk")
    cell, inside = cell_of(p.x / width)
    narrow = 0.5 - np.abs(inside - 0.5)
    centre = np.exp(-(np.sin((cell.astype(np.float32) + 0.5) * width - 0.5) ** 2) / 0.10) if width < 0.15 else 0.7
    tall, style = height * (0.25 + 0.75 * chance(seed, cell)) * (0.45 + 0.75 * centre), chance(seed + 1, cell)
    tall = tall - 0.25 * tall * (narrow < 0.2) * (style > 0.55) + 0.4 * tall * (narrow > 0.44) * (style > 0.86)
    top = p.scene.horizon - tall
    light = (0.15 + 0.7 * ((inside > 0.5) == (p.side > 0))) * (0.5 if dark else 0.8)
    albedo = rgb("9aa8bc b8a494 7c94b0 c8b8a8")[(seed + cell) % 4, :, 0, 0].T[:, None]
    p.cover(p.hazy(p.lit(albedo, light), haze), p.below(top) * smooth(narrow * width / p.pixel + 0.4))
    (ix, dx), (iy, dy) = cell_of(p.x / 0.047), cell_of(p.y / 0.058)
    window = smooth((0.36 - np.abs(dx - 0.5)) / 0.25) * smooth((0.34 - np.abs(dy - 0.5)) / 0.25)
    shines = (chance(seed + 3, iy, ix) < share) * p.below(top + 0.02) * smooth((narrow - 0.1) / 0.1)
    lamp = rgb("ffd27a") if dark else p.hazy(p.lit(rgb("d0e8ff"), 0.9), haze)
    p.cover(mix(lamp, p.haze, haze * 0.5), window * shines * (0.95 if dark else 0.45))


def _meadow(p: Painter, _: Array) -> None:
    h = p.scene.horizon
    _range(p, h, 0.16, 2.0, rgb("7090a8"), 0.6)
    greens = rgb("8cc060 70b444 58a038")
    for k, (level, haze) in enumerate(((0.01, 0.32), (0.10, 0.14), (0.20, 0.03))):
        base = _rolling(p, h + level, 0.17, 1.3, 0.2)
        p.hill(base, greens[k], haze, 0.0)
        if k < 2:
            p.trees(base + 0.01, 0.17 + 0.07 * k, 0.085 + 0.045 * k, 0.5)
    _flowers(p, base)


def _flowers(p: Painter, base: Array) -> None:
    """Paint patches of flowers in two colours on the ground below base(x). Flowers near the viewer are larger."""
    blooms = rgb("f04848 ffd838 c860e8 ffffff f878b0 6878f0")[p.rng.permutation(6)[:2]]
    seed, rows = p.seed(), p.span(float(base.min()))
    depth = np.maximum(p.y[rows] - base, 0)
    if not depth.size:
        return
    iy, dy = cell_of(5 * np.log1p(depth * 7))
    wide = 0.03 + 0.09 / 5 * (iy.astype(np.float32) + 0.5)
    ix, dx = cell_of(p.x / wide + chance(seed, iy))
    away = np.hypot(dx - 0.3 - 0.4 * chance(seed + 1, iy, ix), dy - 0.5)
    patch = fractal2(seed + 5, p.x * 3, p.rows[rows] * 8, p.pixel * 8, 0.5, 4)
    exists = (chance(seed + 2, iy, ix) < 0.55 + patch) & (iy > 0)
    p.cover(p.lit(blooms[0], 0.8), smooth(patch * 3 + 0.35) * smooth(depth / 0.05) * 0.45, rows)
    first, second = p.lit(blooms, 1.0)
    colour = np.where(chance(seed + 3, iy, ix) < 0.65, first, second)
    p.cover(colour, np.clip((0.36 - away) * wide / (1.5 * p.pixel) + 0.4, 0, 1) * exists, rows)


def _volcano(p: Painter, _: Array) -> None:
    h, day = p.scene.horizon, p.scene.time == "day"
    at, peak, spread = 0.5 - p.side * p.rng.uniform(0.0, 0.2), p.rng.uniform(0.22, 0.36), p.rng.uniform(0.15, 0.26)
    _plume(p, at, peak, 0.5 if day else 0.8)
    _range(p, h + 0.04, 0.18, 2.6, rgb("70606c"), 0.5)
    out = np.abs(p.x - at)
    rough = 0.03 * fractal1(p.seed(), p.x, 6, p.pixel, 0.5, True) * smooth(out / 0.2)
    cone = peak + 1.12 * (h + 0.06 - peak) * (1 - np.exp(-np.maximum(out - 0.055, 0) / spread)) + rough
    p.mountains(cone, lambda x: 1.6 * np.exp(-np.abs(x - at) / 0.3), rgb("5c4450"), 0.08, fog=0.35)
    _lava(p, at, peak, cone)
    _range(p, h + 0.20, 0.14, 2.4, rgb("4c3c44"), 0.06, fog=0.15)
    _range(p, h + 0.36, 0.14, 2.0, rgb("32282e"), 0.0, fog=0.0)


def _plume(p: Painter, at: float, peak: float, ember: float) -> None:
    """Paint smoke that rises from (at, peak), drifts away from the light, and glows at its root."""
    seed, rows = p.seed(), p.span(-np.inf, peak + 0.02)
    if rows.stop == rows.start:
        return
    rise = np.maximum(peak - p.y[rows], 0)
    across = p.x - at + p.side * (0.5 * rise + 0.5 * rise**2)
    billow = fractal2(seed, p.x * 6, p.rows[rows] * 6, p.pixel * 6, 0.5, 5)
    edge = smooth((peak + 0.02 - p.y[rows]) / 0.03)
    smoke = smooth((0.045 + 0.42 * rise - np.abs(across) + 0.16 * billow) / 0.06) * edge
    light = smooth(0.5 + 0.9 * billow + p.side * 3 * across)
    grey = mix(p.lit(rgb("584c54"), 0.2), p.lit(rgb("d0c4c4"), 0.8), light)
    p.cover(mix(grey, rgb("ff6a20"), ember * np.exp(-rise / 0.09)), smoke * 0.9, rows)


def _lava(p: Painter, at: float, peak: float, cone: Array) -> None:
    """Paint one to three streams of lava down the cone, and the glow of the crater."""
    seed = p.seed()
    streams = np.array([(-0.03, -0.22), (0.005, 0.05), (0.035, 0.30)])[p.rng.permutation(3)[: p.rng.integers(1, 4)]]
    down = p.y - peak
    for k, (start, slant) in enumerate(streams.tolist()):
        wander = 0.05 * fractal1(seed + 9 * k, p.rows, 9, p.pixel, 0.5)[:, None]
        away = np.abs(p.x - (at + start + slant * down + wander)) / (0.008 + 0.02 * np.maximum(down, 0))
        flow = smooth((0.42 - 0.12 * (k % 2) - down) / 0.1) * (p.y > cone)
        p.cover(rgb("ff4410"), 0.75 * np.exp(-away / 1.6) * flow)
        p.cover(rgb("ffd860"), smooth(1.3 - away) * flow)
    p.cover(rgb("ff7a28"), 0.7 * np.exp(-np.hypot(p.x - at, 1.4 * down) / 0.07))


PAINT: dict[str, Callable[[Painter, Array], None]] = {
    "lake": _lake,
    "desert": _desert,
    "forest": _forest,
    "coast": _coast,
    "snow": _snow,
    "city": _city,
    "meadow": _meadow,
    "volcano": _volcano,
}
"""For each family, the function that paints all but the sky. It takes a painter and the true rows, without mirroring."""
