"""The procedural world: captioned landscapes as functions of continuous scene coordinates.

A scene has one layout: one horizon, at most one light, one palette. In scene coordinates, x points to the right and y points
down. The whole square scene is (0, 0) to (1, 1), and x continues beyond [0, 1] to both sides. Pictures are painted from back to
front. A row of water at y shows the row at 2h - y, for a horizon at h. So it reflects sky, ridges and light exactly.
"""

import numpy as np
from numpy.typing import NDArray

from panokit_landscapes.captions import caption
from panokit_landscapes.world.families import PAINT
from panokit_landscapes.world.painter import SKY, Painter
from panokit_landscapes.world.scene import FAMILIES, TIMES, Box, Scene

__all__ = ["FAMILIES", "TIMES", "Box", "Scene", "render", "sample_scene", "training_picture", "zoom_box"]

LENS = 1.5
"""Width of a sharp edge in pixels, as a lens draws it. Pictures have no finer detail."""
WATERY = ("lake", "coast", "city")
"""Families with water below the horizon."""
HORIZON = {
    "lake": (0.52, 0.64),
    "desert": (0.42, 0.54),
    "forest": (0.42, 0.52),
    "coast": (0.44, 0.54),
    "snow": (0.52, 0.60),
    "city": (0.62, 0.72),
    "meadow": (0.44, 0.54),
    "volcano": (0.60, 0.66),
}
"""The lowest and highest y of the horizon, in scene coordinates."""
LOW_SUN = {
    "lake": (0.30, 0.42),
    "desert": (0.16, 0.30),
    "forest": (0.24, 0.36),
    "coast": (0.16, 0.30),
    "snow": (0.38, 0.46),
    "city": (0.44, 0.52),
    "meadow": (0.18, 0.32),
    "volcano": (0.22, 0.40),
}
"""The least and greatest height of the low sun above the horizon, in scene coordinates: above the ridges in front of it."""


def sample_scene(rng: np.random.Generator, family: str | None = None, time: str | None = None) -> Scene:
    """Draw a random scene.

    Args:
        rng: the random numbers.
        family: one of `FAMILIES`; None draws one.
        time: one of `TIMES`; None draws one.

    Raises:
        ValueError: there is no such family or time.
    """
    family = FAMILIES[rng.integers(len(FAMILIES))] if family is None else family
    time = TIMES[rng.integers(len(TIMES))] if time is None else time
    for value, known in ((family, FAMILIES), (time, TIMES)):
        if value not in known:
            raise ValueError(f"unknown {value!r}: expected one of {', '.join(known)}; pass one of these or None")
    horizon = float(rng.uniform(*HORIZON[family]))
    weathers = ["clear", "cloudy", "misty"]
    if time == "night":
        weathers += ["stars"] * 2 + ["aurora"] * 2 * (family in ("lake", "forest", "snow"))
    weather = weathers[rng.integers(len(weathers))]
    visible = weather not in ("stars", "aurora") and rng.random() < 0.75
    kind = ("moon" if time == "night" else "sun") if visible else "none"
    x = rng.uniform(0.12, 0.88) if family != "volcano" else 0.5 + rng.choice((-1, 1)) * rng.uniform(0.3, 0.4)
    if time == "night":
        y = rng.uniform(0.12, 0.24)
    elif time == "day":
        y = rng.uniform(0.10, 0.20)
    else:
        y = horizon - rng.uniform(*LOW_SUN[family])
    details = [weather] if weather != "clear" or rng.random() < 0.8 else []
    if visible:
        details.append("moon" if kind == "moon" else "sun" if time == "day" else "low sun")
    text = caption(rng, family, time, details)
    palette = int(rng.integers(len(SKY[time])))
    light = (float(x), float(y)) if visible else None
    return Scene(family, time, text, horizon, light, kind, weather, palette, int(rng.integers(1 << 30)))


def render(scene: Scene, size: int | tuple[int, int] = 128, box: Box = (0, 0, 1, 1)) -> NDArray[np.uint8]:
    """Paint a part of a scene.

    Args:
        scene: the scene.
        size: height and width of the picture in pixels; one number is both.
        box: the part of the scene, (x0, y0, x1, y1) in scene coordinates.

    Returns:
        The picture, uint8 (H, W, 3).

    Raises:
        ValueError: the box is empty.
    """
    height, width = (size, size) if isinstance(size, int) else size
    x0, y0, x1, y1 = box
    if not (x0 < x1 and y0 < y1):
        raise ValueError(f"empty box {box}: expected x0 < x1 and y0 < y1; pass (x0, y0, x1, y1)")
    x = (x0 + (np.arange(width, dtype=np.float32) + 0.5) * ((x1 - x0) / width)).astype(np.float32)
    y = (y0 + (np.arange(height, dtype=np.float32) + 0.5) * ((y1 - y0) / height)).astype(np.float32)
    mirrored = np.where(y > scene.horizon, 2 * np.float32(scene.horizon) - y, y) if scene.family in WATERY else y
    painter = Painter(scene, x, mirrored, LENS * max((x1 - x0) / width, (y1 - y0) / height))
    painter.sky()
    PAINT[scene.family](painter, y)
    picture = (np.clip(painter.canvas, 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(picture.transpose(1, 2, 0))


def zoom_box(rng: np.random.Generator, zoom: float) -> Box:
    """Draw a random square box inside the scene.

    Args:
        rng: the random numbers.
        zoom: the magnification, 1 or more; the side of the box is 1 / zoom.

    Raises:
        ValueError: zoom is less than 1.
    """
    if zoom < 1:
        raise ValueError(f"zoom {zoom} leaves the scene: expected zoom >= 1; pass the magnification, 1 for the whole")
    side = 1 / zoom
    x0, y0 = (float(v) for v in rng.uniform(0, 1 - side, 2))
    return x0, y0, x0 + side, y0 + side


def training_picture(rng: np.random.Generator) -> tuple[NDArray[np.uint8], str, Scene]:
    """Draw a picture for training. 60 % show the whole scene; the others have a log-uniform zoom from 1 to 4.

    Returns:
        The picture, uint8 (128, 128, 3), the caption of the whole scene, and the scene.
    """
    scene = sample_scene(rng)
    zoom = 1.0 if rng.random() < 0.6 else float(4 ** rng.random())
    return render(scene, 128, zoom_box(rng, zoom)), scene.caption, scene
