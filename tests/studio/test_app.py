"""What the page does, without a browser."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from panokit.jobs import Worker
from panokit.studio.history import Sessions
from panokit.studio.runs import Runs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from panokit import Model
    from panokit.studio.app import Page

gradio = pytest.importorskip("gradio", reason="the studio needs gradio, which is not installed")


@pytest.fixture
def page(tiny: Model, tmp_path: Path) -> Iterator[Page]:
    from panokit.studio.app import Page

    runs = Runs()
    page = Page(Worker({"accelerator": "cpu", "model": tiny}, trusted=False), runs, Sessions(tmp_path / "pictures"), "tiny")

    async def draw() -> None:  # outside of a loop of events, the library makes some that it never closes
        page.blocks()

    with ThreadPoolExecutor(1) as apart:  # the driver of a browser keeps a loop in the thread of the tests
        apart.submit(lambda: asyncio.run(draw())).result()
    yield page
    runs.close()


def generate(page: Page, **options: Any) -> dict[Any, Any]:
    """The changes that a press of the button ends with."""
    wanted = {"prompt": "a lake", "model": "tiny", "height": 16, "width": 32, "steps": 1, **options}
    values = [value for panel in page.panels for value in panel.shown(wanted)]
    return [*page._generate(gradio.Request(session_hash="ann"), *values, None, "", "")][-1]


def test_a_full_disk_is_one_line_and_the_button_comes_back(page: Page, tmp_path: Path) -> None:
    (tmp_path / "pictures").write_text("no folder can be made here")
    end = generate(page)
    assert end[page.generate]["interactive"]
    assert not end[page.stop]["interactive"]
    assert '<div class="failed">the studio cannot write the picture' in end[page.status]
    (tmp_path / "pictures").unlink()
    assert "pixels in" in generate(page)[page.status]


def test_whatever_goes_wrong_the_button_comes_back(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(recipe: Any) -> str:
        raise RuntimeError("a\nfault")

    monkeypatch.setattr("panokit.studio.app.as_command", broken)
    end = generate(page)
    assert end[page.generate]["interactive"]
    assert "RuntimeError: a fault" in end[page.status]
