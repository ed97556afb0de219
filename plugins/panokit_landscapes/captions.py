"""Captions of the procedural landscapes: a small grammar that describes what is visible, in lower case."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np

_NAMES: dict[str, tuple[str, ...]] = {
    "lake": ("a mountain lake", "a calm lake", "a lake below mountains", "a lake in the mountains", "a quiet lake"),
    "desert": ("desert dunes", "sand dunes", "a desert", "dunes in the desert", "a sandy desert", "a desert of sand"),
    "forest": ("a pine forest", "a forest", "pine trees", "the woods", "a dark forest", "forest trees"),
    "coast": (
        "a sea coast",
        "the ocean",
        "a beach by the sea",
        "a sandy beach",
        "the sea",
        "an ocean coast with waves",
    ),
    "snow": ("snowy mountains", "snowy peaks", "winter mountains", "mountains in snow", "a winter landscape with snow"),
    "city": ("a city skyline", "a city", "a city by the river", "the skyline of a city", "city lights and towers"),
    "meadow": ("green hills", "a flower meadow", "hills with flowers", "a green meadow", "a field of flowers"),
    "volcano": ("a volcano", "a volcano with lava", "a smoking volcano", "an erupting volcano", "lava on a volcano"),
}
_TIMES: dict[str, tuple[str, ...]] = {
    "dawn": ("at dawn", "at sunrise", "in the morning"),
    "day": ("at noon", "by day", "in daylight", "at midday"),
    "dusk": ("at dusk", "at sunset", "in the evening"),
    "night": ("at night", "by night", "at midnight"),
}
_MOMENTS: dict[str, tuple[str, ...]] = {
    "dawn": ("dawn", "sunrise", "morning"),
    "day": ("noon", "midday", "daylight"),
    "dusk": ("dusk", "sunset", "evening"),
    "night": ("night",),
}
_DETAILS: dict[str, tuple[str, ...]] = {
    "clear": ("clear sky", "under a clear sky"),
    "cloudy": ("cloudy sky", "with clouds", "under a cloudy sky", "clouds in the sky"),
    "misty": ("in the mist", "misty", "with fog", "foggy"),
    "stars": ("under the stars", "starry sky", "with stars", "under a starry sky"),
    "aurora": ("under the northern lights", "with northern lights", "with an aurora"),
    "sun": ("with the sun", "the sun in the sky", "under the sun", "sunny"),
    "low sun": ("with a low sun", "low sun", "with the sun above the horizon"),
    "moon": ("under a full moon", "in the moonlight", "with the moon", "full moon"),
}

_PHRASES = chain.from_iterable(chain(*(table.values() for table in (_NAMES, _TIMES, _MOMENTS, _DETAILS))))
WORDS: tuple[str, ...] = tuple(sorted({word for phrase in ("over", *_PHRASES) for word in phrase.split()}))
"""All words that `caption` can produce."""
FILLERS = frozenset(("a", "above", "an", "and", "at", "below", "by", "in", "of", "on", "over", "the", "under", "with"))
"""Words that name nothing visible."""
TELLING: tuple[str, ...] = tuple(word for word in WORDS if word not in FILLERS)
"""The words of `WORDS` that name something visible."""

PROMPTS: tuple[str, ...] = (
    "a mountain lake at dusk",
    "desert dunes at noon, clear sky",
    "a pine forest at dawn in the mist",
    "a sea coast at sunset with a low sun",
    "snowy mountains at night under a full moon",
    "a city skyline at night, starry sky",
    "green hills with flowers by day, with clouds",
    "a volcano with lava at dusk",
)
"""One evaluation prompt for each family, in the order of `world.FAMILIES`."""


def caption(rng: np.random.Generator, family: str, time: str, details: Sequence[str]) -> str:
    """Draw a caption. It names the family, nearly always the time of day, and some of the visible details.

    Args:
        rng: the random numbers.
        family: one of `world.FAMILIES`.
        time: one of `world.TIMES`.
        details: what is visible: kinds of weather, `sun`, `low sun` or `moon`.

    Raises:
        ValueError: one of these names is unknown.
    """
    for value, known in ((family, _NAMES), (time, _TIMES), *((d, _DETAILS) for d in details)):
        if value not in known:
            raise ValueError(f"unknown {value!r}: expected one of {', '.join(known)}; pass one of these names")

    def pick(phrases: tuple[str, ...]) -> str:
        return phrases[rng.integers(len(phrases))]

    name, phrases = pick(_NAMES[family]), [pick(_DETAILS[d]) for d in rng.permutation(np.array(details, dtype=str))]
    template = rng.random()
    if template < 0.15:
        head = f"{pick(_MOMENTS[time])} over {name}"
    elif template < 0.25:
        head = f"{name}, {pick(_MOMENTS[time])}"
    elif template < 0.30:
        head = name
    else:
        head = f"{name} {pick(_TIMES[time])}"
    chosen = phrases[: rng.integers(len(phrases) + 1)]
    first_joint = " " if chosen and chosen[0].startswith(("with", "under", "in ")) and rng.random() < 0.6 else ", "
    return head + "".join((first_joint if i == 0 else ", ") + phrase for i, phrase in enumerate(chosen))
