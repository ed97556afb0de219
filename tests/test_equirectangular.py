"""Equirectangular pictures say what they are, in every format that has a place for it; flat pictures say nothing."""

import html
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from panokit import Panorama, SettingError, equirectangular, files, recipe
from panokit.errors import FallbackWarning
from panokit.jobs import options_in
from panokit.recipe_text import as_command
from panokit.view.picture import sphere_of
from panokit.view.show import write
from panokit.writing import writing

FLAT: dict[str, Any] = {"prompt": "a lake, ümläut 湖", "seed": 6, "width": 64, "height": 32, "steps": 2}
SPHERE = {**FLAT, "projection": "equirectangular"}
ENDINGS = ["png", "jpg", "webp", "tiff"]
GPANO, RDF = "{http://ns.google.com/photos/1.0/panorama/}", "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"


def saved(path: Path, data: dict[str, Any]) -> Path:
    Panorama(torch.zeros(4, 4, 8), Image.new("RGB", (64, 32), "red"), data).save(path)
    return path


def test_the_packet_is_xml_with_all_properties_of_a_whole_sphere() -> None:
    (description,) = ElementTree.fromstring(equirectangular.packet((2048, 1024)))[0]
    assert {name.removeprefix(GPANO): value for name, value in description.items()} == {
        f"{RDF}about": "",
        "ProjectionType": "equirectangular",
        "UsePanoramaViewer": "True",
        "FullPanoWidthPixels": "2048",
        "FullPanoHeightPixels": "1024",
        "CroppedAreaImageWidthPixels": "2048",
        "CroppedAreaImageHeightPixels": "1024",
        "CroppedAreaLeftPixels": "0",
        "CroppedAreaTopPixels": "0",
    }


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_sphere_says_so_beside_its_recipe_and_a_flat_picture_does_not(ending: str, tmp_path: Path) -> None:
    for data, angles in ((SPHERE, {"haov": 360, "vaov": 180, "vOffset": 0}), (FLAT, None)):
        path = saved(tmp_path / f"a.{ending}", data)
        assert recipe.read(path) == data
        with Image.open(path) as image:
            assert sphere_of(image) == angles
        assert (b"GPano" in path.read_bytes()) == (angles is not None)


def test_the_projection_is_a_fact_and_no_option_of_a_picture_that_is_made_again(tmp_path: Path) -> None:
    kept = recipe.read(saved(tmp_path / "a.png", {**SPHERE, "model": "landscapes"}))
    options = options_in(kept, "the recipe")
    assert options == {**FLAT, "model": "landscapes"}
    assert "projection" not in as_command(kept)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_a_large_sphere_that_is_written_while_it_is_decoded_says_so_too(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyvips", reason="a large TIFF is written by pyvips, which is not installed")
    monkeypatch.setattr(files, "SIDE", 60)
    for data, angles in ((SPHERE, {"haov": 360, "vaov": 180, "vOffset": 0}), (FLAT, None)):
        path = tmp_path / f"a.{ending}"
        with writing(path, (64, 32), data) as put:
            put(np.zeros((32, 64, 3), np.uint8))
        assert recipe.read(path) == data
        with Image.open(path) as image:
            assert sphere_of(image) == angles


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_recipe_that_is_too_long_takes_nothing_else_with_it(ending: str, tmp_path: Path) -> None:
    with pytest.warns(FallbackWarning, match="is left out"):
        path = saved(tmp_path / f"a.{ending}", {**SPHERE, "prompt": "a" * recipe.LONGEST})
    with Image.open(path) as image:
        assert sphere_of(image) is not None


@pytest.mark.parametrize("size", [(512, 128), (0, 0), (100, 51)])
def test_a_flat_strip_is_no_sphere(size: tuple[int, int], tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=rf"{size[0]} x {size[1]} pixels: an equirectangular picture is twice as wide"):
        equirectangular.packet(size)
    width, height = size
    assert equirectangular.packet_of({**SPHERE, "width": width, "height": height}) is None


def test_a_page_and_a_notebook_show_it_from_inside(tmp_path: Path) -> None:
    for data, angles in ((SPHERE, {"haov": 360, "vaov": 180, "vOffset": 0}), (FLAT, None)):
        page = write([str(saved(tmp_path / "a.png", data))], str(tmp_path / "a.html")).read_text()
        cell = html.unescape(Panorama(torch.zeros(4, 4, 8), Image.new("RGB", (64, 32)), data)._repr_html_())
        for text in (page, cell):
            held = re.search(r'type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL)
            assert held
            assert json.loads(held[1])["pictures"][0].get("sphere") == angles
