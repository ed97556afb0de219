import pytest

from panokit.wording import counted, duration


@pytest.mark.parametrize(
    ("count", "noun", "words"),
    [(0, "step", "0 steps"), (1, "picture", "1 picture"), (3, "picture", "3 pictures"), (2, "pass", "2 passes")],
)
def test_a_number_agrees_with_its_noun(count: int, noun: str, words: str) -> None:
    assert counted(count, noun) == words


@pytest.mark.parametrize(("seconds", "words"), [(4.4, "4 s"), (99.0, "99 s"), (400.0, "7 min"), (5400.0, "1.5 h")])
def test_a_time_has_the_unit_of_people(seconds: float, words: str) -> None:
    assert duration(seconds) == words
