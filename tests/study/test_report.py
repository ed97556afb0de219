"""The report of a study: what is marked, how tables lie, and how they are sorted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from panokit.study.page import page
from panokit.study.report import best, markdown

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser


def numbers(methods: int) -> dict[str, Any]:
    """Numbers of several methods: the first one has the highest KID and the highest score."""

    def measured(mean: float) -> dict[str, float]:
        return {"mean": mean, "deviation": 0.01, "low": mean - 0.02, "high": mean + 0.05}

    names = [f"method {k}" for k in range(methods)]
    return {
        "study": {
            "model": "toy",
            "prompts": ["a lake"],
            "panoramas": 8,
            "references": 2,
            "reference_folder": None,
            "crop": None,
            "features": {"colours": "toy"},
            "height": 16,
            "width": 32,
            "steps": 2,
            "sweep": "",
        },
        "versions": {"panokit": "0"},
        "methods": {
            name: {"n": 8, "distances": {"KID, colours": measured(0.9 - 0.1 * k)}, "scores": {"fit": measured(80.0 - k)}}
            for k, name in enumerate(names)
        },
        "differences": {},
        "costs": {name: {"rounds": 1, "forward": 10 * k + 1, "backward": 0, "seconds": 1.0} for k, name in enumerate(names)},
        "better": {"KID, colours": "low", "fit": "high"},
    }


@pytest.mark.parametrize(("better", "winner"), [("low", 0.2), ("high", 3.0), ("one", 1.1), (None, None)])
def test_the_best_is_the_lowest_the_highest_or_the_nearest_to_one(better: str | None, winner: float | None) -> None:
    assert best([3.0, 0.2, 1.1], better) == winner
    assert best([3.0], better) is None  # of one there is no best


def test_a_table_has_more_rows_than_columns_and_the_best_is_bold() -> None:
    few, many = markdown(numbers(2)), markdown(numbers(5))
    assert "|  | method 0 | method 1 |" in few
    assert "| KID, colours | 0.900 ± 0.010 | **0.800 ± 0.010** |" in few
    assert "|  | KID, colours | fit |" in many
    assert "| method 0 | 0.900 ± 0.010 | **80.000 ± 0.010** |" in many


@pytest.mark.xdist_group("browser")  # one browser is enough
def test_a_click_on_a_column_sorts_its_table(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(page(numbers(5), {}, []))
    tab = browser.new_page()
    tab.goto(file.as_uri())
    column, first = tab.locator("th", has_text="KID, colours").first, tab.locator("table").first.locator("td").first
    assert first.inner_text() == "method 0"
    column.click()
    assert first.inner_text() == "method 4"  # the lowest first
    column.click()
    assert first.inner_text() == "method 0"
    assert "KID, colours, over windows forward and backward" in tab.content()
    tab.close()
