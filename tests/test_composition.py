"""Plugins as plain data and back."""

import json
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from panokit import (
    DiffusersScheduler,
    Fuser,
    Guidance,
    Level,
    Scheduler,
    SettingError,
    WeightedFuser,
    Windows,
    former_settings,
)
from panokit.composition import build, describe, parameters, prompt_from
from panokit.errors import PluginNotFoundError
from panokit.scene import Regions
from panokit.testing.toys import Pull
from panokit_msd import HeadStart, MSDGuidance, MSDPaper
from panokit_multidiffusion import MultiDiffusion
from panokit_syncdiffusion import SyncDiffusion


@dataclass(frozen=True)
class Outside(WeightedFuser):
    name: str = "plain"
    """A setting that is called as registries call plugins."""

    def weight(self, windows: Windows, level: Level) -> Tensor:
        return torch.ones(1, *windows.window)


@former_settings(called="write name")
@dataclass(frozen=True)
class Renamed(Outside):
    name: str = "renamed"
    strong: bool = False

    @classmethod
    def stronger(cls, name: str = "strong", **settings: Any) -> "Renamed":
        """One that is strong."""
        return cls(name, **{"strong": True, **settings})


@dataclass(frozen=True)
class Nested(Pull):
    """A guidance that has guidances."""

    choice: Literal["one", "two"] = "one"
    inner: tuple[Guidance, ...] = ()


NESTED = f"{__name__}:Nested"


@pytest.mark.parametrize(
    ("base", "plugin", "part"),
    [
        (Fuser, MultiDiffusion("uniform"), {"plugin": "multidiffusion", "weights": "uniform", "spread": 0.2}),
        (Scheduler, DiffusersScheduler("ddim", {"eta": 0.5}), {"plugin": "ddim", "options": {"eta": 0.5}}),
        (Fuser, Outside("other"), {"plugin": f"{__name__}:Outside", "name": "other"}),
        (
            Guidance,
            MSDPaper(3.0),
            {"plugin": "msd_paper", "weight": 3.0, "decay": 1.0, "until": 0.5, "levels": None, "factor": 2},
        ),
        (Guidance, HeadStart(0.2), {"plugin": "head_start", "until": 0.2, "levels": None, "factor": 2}),
        (Guidance, Nested(weight=3.0, inner=(SyncDiffusion(5.0), MSDGuidance())), None),
    ],
)
def test_a_plugin_comes_back_from_its_description(base: Any, plugin: Any, part: dict[str, Any] | None) -> None:
    described = describe(plugin)
    assert part in (None, described)
    assert build(base, json.loads(json.dumps(described))) == plugin


@pytest.mark.parametrize(
    ("part", "plugin"),
    [
        ("msd", MSDGuidance()),
        ({"plugin": "msd", "weight": 5}, MSDGuidance(5.0)),
        ({"plugin": "msd_paper", "weight": 3, "levels": 2}, MSDPaper(3.0, levels=2)),
        ("panokit_msd:HeadStart", HeadStart()),
        ({"plugin": NESTED, "inner": [{"plugin": "syncdiffusion"}]}, Nested(inner=(SyncDiffusion(),))),
    ],
)
def test_names_and_settings_make_a_plugin(part: object, plugin: Guidance) -> None:
    assert build(Guidance, part) == plugin


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("msdd", "did you mean 'msd'"),
        ({"plugin": "msd", "wieght": 3}, "msd has no setting 'wieght': did you mean 'weight'"),
        ({"plugin": "msd", "weight": "five"}, "weight of msd came as 'five': it must be a number"),
        ({"plugin": NESTED, "choice": "x"}, r"choice of .*:Nested came as 'x': it must be one or two"),
        ({"plugin": "msd", "weight": -1}, "msd: weight is -1.0: it must be 0 or more"),
        ({"plugin": NESTED, "inner": ["syncdiffusion"]}, r"it must be a list, \[...\] of Guidance, each {plugin: NAME"),
        ({"plugin": NESTED, "inner": [{"plugin": "msdd"}]}, "did you mean 'msd'"),
        ({"plugin": "multidiffusion"}, "no guidance is called 'multidiffusion'"),
        ({"weight": 3}, "give its name, or a mapping of its name and settings"),
        ({"plugin": "msd", 3: 4}, "give its name, or a mapping"),
        (3, "a guidance came as 3"),
        ("panokit:Guidance", "panokit:Guidance cannot be made by name alone"),
    ],
)
def test_a_part_that_makes_no_plugin_is_told_why(part: object, message: str) -> None:
    with pytest.raises((SettingError, PluginNotFoundError), match=message):
        build(Guidance, part)


