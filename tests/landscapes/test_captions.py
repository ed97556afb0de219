"""The caption grammar: closed vocabulary, every caption names its family."""

import re

import numpy as np
import pytest

from panokit_landscapes.captions import PROMPTS, WORDS, caption
from panokit_landscapes.world import FAMILIES, TIMES, sample_scene

NAMED_BY = {
    "lake": {"lake"},
    "desert": {"desert", "dunes"},
    "forest": {"forest", "woods", "pine"},
    "coast": {"sea", "ocean", "beach", "coast"},
    "snow": {"snow", "snowy", "winter"},
    "city": {"city", "skyline"},
    "meadow": {"hills", "meadow", "flowers"},
    "volcano": {"volcano"},
}
TIME_WORDS = {
    "dawn": {"dawn", "sunrise", "morning"},
    "day": {"day", "noon", "midday", "daylight"},
    "dusk": {"dusk", "sunset", "evening"},
    "night": {"night", "midnight"},
}


def words(text: str) -> set[str]:
    return set(re.findall(r"[^ ,]+", text))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("time", TIMES)
def test_captions_name_the_family_in_known_words(family: str, time: str) -> None:
    rng = np.random.default_rng(0)
    texts = [sample_scene(rng, family, time).caption for _ in range(100)]
    for text in texts:
        assert text == text.lower().strip()
        assert words(text) <= set(WORDS)
        assert words(text) & NAMED_BY[family]
        assert not any(words(text) & TIME_WORDS[other] for other in TIMES if other != time)
    assert len(set(texts)) > 30
    assert sum(bool(words(text) & TIME_WORDS[time]) for text in texts) > 80


def test_details_are_visible() -> None:
    rng = np.random.default_rng(1)
    for _ in range(500):
        scene = sample_scene(rng)
        seen = words(scene.caption)
        assert scene.light_kind == "moon" or not seen & {"moon", "moonlight"}
        assert scene.light_kind == "sun" or not seen & {"sun", "sunny"}
        assert scene.weather == "cloudy" or not seen & {"cloudy", "clouds"}
        assert scene.weather == "misty" or not seen & {"mist", "misty", "fog", "foggy"}
        assert scene.weather == "stars" or not seen & {"stars", "starry"}
        assert scene.weather == "aurora" or not seen & {"northern", "aurora"}


def test_words_are_distinct_and_all_used() -> None:
    rng = np.random.default_rng(2)
    assert len(WORDS) == len(set(WORDS)) <= 120
    used = set().union(*(words(sample_scene(rng).caption) for _ in range(3000)))
    assert used == set(WORDS)


def test_one_prompt_for_each_family() -> None:
    assert len(PROMPTS) == len(FAMILIES)
    for family, prompt in zip(FAMILIES, PROMPTS, strict=True):
        assert words(prompt) <= set(WORDS)
        assert words(prompt) & NAMED_BY[family]
    assert all(any(words(prompt) & named for prompt in PROMPTS) for named in TIME_WORDS.values())


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'swamp'.*lake"):
        caption(np.random.default_rng(0), "swamp", "day", [])
    with pytest.raises(ValueError, match=r"'rain'.*cloudy"):
        caption(np.random.default_rng(0), "lake", "day", ["rain"])
