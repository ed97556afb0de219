"""Panels: the options of a job become values of the page, and the same options again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from panokit.errors import SettingError

gradio = pytest.importorskip("gradio", reason="the studio needs gradio, which is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of gradio and what it imports
    pytest.mark.xdist_group("studio"),
]

if TYPE_CHECKING:
    from collections.abc import Iterator

    from panokit.studio.panels import Panel


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A page to draw on. The library makes an event loop for each, and closes none."""
    loops, new = [], asyncio.new_event_loop
    monkeypatch.setattr(asyncio, "new_event_loop", lambda: loops.append(new()) or loops[-1])
    with gradio.Blocks(analytics_enabled=False):
        yield
    for loop in loops:
        loop.close()


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize(
    "options",
    [
        {"prompt": "a lake", "negative_prompt": "rain"},
        {"prompt": {"regions": [{"box": [0, 0, 0.5, 1], "text": "a lake"}], "elsewhere": "hills"}, "negative_prompt": ""},
        {
            "prompt": {
                "regions": [
                    {"box": [0, 0, 0.5, 1], "text": "a lake", "negative_prompt": "rain", "weight": 0.5},
                    {"box": [0.4, 0, 1, 1], "text": "a city", "weight": 2, "guidance_scale": 3.0},
                ],
                "elsewhere": "",
                "mix": "windows",
            },
            "negative_prompt": "",
        },
    ],
)
def test_texts_and_boxes_come_back(options: dict[str, Any]) -> None:
    from panokit.studio.panels import Texts

    panel = Texts()
    values = panel.shown(options)
    assert len(values) == len(panel.components)
    assert panel.options(values) == options


@pytest.mark.usefixtures("blocks")
def test_boxes_as_recipes_write_them_come_back() -> None:
    from panokit.studio.panels import Texts

    panel = Texts()
    values = panel.shown({"prompt": {"boxes": [[[0, 0, 1, 1], "a lake"]], "elsewhere": "hills"}})
    assert panel.options(values)["prompt"] == {"regions": [{"box": [0, 0, 1, 1], "text": "a lake"}], "elsewhere": "hills"}


@pytest.mark.usefixtures("blocks")
def test_painted_regions_come_back_by_their_colours() -> None:
    from panokit.studio.paintings import SIZE
    from panokit.studio.panels import Texts

    left, right = Image.new("L", SIZE), Image.new("L", SIZE)
    left.paste(255, (0, 0, 100, SIZE[1]))
    right.paste(255, (500, 0, 800, SIZE[1]))
    areas = {"red": (left, "a lake"), "blue": (right, "a city")}
    panel = Texts()
    shown = panel.painted(areas)
    values = [*panel.shown({"prompt": "hills"})[:4], *(shown[part] for part in panel.components[4:])]
    again = panel.areas(values)
    assert {name: text for name, (_, text) in again.items()} == {"red": "a lake", "blue": "a city"}
    assert all(again[name][0].tobytes() == area.tobytes() for name, (area, _) in areas.items())
    values[5] = " "
    with pytest.raises(SettingError, match="the painted region in red has no text"):
        panel.areas(values)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize(
    ("row", "line"),
    [
        ([0, 0, "half", 1, "a lake", "", "", ""], "left, top, right and bottom are numbers from 0 to 1"),
        ([0, 0, None, 1, "a lake", "", "", ""], "left, top, right and bottom are numbers from 0 to 1"),
    ],
)
def test_a_wrong_box_is_named(row: list[Any], line: str) -> None:
    from panokit.studio.panels import Texts

    panel = Texts()
    with pytest.raises(SettingError, match=line):
        panel.options(["", "", [row], "cells", None, "", "", "", ""])


@pytest.mark.usefixtures("blocks")
def test_sizes_come_back_with_the_seed_which_is_kept() -> None:
    from panokit.studio.panels import Sizes

    panel = Sizes()
    options = {
        "width": 512,
        "height": 128,
        "steps": 7,
        "guidance_scale": 3.5,
        "stride": 64,
        "wrap": "xy",
        "seed": (1 << 64) - 1,
    }
    assert panel.options(panel.shown(options)) == options
    *values, _, _ = panel.shown(options)
    assert panel.options([*values, "3", False])["seed"] != panel.options([*values, "3", False])["seed"]
    with pytest.raises(SettingError, match="seed is '99999999999999999999': it must be a whole number from 0 to"):
        panel.options([*values, "99999999999999999999", True])
    with pytest.raises(SettingError, match="seed is 'three': it must be a whole number"):
        panel.options([*values, "three", True])


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize(
    ("option", "part"),
    [
        ("guidances", []),
        ("guidances", [{"plugin": "msd", "weight": 3}, {"plugin": "head_start"}]),
        ("layout", {"plugin": "spotdiffusion", "unit": 4}),
        ("fuser", {"plugin": "multidiffusion", "weights": "uniform"}),
        ("scheduler", {"plugin": "ddim", "options": {"eta": 0.5}}),
    ],
)
def test_parts_come_back(option: Any, part: Any) -> None:
    from panokit.studio.panels import Parts

    panel = Parts(option, {"layout": "overlap", "fuser": "multidiffusion"}.get(option))
    values = panel.shown({option: part})
    assert len(values) == len(panel.components)
    assert panel.options(values) == {option: part}


@pytest.mark.usefixtures("blocks")
def test_what_the_page_cannot_show_is_refused() -> None:
    from panokit.studio.panels import Models, Parts

    with pytest.raises(SettingError, match="the page has no form for 'msd' here"):
        Parts("guidances", None).shown({"guidances": ["msd", "msd"]})
    with pytest.raises(SettingError, match="the model 'elsewhere' is not on this page"):
        Models(None).shown({"model": "elsewhere"})


@pytest.mark.usefixtures("blocks")
def test_the_model_of_the_command_line_is_offered_first() -> None:
    from panokit.studio.panels import Models

    def chosen(panel: Panel) -> Any:
        return panel.components[0].value

    assert chosen(Models("/models/mine")) == "/models/mine"
    assert chosen(Models(None)) == "landscapes"
