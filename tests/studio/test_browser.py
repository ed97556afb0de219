"""The page as its users meet it, in a browser."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest

from panokit import recipe
from panokit.panorama import is_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page

    from tests.studio.conftest import Served

pytestmark = pytest.mark.xdist_group("studio")

PREVIEWS = """() => {
    window.previews = new Set();
    new MutationObserver(() => {
        const image = document.querySelector("#preview img");
        if (image) window.previews.add(image.src);
    }).observe(document.body, {subtree: true, childList: true, attributes: true});
}"""


@pytest.fixture
def opened(browser: Browser, studio: Served) -> Iterator[Callable[[], Page]]:
    """A function that opens the page in a new window, with cookies of its own; it may ask no other server for anything."""
    contexts, foreign = [], []

    def open_page() -> Page:
        context = browser.new_context(viewport={"width": 1400, "height": 1000}, accept_downloads=True)
        context.set_default_timeout(60_000)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: foreign.append(request.url))
        page.goto(studio.url)
        page.wait_for_selector("#generate")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [url for url in foreign if not url.startswith((studio.url, "data:", "blob:"))] == []


@pytest.fixture
def page(opened: Callable[[], Page]) -> Page:
    return opened()


def ask(page: Page, prompt: str = "green hills by day", *, steps: int = 3, **settings: int) -> None:
    page.fill("#prompt textarea", prompt)
    for name, value in {"height": 128, "width": 256, "steps": steps, **settings}.items():
        page.fill(f"#settings-{name} input, #settings-{name} textarea", str(value))
    page.click("#generate")


def status(page: Page, words: str) -> str:
    """Wait for a word in the line of the page; the line."""
    line = page.locator("#status").filter(has_text=re.compile(words))
    line.wait_for()
    return line.inner_text()


def made(page: Page, count: int = 1) -> None:
    """Wait for the pictures of a page."""
    page.wait_for_function(f"document.querySelectorAll('#gallery .thumbnail-item').length === {count}")
    status(page, "pixels in")


def line(page: Page) -> str:
    """The message in the corner of the page, which is closed."""
    message = page.locator(".toast-body").first
    message.wait_for()
    text = message.inner_text().strip()
    message.get_by_role("button").last.click()
    message.wait_for(state="detached")
    return text.rpartition("\n")[2]


def seed(page: Page) -> str:
    return page.input_value("#seed input, #seed textarea")


def download(page: Page, folder: Path) -> Path:
    page.wait_for_timeout(1000)  # a button that is just being drawn anew, with the next picture, does not hear a click
    with page.expect_download() as file:
        page.click("#download")
    path = folder / file.value.suggested_filename
    file.value.save_as(path)
    return path


def upload(page: Page, button: str, path: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.click(button)
    chooser.value.set_files(path)


def test_a_picture_is_made_shown_and_downloaded_with_its_recipe(page: Page, tmp_path: Path) -> None:
    page.evaluate(PREVIEWS)
    ask(page, steps=12)
    assert status(page, "pixels in").startswith("256 x 128 pixels in ")
    assert page.evaluate("window.previews.size") >= 2
    page.locator("#result img").wait_for()
    path = download(page, tmp_path)
    assert is_whole(path)
    kept = recipe.read(path)
    assert (kept["prompt"], kept["width"], kept["height"], kept["steps"]) == ("green hills by day", 256, 128, 12)
    assert str(kept["seed"]) == seed(page)
    assert path.name == f"{recipe.name_of(kept)}.png"


def test_each_picture_has_a_new_seed_unless_it_is_kept_and_a_and_b_stand_side_by_side(page: Page, tmp_path: Path) -> None:
    ask(page)
    status(page, "pixels in")
    first = seed(page)
    page.click("#keep")
    status(page, "kept as A")
    page.get_by_role("tab", name="Model and plugins").click()
    page.click("#guidances input")
    page.get_by_role("option", name="syncdiffusion", exact=True).click()
    page.fill("#syncdiffusion-weight input", "5")
    page.get_by_role("tab", name="Size and steps").click()
    ask(page)
    status(page, f"pixels in .* seed {first}")
    page.locator("#slider img").first.wait_for()
    (guidance,) = recipe.read(download(page, tmp_path))["guidances"]
    assert (guidance["plugin"], guidance["weight"]) == ("syncdiffusion", 5)
    page.get_by_text("This picture as a command").click()
    page.get_by_role("tab", name="Command").click()
    assert f"--seed {first}" in page.locator("#command").inner_text().replace("\n", " ")
    page.uncheck("#lock input")
    ask(page)
    made(page, 3)
    assert seed(page) != first


def test_a_run_is_stopped_and_the_next_one_is_whole(page: Page, tmp_path: Path) -> None:
    ask(page, steps=900)
    status(page, r"step \d+ of 900")
    page.click("#stop")
    status(page, "stopped after step")
    ask(page, steps=2)
    status(page, "pixels in")
    assert is_whole(download(page, tmp_path))


@pytest.mark.sweep
def test_two_tabs_do_not_mix_and_one_stops_its_own_picture_alone(opened: Callable[[], Page], tmp_path: Path) -> None:
    first, second = opened(), opened()
    ask(first, "hills by the sea", steps=900)
    status(first, "step")
    ask(second, "a lake")
    status(second, "waiting: 1 picture is before yours")
    second.click("#stop")
    status(second, "taken out of the queue")
    status(first, "step")
    ask(second, "a lake")
    status(second, "waiting")
    first.click("#stop")
    status(first, "stopped after step")
    status(second, "pixels in")
    assert recipe.read(download(second, tmp_path))["prompt"] == "a lake"
    assert first.locator("#gallery").count() == 0
    assert first.input_value("#prompt textarea") == "hills by the sea"


def test_a_picture_gives_its_settings_back_from_a_file_and_from_the_gallery(opened: Callable[[], Page], tmp_path: Path) -> None:
    page = opened()
    ask(page, "hills with flowers", steps=2, stride=64)
    status(page, "pixels in")
    path, number = download(page, tmp_path), seed(page)
    ask(page, "a lake", steps=3)
    made(page, 2)
    page.locator("#gallery .thumbnail-item").first.click()
    status(page, f"the settings are those of this picture, seed {number}")
    assert page.input_value("#prompt textarea") == "hills with flowers"
    other = opened()
    upload(other, "#open", path)
    status(other, "the settings are those of the picture")
    assert other.input_value("#prompt textarea") == "hills with flowers"
    assert other.input_value("#settings-stride textarea, #settings-stride input") == "64"
    assert seed(other) == number
    assert other.is_checked("#lock input")
    other.click("#generate")
    status(other, "pixels in")
    assert download(other, tmp_path).read_bytes() == path.read_bytes()


def test_what_is_wrong_is_one_line(page: Page, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n rubbish")
    upload(page, "#open", broken)
    assert (
        line(page)
        == "broken.png cannot be read as a picture: give a PNG, JPEG, WebP, TIFF or Deep Zoom picture that panokit wrote"
    )
    page.get_by_role("tab", name="Start from a picture").click()
    upload(page, "#choose", broken)
    assert line(page) == "broken.png is no picture that can be read: give a PNG, JPEG or WebP file"
    page.get_by_role("tab", name="Size and steps").click()
    ask(page, "  ")
    assert line(page) == "there is no prompt: write what to paint"
    ask(page, steps=5000)
    assert line(page) == "steps is 5000: the studio makes up to 1000"
    ask(page, width=250)
    assert status(page, "width 250 is no multiple of 8").count("\n") == 0
    ask(page)
    status(page, "pixels in")


def test_a_picture_is_varied_where_it_is_painted_over(page: Page, tmp_path: Path) -> None:
    ask(page, "hills")
    status(page, "pixels in")
    path = download(page, tmp_path)
    page.get_by_role("tab", name="Start from a picture").click()
    upload(page, "#choose", path)
    canvas = page.locator("#editor canvas").first
    canvas.wait_for()
    time.sleep(1)  # the editor lays its picture out
    box = canvas.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] / 2, steps=8)
    page.mouse.up()
    page.click("#generate")
    made(page, 2)
    kept = recipe.read(download(page, tmp_path))
    assert kept["image"].startswith("sha256:")
    assert kept["mask"].startswith("sha256:")
    page.get_by_text("This picture as a command").click()
    page.locator("#lacks").wait_for()
    assert "--image FILE" in page.locator("#command").inner_text().replace("\n", " ")
    page.locator("#gallery .thumbnail-item").first.click()
    page.locator("#lacks").wait_for(state="hidden")
    page.locator("#editor").wait_for(state="hidden")
    page.locator("#gallery .thumbnail-item").last.click()
    page.locator("#lacks").wait_for()
    page.locator("#editor").wait_for()


@pytest.mark.sweep
def test_a_closed_tab_leaves_neither_a_run_nor_pictures(opened: Callable[[], Page], temporary: Path) -> None:
    page, other = opened(), opened()
    before = {*temporary.rglob("*.png")}
    ask(page, "hills")
    made(page)
    (path,) = {*temporary.rglob("*.png")} - before
    ask(page, "hills", steps=900)
    status(page, r"step \d+ of 900")
    ask(other, "a lake")
    page.close()
    made(other)
    until = time.monotonic() + 60
    while path.exists() and time.monotonic() < until:
        time.sleep(0.2)
    assert not path.exists()
