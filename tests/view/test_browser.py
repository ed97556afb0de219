"""The page in a browser, from a file and without a network: what is drawn, and what moves."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageStat

from panokit import Panorama, films
from panokit.recipe_text import as_command
from panokit.view.show import write

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.xdist_group("browser")  # one browser is enough
RECIPE: dict[str, Any] = {"prompt": 'a lake; it\'s <b>"blue"</b>', "height": 128, "width": 512, "seed": 6, "wrap": True}
WHOLE = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description GPano:ProjectionType="equirectangular"/></x:xmpmeta>'
Open = Callable[..., "Page"]


def striped(size: tuple[int, int], colour: str) -> Image.Image:
    image = Image.new("RGB", size, colour)
    draw = ImageDraw.Draw(image)
    for left in range(0, size[0], 64):
        draw.rectangle((left, 0, left + 31, size[1]), "white")
    return image


def picture(path: Path, colour: str = "red", **changes: Any) -> Path:
    Panorama(torch.zeros(4, 2, 3), striped((512, 128), colour), {**RECIPE, **changes}).save(path)
    return path


@pytest.fixture
def show(browser: "Browser", tmp_path: Path) -> Iterator[Open]:
    """Open a page of pictures from its file. It may load nothing but itself and files, and may complain of nothing."""
    context = browser.new_context(offline=True, viewport={"width": 900, "height": 600})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    complaints: list[str] = []
    loaded: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: loaded.append(request.url))

    def opening(*files: Path, out: str = "page.html") -> "Page":
        page.goto(write([str(file) for file in files], str(tmp_path / out)).as_uri())
        return page

    yield opening
    context.close()
    assert complaints == []
    assert loaded
    assert {url.partition(":")[0] for url in loaded} <= {"file", "blob", "data"}


def colours(page: "Page", where: str = ".view") -> Image.Image:
    with Image.open(io.BytesIO(page.locator(where).first.screenshot())) as image:
        return image.convert("RGB")


def wait_until_drawn(page: "Page", where: str = ".view") -> None:
    """Wait until pixels differ. A blank view has one colour."""
    for _ in range(100):
        if max(ImageStat.Stat(colours(page, where)).stddev) > 40:
            return
        page.wait_for_timeout(100)
    raise AssertionError("nothing is drawn")


def views(page: "Page") -> list[list[float]]:
    """Where the viewers are: zoom and centre."""
    code = "shown.viewers.map(({viewer: {viewport: v}}) => [v.getZoom(false), v.getCenter(false).x, v.getCenter(false).y])"
    return page.evaluate(code)


def test_a_picture_is_drawn_and_its_ring_has_no_end(show: Open, tmp_path: Path) -> None:
    page = show(picture(tmp_path / "a.png"))
    wait_until_drawn(page)
    page.evaluate("(shown.viewers[0].viewer.viewport.panBy(new OpenSeadragon.Point(7.5, 0), true), 0)")
    wait_until_drawn(page)
    page = show(picture(tmp_path / "a.png", wrap=False))
    wait_until_drawn(page)
    page.get_by_role("button", name="Zoom out").click()
    page.wait_for_timeout(1000)
    edge = colours(page).getpixel((4, colours(page).height // 2))
    assert edge == (0x22, 0x22, 0x22)  # beside it there is nothing


def test_the_recipe_is_text_and_its_command_is_copied(show: Open, tmp_path: Path) -> None:
    page = show(picture(tmp_path / "a.png"))
    assert page.locator(".recipes td", has_text=RECIPE["prompt"]).first.is_visible()
    assert page.locator(".recipes b").count() == 0
    page.get_by_role("button", name="Copy command").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == as_command(RECIPE)


def test_two_pictures_move_together(show: Open, tmp_path: Path) -> None:
    page = show(picture(tmp_path / "a.png"), picture(tmp_path / "b.png", "blue", seed=7))
    wait_until_drawn(page)
    wait_until_drawn(page, ".view >> nth=1")
    for which in (0, 1):
        before = views(page)[0]
        page.locator(".view").nth(which).hover()
        page.mouse.wheel(0, -300)
        page.wait_for_timeout(300)
        page.mouse.down()
        page.mouse.move(300, 100 + 150 * which, steps=5)
        page.mouse.up()
        page.wait_for_timeout(1500)
        one, two = views(page)
        assert one == pytest.approx(two, abs=1e-4)  # less than a tenth of a pixel
        assert one[0] > before[0]
        assert one[1] != pytest.approx(before[1])
    differing = page.locator("tr.differs th").all_text_contents()
    assert differing == ["Seed"]


def test_the_slider_lays_two_pictures_on_each_other(show: Open, tmp_path: Path) -> None:
    page = show(picture(tmp_path / "a.png", "red"), picture(tmp_path / "b.png", "blue"))
    wait_until_drawn(page)

    def reddish() -> float:
        """The share of the width that shows the first picture."""
        image = colours(page, ".views")
        row = [image.getpixel((x, image.height // 2)) for x in range(image.width)]
        red, blue = (sum(pixel == colour for pixel in row) for colour in ((255, 0, 0), (0, 0, 255)))
        return red / max(1, red + blue)

    page.get_by_role("button", name="Slider").click()
    slider = page.get_by_role("slider")
    for place in (0.5, 0.9, 0.1):
        slider.fill(str(100 * place))
        page.wait_for_timeout(1000)
        assert reddish() == pytest.approx(place, abs=0.1)
    page.get_by_role("button", name="Slider").click()
    assert not slider.is_visible()


def test_a_panorama_whose_recipe_says_that_it_is_a_sphere_is_drawn_as_one(show: Open, tmp_path: Path) -> None:
    """Ahead, at the middle of the picture, it is red; behind it is blue."""
    image = Image.new("RGB", (512, 256), "blue")
    image.paste("red", (128, 0, 384, 256))
    recipe = {**RECIPE, "width": 512, "height": 256, "wrap": False, "projection": "equirectangular"}
    Panorama(torch.zeros(4, 2, 3), image, recipe).save(tmp_path / "a.png")
    page = show(tmp_path / "a.png")
    for _ in range(100):
        if page.evaluate("shown.viewers[0].viewer.isLoaded()"):
            break
        page.wait_for_timeout(100)
    for yaw, colour in ((0, (255, 0, 0)), (180, (0, 0, 255))):
        page.evaluate(f"(shown.viewers[0].viewer.setYaw({yaw}, false), 0)")
        for _ in range(100):
            drawn = colours(page)
            if drawn.getpixel((drawn.width // 2, drawn.height // 2)) == colour:
                break
            page.wait_for_timeout(100)
        else:
            raise AssertionError(f"{colour} is not drawn")


def test_a_sphere_is_drawn(show: Open, tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        striped((1024, 512), "red").save(tmp_path / name, xmp=WHOLE.encode())
    page = show(tmp_path / "a.jpg", tmp_path / "b.jpg")
    wait_until_drawn(page)
    wait_until_drawn(page, ".view >> nth=1")
    page.locator(".view").first.hover()
    page.mouse.down()
    page.mouse.move(200, 150, steps=5)
    page.mouse.up()
    wait_until(
        page,
        """() => {
        const [one, two] = shown.viewers.map(({viewer}) => viewer.getYaw());
        return one === two && Math.abs(one) > 1;
    }""",
    )  # after a moment, in which the one turns on and the other follows


def test_a_picture_of_a_gallery_opens(show: Open, tmp_path: Path) -> None:
    folder = tmp_path / "made of #1?"
    folder.mkdir()
    for k in range(30):
        picture(folder / f"{k}.png", seed=k)
    page = show(folder)
    wait_until_drawn(page, ".card img")
    page.locator(".card").nth(3).click()
    wait_until_drawn(page, "dialog .view")
    assert page.get_by_role("cell", name="3", exact=True).is_visible()  # its seed
    page.get_by_role("button", name="Close").click()
    page.locator("dialog").wait_for(state="detached")


def test_a_folder_of_one_picture_says_so_and_names_what_its_recipe_lacks(show: Open, tmp_path: Path) -> None:
    picture(tmp_path / "a.png", image="sha256:12")
    page = show(tmp_path)
    assert page.locator("#tools").inner_text() == "1 picture"
    page.locator(".card").click()
    wait_until_drawn(page, "dialog .view")
    assert page.get_by_text("FILE stands for a picture that the recipe does not hold").is_visible()


def test_tiles_are_drawn(show: Open, tmp_path: Path) -> None:
    pytest.importorskip("pyvips", reason="tiles are cut by pyvips, which is not installed")
    striped((20_000, 400), "red").save(tmp_path / "large.png", compress_level=1)
    page = show(tmp_path / "large.png", out="#1 of 2?.html")
    page.evaluate("(shown.viewers[0].viewer.viewport.zoomTo(40, null, true), 0)")
    wait_until_drawn(page)


def test_a_deep_zoom_picture_is_drawn(show: Open, tmp_path: Path) -> None:
    pytest.importorskip("pyvips", reason="Deep Zoom pictures are written by pyvips, which is not installed")
    (tmp_path / "elsewhere").mkdir()
    wait_until_drawn(show(picture(tmp_path / "elsewhere" / "a.dzi")))


@pytest.mark.parametrize("projection", [None, "equirectangular"])
def test_a_notebook_draws_it(projection: str | None, browser: "Browser", tmp_path: Path) -> None:
    recipe = {**RECIPE, "projection": projection} if projection else RECIPE
    panorama = Panorama(torch.zeros(4, 2, 3), striped((512, 256 if projection else 128), "red"), recipe)
    (tmp_path / "notebook.html").write_text(f"<meta charset=utf-8><body>{panorama._repr_html_()}", encoding="utf-8")
    page = browser.new_page()
    page.goto((tmp_path / "notebook.html").as_uri())
    wait_until_drawn(page, "iframe")
    page.close()


def film(path: Path, **changes: Any) -> Path:
    """A film of half a second that goes from dark to bright, with stripes."""
    stripes = np.asarray(striped((512, 128), "black")).astype(float)
    frames = np.stack([(stripes * shade).astype(np.uint8) for shade in np.linspace(0.5, 1, 8)])
    films.write(path, frames, 16, {**RECIPE, "frames": 8, **changes})
    return path


def wait_until(page: "Page", code: str) -> None:
    """Wait until something is so. The page forbids what Playwright would wait with."""
    for _ in range(100):
        if page.evaluate(code):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"it never happens: {code}")


def test_a_film_plays_and_loops_if_its_ends_join(show: Open, tmp_path: Path) -> None:
    page = show(film(tmp_path / "a.webm", wrap="xt"))
    wait_until(page, "document.querySelector('video').currentTime > 0.05")
    wait_until_drawn(page)
    size = "(({videoWidth: w, videoHeight: h, loop, controls}) => [w, h, loop, controls])(document.querySelector('video'))"
    assert page.evaluate(size) == [512, 128, True, True]
    page.wait_for_timeout(800)
    assert not page.evaluate("document.querySelector('video').ended")
    page.get_by_role("button", name="Zoom in").click()
    wider = "document.querySelector('video').offsetWidth > 1.4 * document.querySelector('.box').offsetWidth"
    assert page.evaluate(wider)
    page = show(film(tmp_path / "a.webm", wrap="x"))
    wait_until(page, "document.querySelector('video').ended")
    assert page.locator(".fault").count() == 0


def test_a_film_that_the_browser_cannot_play_is_named(show: Open, tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes().replace(b"avc1", b"none"))
    page = show(path)
    page.locator(".fault", has_text="This browser cannot show a.mp4.").wait_for()


def test_a_film_as_webp_moves(show: Open, tmp_path: Path) -> None:
    page = show(film(tmp_path / "a.webp"))
    wait_until_drawn(page)
    shades = set()
    for _ in range(60):
        shades.add(round(ImageStat.Stat(colours(page)).mean[0]))
        if len(shades) > 2:
            return
    raise AssertionError("nothing moves")


def test_films_beside_each_other_play_together(show: Open, tmp_path: Path) -> None:
    page = show(film(tmp_path / "a.webm"), film(tmp_path / "b.webm", seed=7))
    wait_until(page, "[...document.querySelectorAll('video')].every((video) => video.ended)")
    page.locator("video").first.hover()
    page.evaluate("document.querySelector('video').currentTime = 0.25")
    wait_until(page, "document.querySelectorAll('video')[1].currentTime == 0.25")


def test_a_film_in_a_gallery_opens_and_plays(show: Open, tmp_path: Path) -> None:
    film(tmp_path / "a.webm", wrap="t")
    film(tmp_path / "b.webp")
    page = show(tmp_path)
    wait_until_drawn(page, ".card")
    page.locator(".card").first.click()
    wait_until(page, "document.querySelector('dialog video').currentTime > 0.05")
    page.get_by_role("button", name="Close").click()
    page.locator("dialog").wait_for(state="detached")
