"""`panokit view`: what its page holds, and what it says of files that it cannot show."""

import base64
import html
import io
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageStat
from PIL.PngImagePlugin import PngInfo
from PIL.WebPImagePlugin import WebPImageFile

from panokit import Panorama, SettingError, films
from panokit.cli import main
from panokit.errors import FallbackWarning, OutputError
from panokit.recipe_text import as_command
from panokit.view import show, tiles
from panokit.view.cell import cell
from panokit.view.picture import sphere_of
from panokit.view.show import write

RECIPE: dict[str, Any] = {
    "panokit": "0.1.0",
    "prompt": "a lake",
    "height": 20,
    "width": 80,
    "steps": 25,
    "seed": 6,
    "wrap": False,
    "model": "landscapes",
    "scheduler": {"plugin": "ddim", "options": {"eta": 0.5}},
    "fuser": {"plugin": "multidiffusion", "spread": 0.2},
    "guidances": [{"plugin": "msd", "weight": 10.0}],
}
GPANO = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
    'xmlns:GPano="http://ns.google.com/photos/1.0/panorama/">{}</rdf:Description></rdf:RDF></x:xmpmeta>'
)
WHOLE = GPANO.format("<GPano:ProjectionType>equirectangular</GPano:ProjectionType>")
NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'`${alert(3)}<!--&\u2028"


def picture(path: Path, size: tuple[int, int] = (80, 20), **changes: Any) -> Path:
    Panorama(torch.zeros(4, 2, 3), Image.effect_noise(size, 90).convert("RGB"), {**RECIPE, **changes}).save(path)
    return path


def shown(page: Path | str) -> dict[str, Any]:
    """The data of a page."""
    text = page if isinstance(page, str) else page.read_text(encoding="utf-8")
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    return json.loads(data)


def view(*files: Path, out: Path) -> dict[str, Any]:
    return shown(write([str(file) for file in files], str(out)))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "page.html"


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_the_page_holds_the_file_as_it_is(name: str, tmp_path: Path, out: Path) -> None:
    path = picture(tmp_path / name)
    view(path, out=out)
    ((kind, text),) = re.findall(r'<script type="(image/\w+);base64" id="picture-0">(.*?)</script>', out.read_text())
    assert base64.b64decode(text) == path.read_bytes()
    assert kind == f"image/{ {'png': 'png', 'jpg': 'jpeg', 'webp': 'webp'}[path.suffix[1:]] }"


def test_other_formats_are_converted(tmp_path: Path, out: Path) -> None:
    picture(tmp_path / "a.tiff")
    view(tmp_path / "a.tiff", out=out)
    assert 'type="image/png;base64" id="picture-0"' in out.read_text()


def test_the_page_needs_nothing_else(tmp_path: Path, out: Path) -> None:
    view(picture(tmp_path / "a.png"), out=out)
    text = re.sub(r"<script>.*?</script>", "", out.read_text(encoding="utf-8"), flags=re.DOTALL)  # licences name their places
    assert not re.search(r"""(src|href)=|@import|https?:""", text)


def test_the_page_holds_the_licences_of_its_viewers(tmp_path: Path, out: Path) -> None:
    view(picture(tmp_path / "a.png"), out=out)
    assert out.read_text(encoding="utf-8").count("Redistributions of source code must retain the above copyright notice") == 1


def test_the_recipe_stands_beside_the_picture(tmp_path: Path, out: Path) -> None:
    (of_picture,) = view(picture(tmp_path / "a.png"), out=out)["pictures"]
    rows = dict(of_picture["rows"])
    assert rows["Prompt"] == "a lake"
    assert rows["Size"] == "80 x 20 pixels"
    assert (rows["Seed"], rows["Steps"]) == ("6", "25")
    assert rows["Method"] == "multidiffusion + msd"
    assert rows["Guidance msd"] == "msd: weight 10"
    assert rows["Scheduler"] == "ddim: options eta 0.5"
    assert "Wrap" not in rows
    assert of_picture["command"] == as_command(RECIPE)
    assert "foreign" not in of_picture


def test_a_recipe_that_names_more_than_plugins_is_marked(tmp_path: Path, out: Path) -> None:
    (of_picture,) = view(picture(tmp_path / "a.png", fuser="os:system"), out=out)["pictures"]
    assert of_picture["foreign"]


