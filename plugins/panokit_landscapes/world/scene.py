"""A scene of the world: one horizon, at most one light, one palette."""

from dataclasses import dataclass

Box = tuple[float, float, float, float]
"""A part of a scene, (x0, y0, x1, y1) in scene coordinates."""

FAMILIES: tuple[str, ...] = ("lake", "desert", "forest", "coast", "snow", "city", "meadow", "volcano")
"""The eight kinds of landscape."""

TIMES: tuple[str, ...] = ("dawn", "day", "dusk", "night")
"""The four times of day."""


@dataclass(frozen=True)
class Scene:
    """One landscape. Scene coordinates are explained in `panokit_landscapes.world`.

    Attributes:
        family: one of `FAMILIES`.
        time: one of `TIMES`.
        caption: a text that describes the scene.
        horizon: height of the horizon, y in scene coordinates.
        light: centre of the sun or the moon, (x, y) in scene coordinates; None if it is not visible.
        light_kind: `sun`, `moon` or `none`.
        weather: `clear`, `cloudy`, `misty`, `stars` or `aurora`.
        palette: the number of the palette among those of the time of day.
        seed: of all random detail.
    """

    family: str
    time: str
    caption: str
    horizon: float
    light: tuple[float, float] | None
    light_kind: str
    weather: str
    palette: int
    seed: int
