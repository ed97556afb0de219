"""Paints a scene on a canvas from back to front: sky, light, ridges, trees, water."""

from collections.abc import Callable

import numpy as np

from panokit_landscapes.world.noise import Array, cell_of, chance, fractal1, fractal2, smooth
from panokit_landscapes.world.scene import Scene


def rgb(code: str) -> Array:
    """Convert rrggbb codes, separated by spaces, to colours in [0, 1]: (3, 1, 1) for one code, (n, 3, 1, 1) for several."""
    colours = np.array([[int(c[i : i + 2], 16) / 255 for i in (0, 2, 4)] for c in code.split()], np.float32)
    return (colours[0] if len(colours) == 1 else colours)[..., None, None]


# the palettes of each time of day: colours of the zenith, the middle and the horizon
SKY: dict[str, tuple[Array, ...]] = {
    "dawn": (rgb("4a6fb8 d69ec0 ffcf9e"), rgb("3a5aa8 f09aa0 ffdf9c"), rgb("5a8cc4 b8b8dc ffd8c4")),
    "day": (rgb("1858c8 5aa4ee d0ecfc"), rgb("0c70cc 4cb8ea def4ee"), rgb("2a4fc0 6c98ec e6ecfa")),
    "dusk": (rgb("2a1a62 cc4064 ff9e3a"), rgb("48206c e8603f ffcc58"), rgb("1c3078 d8668a ffb468")),
    "night": (rgb("030620 0a1648 24407c"), rgb("080424 18104e 4c3884"), rgb("010c1c 06263f 1c5a70")),
}
_LIGHT = {"dawn": rgb("fff0c4"), "day": rgb("fffbe4"), "dusk": rgb("ffe27a"), "night": rgb("f4f6ff")}
# colours of a white surface in full light and in shade
_SUNLIT = {"dawn": rgb("ffdccc"), "day": rgb("fff8ea"), "dusk": rgb("ff9c6c"), "night": rgb("5c78b4")}
_SHADED = {"dawn": rgb("6068a4"), "day": rgb("6c8cbc"), "dusk": rgb("50326a"), "night": rgb("101c40")}


def mix(a: Array, b: Array, t: Array | float) -> Array:
    """Blend colours (3, 1, 1) or images (3, H, W): a + t (b - a)."""
    return a + (b - a) * t