@pytest.mark.parametrize(
    ("wrap", "expected"),
    [(True, [True, False]), ("x", [True, False]), ("y", [False, True]), ("xy", [True, True]), (False, [False, False])]
    + [(junk, [False, False]) for junk in ("sideways", 3, [1], {"a": 1}, None)],
)
def test_a_ring_is_endless(wrap: Any, expected: list[bool], tmp_path: Path, out: Path) -> None:
    assert view(picture(tmp_path / "a.png", wrap=wrap), out=out)["pictures"][0]["wrap"] == expected


def test_what_a_stranger_wrote_stays_text(tmp_path: Path, out: Path) -> None:
    path = picture(tmp_path / "a.png", **{"prompt": NASTY, "model": NASTY, NASTY: NASTY})
    named = tmp_path / "<img src=x onerror=alert(4)>.png"
    named.write_bytes(path.read_bytes())
    (tmp_path / "<b>.png").write_text("no picture")
    with pytest.warns(FallbackWarning):
        data = view(path, named, tmp_path / "<b>.png", out=out)
    text = out.read_text(encoding="utf-8")
    assert dict(data["pictures"][0]["rows"])["Prompt"] == NASTY
    assert data["pictures"][1]["name"] == named.name
    for script in re.findall(r"<script>.*?</script>", text, re.DOTALL):
        text = text.replace(script, "")
    assert not re.search(r"alert\(\d\)</script>|<img|<b>|<script>|<!--&", text)


def test_the_page_runs_its_own_scripts_alone(tmp_path: Path, out: Path) -> None:
    view(picture(tmp_path / "a.png"), out=out)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', out.read_text(encoding="utf-8"))
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert all(source.startswith("'sha256-") for source in rules["script-src"].split())
    assert not re.search(r"https?:|\*", policy)


@pytest.mark.parametrize(
    "recipe",
    [{"prompt": None}, {"guidances": 3, "fuser": [1]}, {"model": {"plugin": 3}}, {"prompt": [[[[[[[[[[["deep"]]]]]]]]]]]}, {}],
)
def test_a_damaged_recipe_does_no_harm(recipe: dict[str, Any], tmp_path: Path, out: Path) -> None:
    chunks = PngInfo()
    chunks.add_itxt("panokit", json.dumps(recipe))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=chunks)
    assert dict(view(tmp_path / "a.png", out=out)["pictures"][0]["rows"])["Size"] == "8 x 8 pixels"


