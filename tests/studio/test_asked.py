"""What a page asks for: nothing but installed parts, no files of the machine, and no more than the limits."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from panokit.errors import PanokitError, SettingError
from panokit.jobs import Worker
from panokit.studio.asked import PIXELS, STEPS, Asked, check
from panokit.testing.hostile import HOSTILE, places, with_value

if TYPE_CHECKING:
    from panokit import Model

JOB: dict[str, Any] = {
    "prompt": {"regions": [{"box": [0, 0, 0.5, 1], "text": "a lake"}], "elsewhere": "hills"},
    "negative_prompt": "rain",
    "height": 128,
    "width": 256,
    "steps": 2,
    "guidance_scale": 7.5,
    "seed": 3,
    "model": "landscapes",
    "scheduler": {"plugin": "ddim", "options": {"eta": 0.5}},
    "layout": "overlap",
    "fuser": {"plugin": "multidiffusion", "spread": 0.3},
    "guidances": [{"plugin": "msd", "weight": 3}],
}


@pytest.fixture(scope="module")
def worker(tiny: Model) -> Worker:
    return Worker({"accelerator": "cpu", "model": tiny}, trusted=False)


def test_a_job_of_installed_parts_passes() -> None:
    assert Asked(JOB).job().settings.steps == 2


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"model": "/etc"}, "which is not installed by that name"),
        ({"model": "owner/model"}, "which is not installed by that name"),
        ({"model": {"plugin": "landscapes", "vae": "/etc"}}, "sets vae of its model, which reads files"),
        ({"layout": "os:system"}, "is code and no installed plugin's name"),
        ({"fuser": {"plugin": "antigravity:Fuser"}}, "is code and no installed plugin's name"),
        ({"guidances": [{"plugin": "msd", "weight": {"class_path": "os.system"}}]}, "is code"),
        ({"image": "/etc/passwd"}, "a file of this machine"),
        ({"mask": "/etc/passwd"}, "a file of this machine"),
        ({"control_image": "/etc/passwd"}, "a file of this machine"),
        ({"prompt": {"regions": [{"mask": "/etc/passwd", "text": "a"}]}}, "a file of this machine"),
        ({"steps": STEPS + 1}, f"steps is {STEPS + 1}: the studio makes up to {STEPS}"),
        ({"height": 8192, "width": 8192}, f"8192 x 8192 pixels are more than the studio makes, {PIXELS}"),
        ({"prompt": "long " * 2000}, "the texts have 10004 letters"),
        ({"prompt": "half \ud800"}, "half a character"),
    ],
)
def test_what_is_not_allowed_is_refused_in_one_line(change: dict[str, Any], line: str) -> None:
    with pytest.raises(SettingError) as error:
        Asked({**JOB, **change}).job()
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("unannotated")
@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"seed": 99999999999999999999}, "seed came as 99999999999999999999: it must be a whole number of up to 64 bits"),
        ({"seed": -1}, f"seed is -1: it must be from 0 to {(1 << 64) - 1}"),
        ({"steps": 20_000}, f"steps is 20000: the studio makes up to {STEPS}"),
        ({"height": 8, "width": 200_000}, "the form asks for width 200000, and 131072 is the most"),
        (
            {"height": 1024, "width": 1 << 20},
            f"1048576 x 1024 pixels are more than the studio makes, {PIXELS}: make it smaller",
        ),
        ({"stride": 40_000}, "the form asks for stride 40000, and 32768 is the most"),
        ({"guidances": [{"plugin": "msd", "levels": 20_000}]}, "the form sets a plugin to 20000, and 10000 is the most"),
        ({"guidances": [{"plugin": "msd"}] * 17}, "the form has more than 16 plugins"),
        ({"prompt": {"regions": JOB["prompt"]["regions"] * 65}}, "the form has more than 64 regions"),
        ({"guidance_scale": "x"}, "guidance_scale came as 'x': it must be a number"),
        ({"steps": "many"}, "steps came as 'many': it must be a whole number"),
        ({"fuser": {"plugin": "multidiffusion", "weights": "a b/c"}}, "the form asks for 'a b/c', which is code"),
    ],
)
def test_a_mistake_in_the_form_is_one_of_the_form(change: dict[str, Any], line: str) -> None:
    with pytest.raises(SettingError) as error:
        Asked({**JOB, **change}).job()
    assert str(error.value).startswith(line)
    assert not re.search("recipe|trust|rerun", str(error.value))


@pytest.mark.usefixtures("unannotated")
@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_values_are_refused_in_words_or_harmless(raw: str) -> None:
    for place in places(JOB):
        try:
            options = json.loads(with_value(JOB, place, raw))
        except (ValueError, RecursionError):
            continue  # no request holds it
        if isinstance(options, dict):
            try:
                check(options)
                Asked(options).job()
            except PanokitError:
                pass


def test_a_model_that_the_studio_was_started_with_is_allowed() -> None:
    assert Asked({**JOB, "model": "/models/mine"}).job("/models/mine").composition.model == "/models/mine"


def test_the_studio_makes_pictures_also_with_a_model_of_films() -> None:
    assert Asked(JOB).job().settings.frames == 1


def test_the_default_size_has_limits_too(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("panokit.studio.asked.PIXELS", 100)
    with pytest.raises(SettingError, match=r"64 x 16 pixels are more than the studio makes, 100"):
        Asked({"prompt": "a lake", "model": "tiny"}).plan(worker, "tiny")


def test_pictures_are_part_of_the_plan_and_not_of_the_files(worker: Worker) -> None:
    image = Image.linear_gradient("L").resize((48, 16)).convert("RGB")
    area = Image.new("L", (10, 10), 255)
    options = {"prompt": "a lake", "model": "tiny", "strength": 0.5, "steps": 4}
    plan = Asked(options, image, areas={"red": (area, "hills")}).plan(worker, "tiny")
    assert plan.size == (48, 16)
    assert plan.recipe["image"].startswith("sha256:")
    assert plan.recipe["strength"] == 0.5
    assert plan.recipe["prompt"]["elsewhere"] == "a lake"
    assert plan.make(progress=False).image.size == (48, 16)


def test_strength_and_place_without_a_picture_are_left_out(worker: Worker) -> None:
    options = {"prompt": "a lake", "model": "tiny", "strength": 0.5, "at": [1, 2]}
    assert Asked(options).plan(worker, "tiny").recipe["strength"] is None
