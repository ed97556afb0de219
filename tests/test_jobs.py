"""Jobs: names that are their content, parts, and the worker that schedulers of batches take."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from panokit import Model, SettingError
from panokit.jobs import Worker, part_of
from panokit.recipe import name_of

SMALL = {"height": 16, "width": 24, "steps": 2}


@given(st.integers(1, 12), st.integers(0, 40))
def test_the_parts_are_all_jobs_once(n: int, count: int) -> None:
    jobs = list(range(count))
    parts = [part_of(jobs, f"{k}/{n}") for k in range(1, n + 1)]
    assert sorted(job for part in parts for job in part) == jobs
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("part", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3", ""])
def test_what_is_no_part_is_told(part: str) -> None:
    with pytest.raises(SettingError, match="it must be K/N with K from 1 to N, such as 2/8"):
        part_of([1], part)


def test_a_name_is_of_what_makes_a_picture_and_not_of_versions() -> None:
    recipe = {"prompt": "A lake, by Night!", "seed": 3, "torch": "1", "steps": 2}
    name = name_of(recipe)
    assert name.startswith("a-lake-by-night-3-")
    assert name_of({**recipe, "torch": "2"}) == name
    assert name_of({**recipe, "steps": 3}) != name
    assert name_of({**recipe, "prompt": {"boxes": []}}).startswith("regions-3-")
    assert name_of({**recipe, "prompt": "湖 / ../.."}).startswith("湖-3-")
    assert name_of({**recipe, "prompt": "?!"}).startswith("panorama-3-")


def test_a_worker_makes_a_batch_and_tells_what_failed(folder: Path) -> None:
    config = {"model": str(folder), **SMALL, "accelerator": "cpu"}
    worker = pickle.loads(pickle.dumps(Worker))(config)  # as schedulers send it: the class, and its arguments
    batch: dict[str, Any] = {
        "id": np.array([7, 8, 9]),
        "prompt": np.array(["a lake", "a city", "a beach"]),
        "width": np.array([32, 33, 24]),
        "guidances": [["msd"], [], []],
        "height": [32, 16, 16],
    }
    made = worker(batch)
    assert made["id"] is batch["id"]
    assert made["error"][0] == made["error"][2] == ""
    assert "33 is no multiple of 2" in made["error"][1]
    assert made["png"][1] == b""
    sizes = [Image.open(io.BytesIO(png)).size for png in (made["png"][0], made["png"][2])]
    assert sizes == [(32, 32), (24, 16)]


def test_a_worker_takes_a_model_of_ones_own(tiny: Model) -> None:
    worker = Worker({"model": tiny, **SMALL, "accelerator": "cpu"})
    assert worker.plan({"prompt": "a lake"}).sampler.model.denoiser is tiny.denoiser


def test_a_worker_that_trusts_nobody_loads_installed_models_alone(folder: Path) -> None:
    with pytest.raises(SettingError, match="which is not installed by that name"):
        Worker({"accelerator": "cpu"}, trusted=False).plan({"prompt": "a lake", "model": str(folder)})


def test_networks_and_plugins_are_made_once(folder: Path) -> None:
    worker = Worker({"model": str(folder), **SMALL, "accelerator": "cpu"})
    one, two = (worker.plan({"prompt": prompt, "guidances": ["msd"]}).sampler for prompt in ("a lake", "a city"))
    assert one.model is two.model
    assert one.guidances[0] is two.guidances[0]


@pytest.mark.parametrize(("config", "message"), [({"devises": 2}, "neither a job nor a Runtime has that option: .*devises")])
def test_options_that_nobody_has_are_told(unannotated: None, config: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Worker(config)


def test_a_job_with_an_option_of_its_own_is_told(folder: Path) -> None:
    with pytest.raises(SettingError, match="there is no option devices: there are "):
        Worker({"accelerator": "cpu"}).make({"prompt": "a lake", "devices": 2})
