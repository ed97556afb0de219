"""What a scene is: one horizon, at most one light, one palette."""

from dataclasses import dataclass

Box = tuple[float, float, float, float]
"""(x0, y0, x1, y1) in scene coordinates."""

FAMILIES: tuple[str, ...] = ("lake", "desert", "forest", "coast", "snow", "city", "meadow", "volcano")
"""The eight kinds of landscape."""

TIMES: tuple[str, ...] = ("dawn", "day", "dusk", "night")
"""The four times of day."""


@dataclass(frozen=True)
class Scene:
    """One landscape: `horizon` and `light` (centre of sun or moon, None if not visible) are in scene coordinates."""

    family: str
    time: str
    caption: str
    horizon: float
    light: tuple[float, float] | None
    light_kind: str
    weather: str
    palette: int
    seed: int