@pytest.mark.parametrize(
    "part",
    [
        "os:system",
        {"plugin": f"{__name__}:Outside"},
        {"plugin": "msd", "inner": [{"plugin": "os:system"}]},
        {"plugin": "msd", "inner": [{"class_path": "antigravity.x"}]},
        {"plugin": "msd", "inner": ["antigravity.x"]},
        {"plugin": "syncdiffusion", "metric": "antigravity.x"},
    ],
)
def test_what_could_import_code_is_refused_where_it_is_not_trusted(part: object) -> None:
    with pytest.raises(SettingError, match="which is code and no installed plugin's name: trust it"):
        build(Guidance, part, trusted=False)


def test_a_setting_that_is_no_data_is_described_for_people() -> None:
    part = describe(SyncDiffusion(metric=torch.dist))
    assert part["metric"].startswith("<built-in method dist")
    with pytest.raises(SettingError, match="it must be one of efficientnet"):
        build(Guidance, part)


def test_parameters_are_what_the_docstring_says() -> None:
    summary, found = parameters(Guidance, "msd")
    assert summary.startswith("Cross-scale guidance")
    weight = next(each for each in found if each.name == "weight")
    assert (weight.type, weight.default) == ("float", "10.0")
    assert weight.meaning.startswith(r"$\omega$, 0 or more")
    stronger, others = parameters(Fuser, f"{__name__}:Renamed.stronger")
    assert stronger == "One that is strong."
    assert {each.name: each.default for each in others} == {"name": "'strong'", "strong": "False"}
    assert [each.name for each in parameters(Scheduler, "ddim")[1]] == ["options"]


def test_a_class_method_makes_a_plugin_too() -> None:
    maker = f"{__name__}:Renamed.stronger"
    assert build(Fuser, maker) == Renamed("strong", strong=True)
    assert build(Fuser, {"plugin": maker, "name": "mine"}) == Renamed("mine", strong=True)


def test_a_former_setting_is_answered_with_what_to_write_now() -> None:
    make: Any = Renamed
    with pytest.raises(SettingError, match=r"^Renamed has no setting 'called' any more: write name$"):
        make(called="mine")
    with pytest.raises(SettingError, match=r"^.*:Renamed has no setting 'called' any more: write name$"):
        build(Fuser, {"plugin": f"{__name__}:Renamed", "called": "mine"})
    assert make("mine") == Renamed(name="mine")
    assert [setting.name for setting in parameters(Fuser, f"{__name__}:Renamed")[1]] == ["name", "strong"]


def test_a_prompt_is_a_text_or_boxes_with_texts() -> None:
    assert prompt_from("a lake") == "a lake"
    regions = Regions((((0, 0, 0.5, 1), "a lake"), ((0.5, 0, 1, 1), "a city")), "fog")
    boxes = [[[0, 0, 0.5, 1], "a lake"], [[0.5, 0, 1, 1], "a city"]]
    assert prompt_from({"boxes": boxes, "elsewhere": "fog"}) == regions
    with pytest.raises(SettingError, match="leaves the canvas"):
        prompt_from({"boxes": [[[0, 0, 2, 1], "a lake"]]})


@pytest.mark.parametrize(
    "data",
    [
        {"boxes": [[[0, 0, 1, 1], "a lake"]], "beside": "a city"},
        {"boxes": [[[0, 0, 1, True], "a lake"]]},
        3,
        {},
        {"boxes": 3},
        {"boxes": ["a lake"]},
        {"boxes": [[[0, 0, 1], "a lake"]]},
        ["a lake"],
    ],
)
def test_a_prompt_that_is_neither_is_told_the_form(data: object) -> None:
    with pytest.raises(SettingError, match="give a text, or"):
        prompt_from(data)


def test_settings_that_are_no_data_are_described_alike_in_every_process() -> None:
    described = describe(SyncDiffusion(metric=lambda a, b: (a - b).flatten(1).sum(1)))
    assert described["metric"].startswith("<function ")
    assert " at 0x" not in described["metric"]