class Painter:
    """Paints one picture.

    Args:
        scene: the scene.
        x: scene coordinates of the columns, (W,).
        y: scene coordinates of the rows, (H,). Rows of water have the coordinates of the rows that they mirror.
        pixel: width of a sharp edge, in scene coordinates.

    Attributes:
        canvas: the picture, (3, H, W), about in [0, 1].
    """

    def __init__(self, scene: Scene, x: Array, y: Array, pixel: float) -> None:
        self.scene, self.x, self.pixel = scene, x, pixel
        self.rows = y
        self.y = y[:, None]
        self.rng = np.random.default_rng(scene.seed)
        self.zenith, self.middle, self.haze = SKY[scene.time][scene.palette]
        self.light, self.sunlit, self.shaded = (t[scene.time] for t in (_LIGHT, _SUNLIT, _SHADED))
        self.fog = mix(self.haze, self.lit(rgb("ffffff"), 0.5), 0.5) if scene.weather == "misty" else self.haze
        self.mist = 0.22 if scene.weather == "misty" else 0.0
        self.side = 1.0 if (scene.light or (scene.seed % 2, 0.0))[0] > 0.5 else -1.0
        self.canvas = np.zeros((3, len(y), len(x)), np.float32)

    def seed(self) -> int:
        """Draw the next seed from the random numbers of the scene."""
        return int(self.rng.integers(1 << 30))

    def cover(self, colour: Array, alpha: Array, rows: slice = slice(None)) -> None:
        """Paint a colour, (3, 1, 1) or (3, rows, W), over rows of the canvas, with coverage `alpha` in [0, 1], (rows, W)."""
        part = self.canvas[:, rows]
        part += alpha * (colour - part)

    def span(self, top: float, bottom: float = np.inf) -> slice:
        """The rows of the picture between two heights, in scene coordinates."""
        rows = np.flatnonzero((self.rows > top - self.pixel) & (self.rows < bottom + self.pixel))
        return slice(int(rows[0]), int(rows[-1]) + 1) if len(rows) else slice(0, 0)

    def below(self, top: Array) -> Array:
        """The coverage (H, W) of the ground below the curve top(x)."""
        return np.asarray(np.clip((self.y - top) / self.pixel + 0.5, 0, 1))

    def lit(self, albedo: Array, light: Array | float) -> Array:
        """The colour of a surface that receives the fraction `light` of the direct light."""
        return albedo * mix(self.shaded, self.sunlit, light)

    def hazy(self, colour: Array, amount: Array | float) -> Array:
        """Aerial perspective: a colour behind air; `amount` is the share of the fog, in [0, 1]."""
        return mix(colour, self.fog, amount + self.mist * (1 - amount))

    # Sky

    def sky(self) -> None:
        """Paint a gradient, stars or northern lights, the sun or the moon with its glow, and clouds."""
        scene, horizon = self.scene, self.scene.horizon
        height = np.clip(1 - self.y / horizon, -0.3, 1)
        lower = mix(self.haze, self.middle, smooth(height / 0.45))
        self.canvas[:] = mix(lower, self.zenith, smooth((height - 0.2) / 0.8))
        clouds, stars, aurora = self.seed(), self.seed(), self.seed()
        if scene.time == "night" and scene.weather in ("stars", "aurora", "clear"):
            self.stars(stars, height)
        if scene.weather == "aurora":
            self.aurora(aurora)
        if scene.light is not None:
            self.disc(*scene.light)
        if scene.weather == "cloudy":
            self.clouds(clouds, -0.02)

    def stars(self, seed: int, height: Array) -> None:
        """Paint soft stars, at most one in a cell of a lattice. A starry night also has a milky way."""
        if self.scene.weather == "stars":
            slope, centre = (0.9, 0.15) if seed % 2 else (-0.9, 0.95)
            band = np.exp(-(((self.y + slope * (self.x - 0.5) - centre + 0.25) / 0.16) ** 2))
            cloud = smooth(0.5 + 0.9 * fractal2(seed + 9, self.x * 5, self.rows * 5, self.pixel * 5))
            self.canvas += band * cloud * smooth(height * 2) * rgb("5a5a96") * 0.9
        per_unit = 9.0
        (ix, dx), (iy, dy) = cell_of(self.x * per_unit), cell_of(self.y * per_unit)
        dx = dx - (0.2 + 0.6 * chance(seed + 1, iy, ix))
        dy = dy - (0.2 + 0.6 * chance(seed + 2, iy, ix))
        power = np.clip(1.6 * chance(seed + 3, iy, ix) - 0.8, 0, 1) * smooth(height * 3)
        radius = 0.055 + 0.35 * per_unit * self.pixel
        self.canvas += power * np.exp(-(dx * dx + dy * dy) / radius**2) * self.light

    def aurora(self, seed: int) -> None:
        """Paint two curtains of northern lights, with a sharp lower edge and long rays upwards, from green to violet."""
        for k, colour in enumerate(("3cf09a 7a3ce0", "30d8b8 5a48e0")):
            low, high = rgb(colour)
            base = self.scene.horizon * (0.62 - 0.3 * k) + 0.22 * fractal1(seed + k, self.x, 1.6, 0.1, 0.4)
            rays = 0.55 + 0.9 * fractal1(seed + 7 + k, self.x, 9.0, self.pixel * 2, 0.5)
            up = base - self.y
            glow = np.where(up > 0, np.exp(-np.maximum(up, 0) / 0.16), np.exp(np.minimum(up, 0) / 0.03)) * rays
            glow = np.clip(glow, 0, 1)
            self.canvas += (0.75 - 0.25 * k) * glow * mix(low, high, smooth(up / 0.3)) * (1 - self.canvas)

    def disc(self, x: float, y: float) -> None:
        """Paint the sun or the moon with its glow."""
        moon = self.scene.light_kind == "moon"
        radius = 0.062 if moon else {"dawn": 0.052, "day": 0.045, "dusk": 0.07}[self.scene.time]
        dx = self.x - x
        distance = np.sqrt(dx * dx + (self.y - y) ** 2)
        inner, outer = (0.45, 0.28) if moon else (0.6, 0.5)
        glow = inner * np.exp(-np.maximum(distance - radius, 0) / 0.05) + outer * np.exp(-distance / 0.22)
        tint = self.light if moon or self.scene.time == "day" else mix(self.light, self.haze, 0.4)
        self.cover(tint, glow)
        disc = np.clip((radius - distance) / self.pixel + 0.5, 0, 1)
        colour = self.light
        if moon:
            scale = 1 / radius
            spots = fractal2(5, dx * scale + 7, (self.rows - y) * scale + 7, self.pixel * scale)
            colour = self.light * (1 - 0.22 * smooth(0.4 + 1.5 * spots))
        self.cover(colour, disc)

    def clouds(self, seed: int, threshold: float) -> None:
        """Paint soft clouds. Their brightness is the difference in density towards the light."""
        x, y, step = self.x * 2.6, self.rows * 6.5, self.pixel * 6.5
        density = fractal2(seed, x, y, step, 0.45, 5)
        night, low = self.scene.time == "night", self.scene.time in ("dawn", "dusk")
        upward = 0.35 if low else -0.45
        towards = fractal2(seed, x + 0.25 * self.side, y + upward, step * 2, 0.5, 4)
        cover = smooth((density - threshold) / 0.26) * 0.94
        if self.scene.light is not None:
            lx, ly = self.scene.light
            cover *= 1 - 0.85 * np.exp(-(((self.x - lx) ** 2 + (self.y - ly) ** 2) / 0.011))
        light = smooth(0.5 + 1.3 * (density - towards))
        if night:
            dark, bright = self.middle * 0.8, mix(self.haze, self.light, 0.25 if self.scene.light else 0.05)
        elif low:
            dark, bright = mix(self.zenith, self.middle, 0.45), mix(self.light, self.middle, 0.25)
        else:
            dark, bright = mix(self.middle, self.haze, 0.55) * 0.93, rgb("ffffff")
        self.cover(mix(dark, bright, light), cover)

    # Ground

    def mountains(
        self,
        top: Array,
        outline: Callable[[Array], Array],
        albedo: Array,
        haze: float,
        snow: float = 0.0,
        fog: float = 0.3,
    ) -> None:
        """Paint a ridge with facets. The slope of its coarse outline, carried down diagonally, decides which faces are lit."""
        seed, rows = self.seed(), self.span(float(top.min()))
        depth = self.y[rows] - top
        if not depth.size:
            return
        rough = fractal2(seed, self.x * 6, self.rows[rows] * 6, self.pixel * 6, 0.45)
        light = self.facets(outline, 0.45 * np.maximum(depth, 0) + 0.10 * rough, 0.6, 0.4 * rough)
        ground = albedo
        if snow > 0:
            white = smooth((snow + 0.14 * rough - depth) / (0.03 + self.pixel))
            ground = mix(albedo, rgb("fbfdff"), white)
        colour = self.hazy(self.lit(ground, light), haze + (1 - haze) * fog * smooth(depth / 0.3))
        self.cover(colour, np.clip(depth / self.pixel + 0.5, 0, 1), rows)

    def facets(self, outline: Callable[[Array], Array], shift: Array, contrast: float, extra: Array | float) -> Array:
        """The fraction of direct light on faces. A face has the slope of the outline at `shift` from it, towards the light."""
        step = self.pixel
        table = np.arange(self.x[0] - 0.8, self.x[-1] + 0.8, step, dtype=np.float32)
        slope = smooth(0.5 + contrast * self.side * np.diff(outline(table)) / step)
        cell, t = cell_of(np.clip((self.x + self.side * shift - table[0]) / step, 0, len(slope) - 2))
        return np.asarray(np.clip(slope[cell] + (slope[cell + 1] - slope[cell]) * t + extra, 0, 1))

    def hill(self, top: Array, colour: Array, haze: float, fog: float = 0.2) -> None:
        """Paint smooth ground below a curve. It is lit at its crest and fades into the haze at its foot."""
        rows = self.span(float(top.min()))
        depth = self.y[rows] - top
        light = 0.75 - 0.5 * smooth(depth / 0.22)
        shown = self.hazy(self.lit(colour, light), haze + (1 - haze) * fog * smooth(depth / 0.25))
        self.cover(shown, np.clip(depth / self.pixel + 0.5, 0, 1), rows)

    def pines(self, base: Array, spacing: float, height: float, colour: Array, density: float = 1.0) -> None:
        """Paint a row of conifers on the curve base(x): triangles with tiers, at most one in a cell of two lattices."""
        for half in (0.0, 0.5):
            seed = self.seed()
            cell, inside = cell_of(self.x / spacing + half)
            aside = np.abs(inside - 0.3 - 0.4 * chance(seed, cell)) * spacing
            tall = height * (0.55 + 0.45 * chance(seed + 1, cell)) * (chance(seed + 2, cell) < density)
            rows = self.span(float((base - tall).min()), float(base.max()))
            t = (self.y[rows] - (base - tall)) / np.maximum(tall, 1e-4)
            tiers = 0.22 * min(1.0, height / (40 * self.pixel))
            wide = (t * (0.85 - tiers) + tiers * (t * 5 % 1.0)) * tall * 0.27
            alpha = np.clip((wide - aside) / self.pixel + 0.3, 0, 1)
            self.cover(colour, alpha * ((t > 0) & (t < 1.05)), rows)

    def trees(self, base: Array, spacing: float, size: float, density: float) -> None:
        """Paint single round trees on the curve base(x): a crown of discs and a trunk, lit from the side of the light."""
        seed = self.seed()
        cell, inside = cell_of(self.x / spacing)
        scale = size * (0.7 + 0.5 * chance(seed + 1, cell))
        rows = self.span(float((base - 1.6 * scale).min()), float((base + 0.1 * scale).max()))
        dx = (inside - 0.35 - 0.3 * chance(seed, cell)) * spacing / scale
        dy = (self.y[rows] - base) / scale
        crown = 0.42 - np.sqrt(np.minimum(dx**2 + (dy + 0.85) ** 2, (np.abs(dx) - 0.28) ** 2 + (dy + 0.62) ** 2))
        trunk = np.minimum(0.07 - np.abs(dx), np.minimum(dy + 0.6, 0.05 - dy))
        exists = chance(seed + 2, cell) < density
        edge = scale / self.pixel
        self.cover(self.shaded * 0.45, np.clip(trunk * edge + 0.5, 0, 1) * exists, rows)
        light = smooth(0.45 + 0.7 * self.side * dx - 0.8 * (dy + 0.7))
        self.cover(self.hazy(self.lit(rgb("5c9a38"), light), 0.03), np.clip(crown * edge + 0.5, 0, 1) * exists, rows)

    # Water

    def water(self, true_rows: Array, deep: Array, calm: float, clear: float) -> None:
        """Turn the mirrored rows below the horizon into water, with ripples, a deep colour and the glitter of the light."""
        seed, below = self.seed(), true_rows > self.scene.horizon
        if not below.any():
            return
        away = true_rows[below] - self.scene.horizon
        ripple = fractal2(seed, self.x * 5, np.log(away + 0.03) * 9, self.pixel * 31.5, 0.6, 4)
        shift = ripple * ((0.01 + 0.10 * away) * (1 - calm) / self.pixel)[:, None]
        take = np.clip(np.arange(len(away))[:, None] + np.rint(shift).astype(np.int64), 0, len(away) - 1)
        columns = np.clip(np.arange(len(self.x)) + np.rint(shift * 0.4).astype(np.int64), 0, len(self.x) - 1)
        strength = np.clip(clear - 0.6 * away[:, None] + (0.425 - 0.3 * calm) * ripple, 0.2, 1)
        surface = mix(self.lit(deep, 0.6), self.canvas[:, below][:, take, columns], strength)
        if self.scene.light is not None:
            path = np.exp(-(((self.x - self.scene.light[0]) / (0.035 + 0.22 * away)[:, None]) ** 2))
            glitter = path * smooth(0.4 + 2.2 * ripple) * (0.5 if self.scene.time == "day" else 0.8)
            surface = mix(surface, mix(self.light, self.haze, 0.15), glitter)
        self.canvas[:, below] = surface