def test_a_picture_without_a_recipe_is_shown_without_one(tmp_path: Path, out: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (of_picture,) = view(tmp_path / "a.png", out=out)["pictures"]
    assert dict(of_picture["rows"])["Recipe"] == "none in this file"
    assert "command" not in of_picture


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_an_equirectangular_picture_is_a_sphere(name: str, tmp_path: Path, out: Path) -> None:
    chunks = PngInfo()
    chunks.add_itxt("XML:com.adobe.xmp", WHOLE)
    options: dict[str, Any] = {"pnginfo": chunks} if name == "a.png" else {"xmp": WHOLE.encode()}
    Image.new("RGB", (80, 40)).save(tmp_path / name, **options)
    assert view(tmp_path / name, out=out)["pictures"][0]["sphere"] == {"haov": 360, "vaov": 180, "vOffset": 0}
    text = out.read_text(encoding="utf-8")
    assert "Pannellum 2.5.7" in text
    assert "openseadragon 6.1.1" not in text


def test_a_part_of_a_sphere_has_its_angles() -> None:
    attributes = {
        "ProjectionType": "equirectangular",
        "CroppedAreaImageWidthPixels": 1000,
        "CroppedAreaImageHeightPixels": 500,
        "CroppedAreaTopPixels": 0,
        "FullPanoWidthPixels": 2000,
        "FullPanoHeightPixels": 1000,
    }
    image = Image.new("RGB", (100, 50))
    image.info["xmp"] = " ".join(f'GPano:{name}="{value}"' for name, value in attributes.items()).encode()
    assert sphere_of(image) == {"haov": 180, "vaov": 90, "vOffset": 45}
    image.info["xmp"] = image.info["xmp"].replace(b'"1000"', b'"-7e9"')
    assert sphere_of(image) == {"haov": 360, "vaov": 180, "vOffset": 0}
    image.info["xmp"] = b'GPano:ProjectionType="cylindrical"'
    assert sphere_of(image) is None


@pytest.mark.filterwarnings("always::panokit.errors.FallbackWarning")
def test_what_is_no_picture_is_named_and_the_rest_is_shown(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "b.png").write_text("no picture")
    files = [str(picture(tmp_path / "a.png")), str(tmp_path / "b.png")]
    assert main(["view", *files, "--out", str(out), "--no_open"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    assert re.fullmatch(r"panokit: warning: .*b.png cannot be read as a picture.*\n", printed.err)
    data = shown(out)
    assert [of_picture["name"] for of_picture in data["pictures"]] == ["a.png"]
    assert "b.png cannot be read as a picture" in data["problems"][0]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "panokit view needs FILES"),
        (["nowhere.png"], "there is no picture nowhere.png"),
        (["empty"], "the folder empty holds no pictures"),
        (["text.png"], "there is no picture to show: text.png cannot be read as a picture"),
        (["text.png", "text.jpg"], "cannot be read as a picture.*; and 1 more"),
        (["a.png", "--out", "a.png"], "name it NAME.html"),
        (["a.png", "--out", "no/such/folder/a.html"], "make it first"),
    ],
)
def test_a_mistake_is_one_line(
    files: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("text.png", "text.jpg"):
        (tmp_path / name).write_text("no picture")
    before = picture(tmp_path / "a.png").read_bytes()
    assert main(["view", *files, "--no_open"]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1
    assert (tmp_path / "a.png").read_bytes() == before


def test_a_bomb_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "bomb.png")
    own = picture(tmp_path / "own.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.warns(FallbackWarning, match="bomb.png has 40 x 40 pixels, and 200 are the most"):
        data = view(own, tmp_path / "bomb.png", out=out)
    assert [of_picture["name"] for of_picture in data["pictures"]] == ["own.png"]


def test_files_of_one_name_are_told_apart(tmp_path: Path, out: Path) -> None:
    (tmp_path / "b").mkdir()
    one, two = picture(tmp_path / "a.png"), picture(tmp_path / "b" / "a.png", seed=7)
    assert [of_picture["name"] for of_picture in view(one, two, out=out)["pictures"]] == [str(one), str(two)]


def test_without_a_name_the_page_is_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["view", str(picture(tmp_path / "a.png"))]) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page.is_relative_to(tmp_path)
    assert opened == [page.as_uri()]
    assert main(["view", str(tmp_path / "a.png"), "--no_open"]) == 0
    assert len(opened) == 1
    (tmp_path / "text.png").write_text("no picture")
    pages = len([*tmp_path.glob("panokit-view-*")])
    assert main(["view", str(tmp_path / "text.png"), "--no_open"]) == 2
    assert len([*tmp_path.glob("panokit-view-*")]) == pages == 2


def test_a_folder_is_a_gallery(tmp_path: Path, out: Path) -> None:
    for k in (10, 9, 1):
        picture(tmp_path / f"lake {k}.png", seed=k)
    (tmp_path / "notes.txt").write_text("of the journey")
    data = view(tmp_path, out=out)
    assert data["form"] == "gallery"
    assert [of_picture["name"] for of_picture in data["pictures"]] == ["lake 1.png", "lake 9.png", "lake 10.png"]
    assert data["pictures"][0]["url"] == "lake%201.png"  # both may move
    assert "seed 1 " in data["pictures"][0]["command"]
    (tmp_path / "other").mkdir()
    data = view(tmp_path, out=tmp_path / "other" / "page.html")
    assert data["pictures"][0]["url"] == (tmp_path / "lake 1.png").as_uri()


def test_a_gallery_of_many_is_small_and_quick(tmp_path: Path, out: Path) -> None:
    """A picture costs a few kilobytes and little more than decoding it, however large it is."""
    first = picture(tmp_path / "0.png", size=(1024, 256))
    for k in range(1, 300):
        (tmp_path / f"{k}.png").hardlink_to(first)
    start = time.perf_counter()
    for k in range(300):
        with Image.open(tmp_path / f"{k}.png") as image:
            image.load()
    decoding = time.perf_counter() - start
    start = time.perf_counter()
    data = view(tmp_path, out=out)
    assert time.perf_counter() - start < 5 + 5 * decoding
    assert len(data["pictures"]) == 300
    assert out.stat().st_size < 1_000_000 + 300 * 30_000 < 300 * first.stat().st_size
    assert all(of_picture["thumbnail"].startswith("data:image/jpeg;base64,") for of_picture in data["pictures"])


def test_many_files_are_a_gallery_too(tmp_path: Path, out: Path) -> None:
    files = [picture(tmp_path / f"{k}.png") for k in range(9)]
    assert view(*files, out=out)["form"] == "gallery"
    assert view(*files[:8], out=out)["form"] == "pictures"


def test_what_no_browser_shows_is_small_in_a_gallery(tmp_path: Path, out: Path) -> None:
    picture(tmp_path / "a.tiff")
    (of_picture,) = view(tmp_path, out=out)["pictures"]
    assert "url" not in of_picture
    assert "small version" in of_picture["note"]


@pytest.mark.parametrize("mode", ["I;16", "1", "P", "LA", "RGBA", "CMYK"])
def test_any_picture_is_shown_with_its_shades(mode: str, tmp_path: Path, out: Path) -> None:
    grey = Image.linear_gradient("L")
    image = grey.convert("I").point(lambda shade: shade * 257).convert("I;16") if mode == "I;16" else grey.convert(mode)
    path = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
    image.save(path)
    (of_picture,) = view(tmp_path, out=out)["pictures"]
    with Image.open(io.BytesIO(base64.b64decode(of_picture["thumbnail"].partition(",")[2]))) as small:
        assert ImageStat.Stat(small.convert("L")).mean[0] == pytest.approx(127, abs=4)
    view(path, out=out)
    (text,) = re.findall(r'<script type="image/png;base64" id="picture-0">(.*?)</script>', out.read_text(encoding="utf-8"))
    with Image.open(io.BytesIO(base64.b64decode(text))) as whole:
        assert whole.size == (256, 256)


def test_a_small_picture_stands_upright(tmp_path: Path, out: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    picture(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        image.convert("RGB").save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "a.png").unlink()
    (of_picture,) = view(tmp_path, out=out)["pictures"]
    with Image.open(io.BytesIO(base64.b64decode(of_picture["thumbnail"].partition(",")[2]))) as small:
        assert small.size == (20, 80)


@pytest.mark.parametrize(("orientation", "size"), [(1, [400, 100]), (3, [400, 100]), (6, [100, 400]), (8, [100, 400])])
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_a_picture_has_the_size_that_it_is_shown_with(
    name: str, orientation: int, size: list[int], tmp_path: Path, out: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (400, 100)).save(tmp_path / name, exif=exif)
    for files in (tmp_path / name, tmp_path):
        (of_picture,) = view(files, out=out)["pictures"]
        assert of_picture["size"] == size
        assert dict(of_picture["rows"])["Size"] == f"{size[0]} x {size[1]} pixels"


def test_a_recipe_of_pictures_that_were_in_no_file_is_marked(tmp_path: Path, out: Path) -> None:
    (of_picture,) = view(picture(tmp_path / "a.png", image="sha256:12"), out=out)["pictures"]
    assert of_picture["lacks"]
    assert "--image FILE" in of_picture["command"]
    assert "lacks" not in view(picture(tmp_path / "b.png", image="b.png"), out=out)["pictures"][0]


@pytest.fixture
def large(tmp_path: Path) -> Path:
    image = Image.linear_gradient("L").resize((20_000, 200)).convert("RGB")
    image.save(tmp_path / "large.png", compress_level=1)
    return tmp_path / "large.png"


def test_a_large_picture_is_cut_into_tiles(large: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyvips", reason="tiles are cut by pyvips, which is not installed")
    out = tmp_path / "my page.html"
    (of_picture,) = view(large, out=out)["pictures"]
    source = of_picture["tiles"]["Image"]
    assert source["Size"] == {"Width": "20000", "Height": "200"}
    assert source["Url"] == "my%20page_files/0_files/"
    assert out.stat().st_size < 600_000
    levels = sorted(int(folder.name) for folder in (tmp_path / "my page_files" / "0_files").glob("*/"))
    assert levels == list(range(16))
    with Image.open(tmp_path / "my page_files" / "0_files" / "15" / "39_0.jpg") as tile:
        assert tile.height == 200
    view(large, out=out)  # again, in the same place
    assert not [*tmp_path.glob(".panokit-*")]


def test_a_large_picture_that_is_damaged_is_named(large: Path, tmp_path: Path, out: Path) -> None:
    pytest.importorskip("pyvips", reason="tiles are cut by pyvips, which is not installed")
    whole = large.read_bytes()
    large.write_bytes(whole[: len(whole) // 2])
    with pytest.warns(FallbackWarning, match=r"large\.png cannot be cut into tiles"):
        assert [one["name"] for one in view(large, picture(tmp_path / "a.png"), out=out)["pictures"]] == ["a.png"]
    assert not (tmp_path / "page_files").exists()


def test_tiles_replace_nothing_of_somebody_else(large: Path, tmp_path: Path, out: Path) -> None:
    pytest.importorskip("pyvips", reason="tiles are cut by pyvips, which is not installed")
    (tmp_path / "page_files").mkdir()
    (tmp_path / "page_files" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="page_files, which holds other files"):
        view(large, out=out)
    assert (tmp_path / "page_files" / "thesis.txt").exists()
    assert not out.exists()


def test_a_deep_zoom_picture_is_shown_from_its_own_tiles(tmp_path: Path, out: Path) -> None:
    pytest.importorskip("pyvips", reason="Deep Zoom pictures are written by pyvips, which is not installed")
    (tmp_path / "in").mkdir()
    (of_picture,) = view(picture(tmp_path / "in" / "a b.dzi", (700, 300), width=700, height=300), out=out)["pictures"]
    source = of_picture["tiles"]["Image"]
    assert (source["Url"], source["Format"]) == ("in/a%20b_files/", "jpg")
    assert source["Size"] == {"Width": "700", "Height": "300"}
    assert dict(of_picture["rows"])["Prompt"] == "a lake"
    assert not (tmp_path / "page_files").exists()
    ((small),) = view(tmp_path / "in", out=out)["pictures"]
    assert (small["name"], dict(small["rows"])["Size"]) == ("a b.dzi", "700 x 300 pixels")
    shutil.rmtree(tmp_path / "in" / "a b_files")
    with pytest.raises(SettingError, match=r"the tiles of .* are missing: keep the folder a b_files beside it"):
        view(tmp_path / "in" / "a b.dzi", out=out)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_a_gallery_reads_a_large_picture_without_its_whole_pixels(
    name: str, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyvips", reason="small copies of large pictures are made by pyvips, which is not installed")
    monkeypatch.setattr("panokit.files.SIDE", 600)
    monkeypatch.setattr(show, "_is_too_large", lambda size: max(size) > 600)
    monkeypatch.setattr(show, "decoded", None)
    picture(tmp_path / name, (700, 300), width=700, height=300)
    (small,) = view(tmp_path, out=out)["pictures"]
    assert dict(small["rows"])["Size"] == "700 x 300 pixels"
    with Image.open(io.BytesIO(base64.b64decode(small["thumbnail"].partition(",")[2]))) as thumbnail:
        assert thumbnail.size == (320, 137)


def test_without_tiles_a_large_picture_is_smaller(large: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "can_be_made", lambda: False)
    with pytest.warns(FallbackWarning, match=r'20000 x 200 pixels are shown as 16384 x 163. pip install "panokit\[tiles\]"'):
        (of_picture,) = view(large, out=out)["pictures"]
    assert "16384 x 163" in of_picture["note"]
    assert dict(of_picture["rows"])["Size"] == "20000 x 200 pixels"


def test_a_notebook_shows_the_same_page() -> None:
    panorama = Panorama(torch.zeros(4, 2, 3), Image.effect_noise((80, 20), 90).convert("RGB"), {**RECIPE, "prompt": NASTY})
    element = panorama._repr_html_()
    match = re.fullmatch(r'<iframe srcdoc="([^"]*)" style="([^"]*)" allow="[^"]*"></iframe>', element)
    assert match
    data = shown(html.unescape(match[1]))
    assert data["form"] == "cell"
    assert dict(data["pictures"][0]["rows"])["Prompt"] == NASTY
    assert "* 0.2500" in match[2]  # as high as the picture is
    assert panorama._repr_png_().startswith(b"\x89PNG")


def test_it_starts_without_torch(tmp_path: Path, out: Path) -> None:
    code = (
        "import sys\nfrom panokit.cli import main\n"
        f"assert main(['view', {str(picture(tmp_path / 'a.png'))!r}, '--out', {str(out)!r}, '--no_open']) == 0\n"
        "print({'torch', 'diffusers', 'transformers', 'numpy'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [str(out), "set()"]


def test_no_page_is_left_of_a_failure(tmp_path: Path, out: Path) -> None:
    out.write_text("the page of yesterday")
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(SettingError):
        view(tmp_path / "a.png", out=out)
    assert out.read_text() == "the page of yesterday"


def film(path: Path, **changes: Any) -> Path:
    frames = np.stack([np.full((48, 64, 3), shade, np.uint8) for shade in (40, 120, 200)])
    films.write(path, frames, 16, {**RECIPE, "frames": 3, **changes})
    return path


@pytest.mark.parametrize(("name", "kind"), [("a.mp4", "video/mp4"), ("a.webm", "video/webm"), ("a.webp", "image/webp")])
def test_a_film_is_in_the_page_as_it_is(name: str, kind: str, tmp_path: Path, out: Path) -> None:
    path = film(tmp_path / name)
    (one,) = view(path, out=out)["pictures"]
    assert (one["film"], one["size"]) == (kind.split("/")[0], [64, 48])
    assert ["Size", "64 x 48 pixels, 3 frames"] in one["rows"]
    assert "a lake" in one["command"]
    page = out.read_text()
    ((given, text),) = re.findall(r'<script type="(\w+/\w+);base64" id="picture-0">(.*?)</script>', page)
    assert (given, base64.b64decode(text)) == (kind, path.read_bytes())
    assert "OpenSeadragon" not in page.partition('<script type="application/json"')[2].partition("use strict")[0]


def test_a_film_loops_where_its_recipe_joins_its_ends(tmp_path: Path, out: Path) -> None:
    for wrap, loops in {"t": True, "xt": True, "xy": False}.items():
        assert view(film(tmp_path / "a.mp4", wrap=wrap), out=out)["pictures"][0].get("loop", False) is loops
    assert "loop" not in view(film(tmp_path / "a.mp4", wrap=True), out=out)["pictures"][0]
    assert view(film(tmp_path / "a.webp"), out=out)["pictures"][0]["loop"]


def test_a_large_film_stays_in_its_file(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show, "_FILM", 100)
    (one,) = view(film(tmp_path / "a.webm"), out=out)["pictures"]
    assert one["url"] == "a.webm"
    assert "picture-0" not in out.read_text()


def test_a_film_that_cannot_be_played_is_left_out(tmp_path: Path, out: Path) -> None:
    for name in ("a.mp4", "b.webm"):
        path = film(tmp_path / name)
        path.write_bytes(path.read_bytes()[:-9])
    (tmp_path / "c.mp4").write_text("a lake")
    with pytest.raises(SettingError, match=r"a\.mp4 is damaged, and cannot be played to its end; and 2 more"):
        write([str(tmp_path)], str(out))
    film(tmp_path / "d.webp")
    with pytest.warns(FallbackWarning) as warned:
        pictures = shown(write([str(tmp_path)], str(out)))["pictures"]
    assert [one["name"] for one in pictures] == ["d.webp"]
    assert len(warned) == 3


def test_a_gallery_names_films_and_decodes_none(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.mp4", "b.webm", "c.webp"):
        film(tmp_path / name)
    monkeypatch.setitem(sys.modules, "av", None)
    data = shown(write([str(tmp_path)], str(out)))
    assert [(one["film"], one["url"], "thumbnail" in one) for one in data["pictures"]] == [
        ("video", "a.mp4", False),
        ("video", "b.webm", False),
        ("image", "c.webp", True),
    ]


def test_a_notebook_shows_a_film_that_moves() -> None:
    frames = np.stack([np.full((20, 80, 3), shade, np.uint8) for shade in (0, 120, 240)])
    element = cell(Image.fromarray(frames[1]), {**RECIPE, "frames": 3, "fps": 10}, (80, 20), frames)
    page = html.unescape(element)
    assert shown(page)["pictures"][0]["film"] == "image"
    ((kind, text),) = re.findall(r'<script type="(\w+/\w+);base64" id="picture-0">(.*?)</script>', page)
    assert kind == "image/webp"
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        assert isinstance(image, WebPImageFile)
        assert (image.n_frames, image.size) == (3, (80, 20))
        image.seek(1)
        image.load()
        assert image.info["duration"] == 100
