"""Studies as plain data."""

import json
from typing import Any

import pytest

from panokit import SettingError
from panokit.study.plan import Study

DATA: dict[str, Any] = {
    "prompts": ["a lake", "a city", "a beach"],
    "methods": {"MultiDiffusion": {"guidances": []}, "MSD": {"guidances": [{"plugin": "msd", "until": 0.5}]}},
    "panoramas": 3,
}


def test_every_method_makes_the_same_prompts_and_seeds() -> None:
    study = Study.of(DATA)
    assert study.pairs() == [(prompt, seed) for prompt in DATA["prompts"] for seed in range(3)]
    one, two = (study.jobs(method) for method in study.methods)
    assert [(job["prompt"], job["seed"]) for job in one] == study.pairs()
    assert [{**job, "guidances": 0} for job in one] == [{**job, "guidances": 0} for job in two]
    assert two[0]["guidances"] == [{"plugin": "msd", "until": 0.5}]


def test_references_are_the_models_own_pictures_at_its_own_size() -> None:
    jobs = Study.of({**DATA, "references": 2}).reference_jobs((128, 64))
    assert len(jobs) == 6
    assert {(job["height"], job["width"]) for job in jobs} == {(128, 64)}
    assert not any("guidances" in job for job in jobs)


def test_a_sweep_is_a_method_for_each_value() -> None:
    study = Study.of(DATA).swept("guidances.weight=0,2.5,10")
    assert list(study.methods) == ["MSD, weight 0", "MSD, weight 2.5", "MSD, weight 10"]
    assert study.methods["MSD, weight 2.5"] == {"guidances": [{"plugin": "msd", "until": 0.5, "weight": 2.5}]}
    assert DATA["methods"]["MSD"] == {"guidances": [{"plugin": "msd", "until": 0.5}]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": []}, "the study has no prompts"),
        ({"methods": {}}, "the study has no methods"),
        ({"panoramas": 0}, "panoramas is 0: it must be 1 or more"),
        ({"promts": ["a lake"]}, "there is no option promts: did you mean prompts?"),
        ({"height": "tall"}, "height came as 'tall': it must be a whole number"),
        ({"prompts": "a lake"}, r"prompts came as 'a lake': it must be a list, \[...\]"),
        ({"methods": [1]}, r"methods came as \[1\]: it must be a mapping"),
        ({"methods": {"MSD": "msd"}}, "methods came as"),
        (
            {"methods": {"MSD": {"guidances": "msd"}}},
            "the method MSD came as .*: it must be a mapping such as",
        ),
        ({"methods": {"MSD": {}, "msd": {}}}, "msd appears twice among the methods"),
        ({"methods": {"MSD": {"seed": 3}}}, "the method MSD sets seed, which is the same for all methods"),
        ({"prompts": ["a lake", "a lake"]}, "a lake appears twice among the prompts"),
        ({"sweep": "guidances.weight=1,1"}, "it must be SETTING=VALUE,VALUE with different values"),
    ],
)
def test_what_is_no_study_is_told(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Study.of({**DATA, **change})


def test_a_study_without_what_it_needs_is_told() -> None:
    with pytest.raises(SettingError, match="the study has no prompts and no methods"):
        Study.of({"height": 256})


@pytest.mark.parametrize("sweep", ["guidances.weight", "guidances.weight=", "=", "=1,2", "guidances.weight=1,,2", "a=1,1"])
def test_what_is_no_sweep_is_told(sweep: str) -> None:
    with pytest.raises(SettingError, match=f"sweep is '{sweep}': it must be SETTING=VALUE,VALUE with different values"):
        Study.of(DATA).swept(sweep)


def test_a_configuration_may_say_its_sweep() -> None:
    assert Study.of({**DATA, "sweep": "guidances.weight=1,2"}) == Study.of(DATA).swept("guidances.weight=1,2")


def test_what_is_null_is_as_if_it_were_not_there() -> None:
    assert Study.of({**DATA, "timings": None, "crop": None}) == Study.of(DATA)


def test_seeds_begin_where_the_study_says() -> None:
    study = Study.of({**DATA, "seed": 5, "references": 2})
    assert [seed for _, seed in study.pairs()][:3] == [5, 6, 7]
    assert [job["seed"] for job in study.reference_jobs((8, 8))][:2] == [5, 6]


def test_a_study_compares_pictures_also_those_of_a_model_of_films() -> None:
    study = Study.of(DATA)
    jobs = [*study.jobs(next(iter(study.methods))), *study.reference_jobs((8, 8))]
    assert {job["frames"] for job in jobs} == {1}
    for settings in ({"frames": 5}, {"fps": 8}, {"frame_stride": 4}, {"wrap": "xt"}):
        with pytest.raises(SettingError, match=f"sets {next(iter(settings))}, for films, and a study compares pictures"):
            Study.of({**DATA, "methods": {"film": settings}})
    assert Study.of({**DATA, "methods": {"ring": {"wrap": True}, "torus": {"wrap": "xy"}}})


def test_another_model_may_have_settings_of_its_own() -> None:
    data = {**DATA, "height": 256, "models": {"sd": {"height": 1024, "prompts": ["a photo"], "references": 2000}}}
    assert Study.of(data).height == 256
    study = Study.of(data, model="sd", references=3)
    assert (study.model, study.height, study.references, list(study.prompts)) == ("sd", 1024, 3, ["a photo"])
    assert Study.of({**data, "models": {"hub/sd": {"height": 1024}}}, model="/data/sd").height == 1024  # a copy in a folder
    with pytest.raises(SettingError, match="models must map names of models to their settings"):
        Study.of({**DATA, "models": ["sd"]})


def test_networks_are_names_or_names_with_settings() -> None:
    score = {"plugin": "panokit.study.networks:CLIPScore", "model": "a/folder"}
    study = Study.of({**DATA, "scores": {"CLIP": score}, "features": {"I": "panokit.study.networks:Inception"}})
    assert study.scores == {"CLIP": score}
    assert json.loads(json.dumps(study.as_data()))["scores"] == {"CLIP": score}


def test_methods_are_compared_with_the_baselines_before_them() -> None:
    methods = {"A": {"guidances": []}, "B": {"guidances": []}, "C": {"guidances": []}}
    assert Study.of({**DATA, "methods": methods}).compared() == [("A", "B"), ("A", "C")]
    both = Study.of({**DATA, "methods": methods, "baselines": ["A", "B"]})
    assert both.compared() == [("A", "B"), ("A", "C"), ("B", "C")]
    assert both.swept("steps=1,2").compared() == [("C, steps 1", "C, steps 2")]
    with pytest.raises(SettingError, match="the baseline D is not a method: choose from A, B, C"):
        Study.of({**DATA, "methods": methods, "baselines": ["D"]})


def test_a_quick_study_is_small() -> None:
    quick = Study.of(DATA).quick()
    assert (len(quick.prompts), quick.panoramas, quick.references, quick.width, quick.steps) == (2, 2, 4, 512, 4)
