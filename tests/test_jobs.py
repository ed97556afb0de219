"""Jobs: names that are their content, parts, and the worker that schedulers of batches take."""

import io
import json
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from panokit import Model, SettingError, recipe
from panokit.cli import main
from panokit.errors import FallbackWarning, OutputError
from panokit.jobs import Worker, jobs_in, part_of
from panokit.output import Output
from panokit.painting import prepare_all
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


def test_a_worker_with_a_folder_writes_pictures_once(folder: Path, tmp_path: Path) -> None:
    worker = Worker({"model": str(folder), **SMALL, "accelerator": "cpu"}, folder=tmp_path)
    empty = float("nan")
    batch: dict[str, Any] = {
        "prompt": np.array(["a lake", "a city"]),
        "seed": np.array([3.0, empty]),
        "guidances": [None, np.array([{"plugin": "msd", "weight": None}], dtype=object)],
        "width": np.array([24.0, 25.0]),
    }
    made = worker(batch)
    path, missing = made["path"]
    assert recipe.read(path)["seed"] == json.loads(made["recipe"][0])["seed"] == 3
    assert missing == made["recipe"][1] == made["error"][0] == ""
    assert "25 is no multiple of 2" in made["error"][1]
    assert [file.name for file in tmp_path.iterdir()] == [Path(path).name]
    written = Path(path).stat().st_mtime_ns
    assert worker(batch)["path"][0] == path
    assert Path(path).stat().st_mtime_ns == written


def test_a_folder_that_is_not_there_is_told_to_the_worker(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there is no such folder; make it first"):
        Worker({"accelerator": "cpu"}, folder=tmp_path / "made")


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


WRONG = {
    "{": "it is no JSON, at character 2: Expecting property name enclosed in double quotes",
    "a lake": "it is no JSON, at character 1: Expecting value",
    '{"prompt": "a lake"} x': "it is no JSON, at character 22: Extra data",
    '{"prompt": "a\0lake"}': "it is no JSON, at character 14: Invalid control character at",
    "[]": "it is a list: a job must map options to values",
    "null": "it is a NoneType: a job must map options to values",
    "[" * 500 + "]" * 500: "it is nested more than 32 deep",
    "[" * 200_000: "it is nested deeper than any job",
    '{"a":' * 500 + "1" + "}" * 500: "it is nested more than 32 deep",
    '{"seed": ' + "9" * 5000 + "}": "a number has 5000 digits, 99999999...: whole numbers have up to 20",
    '{"steps": -' + "9" * 400 + "}": "a number has 401 digits, -9999999...: whole numbers have up to 20",
    '{"strength": 1e999}': "1e999 is not a finite number",
    '{"strength": NaN}': "NaN is not a finite number",
    '{"guidances": [{"plugin": "msd", "weight": -Infinity}]}': "-Infinity is not a finite number",
    '{"prompt": "a", "seed": 1, "seed": 2}': "'seed' stands twice: keep one of them",
    '{"prompt": {"boxes": [], "boxes": []}}': "'boxes' stands twice",
    '{"prompt": "a \udcff lake"}': "its character 15, '\\udcff', is no Unicode: save the file as UTF-8",
    '{"prompt": "a \\ud800 lake"}': "its character 15, '\\ud800', is no Unicode: write a whole character, of two",
    '{"\\udfff": 1}': "is no Unicode",
    '{"prompt": "' + "a" * (1 << 20) + '"}': "it has 1048590 characters: a job has up to 1048576",
    "{}": "the job has no prompt",
    '{"prompt": null}': "the job has no prompt",
    '{"prompt": "a", "colour": 1}': "there is no option colour",
    '{"prompt": "a", "steps": 1.5}': "steps came as 1.5: it must be a whole number",
    '{"prompt": "a", "guidances": null, "steps": [null]}': "steps came as [None]",
}
"""Lines that are no jobs, and what is wrong with each."""


@pytest.mark.parametrize("line", WRONG, ids=range(len(WRONG)))
def test_a_line_that_is_no_job_is_one_line_of_words(line: str) -> None:
    jobs, wrong = jobs_in(f'{{"prompt": "a"}}\n\n{line}\n{{"prompt": "b"}}\n', {})
    assert {number: job.prompt for number, job in jobs.items()} == {1: "a", 4: "b"}
    assert WRONG[line] in wrong.pop(3)
    assert not wrong


def test_a_line_ends_at_its_end_and_nowhere_else(tmp_path: Path) -> None:
    """Other characters that end lines may stand in a text. A mark of the order of bytes is none of the first job's."""
    text = "a\x85lake\u2028by\u2029night"
    jobs, wrong = jobs_in("\ufeff" + json.dumps({"prompt": text}, ensure_ascii=False) + "\n \t\r\n" + '{"prompt": "b"}\r\n', {})
    assert ([job.prompt for job in jobs.values()], [*jobs], wrong) == ([text, "b"], [1, 3], {})


whole = st.integers(-2, 70) | st.sampled_from([10**19, -(10**19), 2**31, 2**63, 2**64, 10**400, None])
number = st.floats() | st.floats(-2, 2) | whole
text = st.text(st.characters(exclude_categories=()), max_size=20) | st.sampled_from(
    ["", "\0", "~nobody/a.png", "a\0.png", "1e3"]
)
scalar = st.none() | st.booleans() | number | text
anything = st.recursive(
    scalar, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=2), max_leaves=4
)
area = st.lists(number, min_size=4, max_size=4) | anything
region = st.tuples(area, text) | st.fixed_dictionaries(
    {}, optional={"box": area, "mask": text, "text": text, "weight": number, "x": scalar}
)
regions = st.fixed_dictionaries(
    {}, optional={"boxes": st.lists(region, max_size=2), "regions": st.lists(region, max_size=2), "elsewhere": scalar}
)
NAMES = [
    "msd",
    "head_start",
    "syncdiffusion",
    "ddim",
    "euler_a",
    "overlap",
    "spotdiffusion",
    "demofusion",
    "multidiffusion",
    "x",
    "",
    "builtins:print",
]
SETTINGS = ["weight", "levels", "until", "options", "spread", "weights", "unit", "head_start", "decay", "metric", "share", "x"]
part = st.sampled_from(NAMES) | st.builds(
    lambda name, more: {"plugin": name, **more},
    st.sampled_from(NAMES),
    st.dictionaries(st.sampled_from(SETTINGS), number | anything, max_size=2),
)
KINDS: dict[str, Any] = {
    **dict.fromkeys(("height", "width", "steps", "stride", "seed"), whole),
    **dict.fromkeys(("guidance_scale", "strength"), number),
    **dict.fromkeys(("negative_prompt", "image", "mask", "control_image", "ip_adapter_image", "colour"), text),
    **dict.fromkeys(("scheduler", "layout", "fuser", "model"), part),
    "prompt": regions | text,
    "wrap": st.booleans() | st.sampled_from(["x", "y", "xy", "z"]),
    "at": st.lists(whole, max_size=3) | st.sampled_from(["0,0", "1,-1", "9" * 5000 + ",0", "²,0"]),
    "guidances": st.lists(part, max_size=2),
}
"""Options, and values that look right."""
option = st.sampled_from([*KINDS]).flatmap(lambda name: st.tuples(st.just(name), st.one_of(*[KINDS[name]] * 4, anything)))
options = st.lists(option, max_size=3).map(dict) | st.fixed_dictionaries({"image": st.just("a.png"), "at": KINDS["at"]})
mangled = st.builds(
    lambda data, place, noise: data[: place % (len(data) + 1)] + noise + data[place % (len(data) + 1) :],
    options.map(lambda data: json.dumps({"prompt": "a", **data}).encode()),
    st.integers(0, 500),
    st.binary(max_size=3) | st.sampled_from([b"[" * 500, b"9" * 5000, b"\xed\xa0\x80", b"\0", b'"steps": null,']),
)
sound = options.map(lambda data: json.dumps({"prompt": "a", **data}).encode())
lines = st.one_of(*[sound] * 8, mangled, st.binary(max_size=40))


@pytest.fixture(scope="module")
def worker() -> Worker:
    return Worker({"accelerator": "cpu"})


@given(st.lists(lines, max_size=4))
def test_any_lines_are_jobs_or_one_line_of_words_each_and_a_good_one_is_always_done(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, worker: Worker, content: list[bytes]
) -> None:
    content = [line.replace(b"\n", b" ") for line in content] + [b'{"prompt": "a good one", "seed": 77}']
    text = b"\n".join(content).decode(errors="surrogateescape")
    jobs, wrong = jobs_in(text, {"model": str(folder), "height": 16, "width": 24, "steps": 2})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tasks = prepare_all("jobs.jsonl", jobs, wrong, worker, Output(out=f"{tmp_path_factory.getbasetemp()}/"))
    assert tasks[-1].path.name.startswith("a-good-one-77-")
    printed = [str(warning.message) for warning in caught if warning.category is FallbackWarning]
    pattern = re.compile(r"jobs\.jsonl, line (\d+): (?!\w+(Error|Exception): ).*; this job is left out", re.DOTALL)
    left_out = [int(match[1]) for line in printed if (match := pattern.fullmatch(line))]
    assert len(left_out) == len(printed) == sum(bool(line.strip()) for line in text.split("\n")) - len(tasks), printed
    assert left_out == sorted(left_out)


@pytest.mark.filterwarnings("default")  # the command line prints them
def test_good_lines_of_a_bad_file_are_made_and_each_bad_one_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "jobs.jsonl"
    content = [*WRONG, '{"prompt": "a", "height": 7}', '{"prompt": "a", "fuser": "builtins:print"}']
    content += [
        json.dumps({"prompt": "a", "image": name}) for name in ("nowhere.png", "a\0.png", "~nobody/a.png", "a" * 300, "/")
    ]
    path.write_text('{"prompt": "a"}\n' + "\n".join(content) + '\n{"seed": 0, "prompt": "a"}\n', errors="surrogateescape")
    command = ["generate", "--jobs", str(path), "--model", str(folder), "--height", "16", "--width", "24", "--steps", "2"]
    assert main([*command, "--out", f"{tmp_path}/"]) == 1
    printed, warned = capsys.readouterr()
    count = len(content) + 3
    assert printed.splitlines()[-1] == "1 made, 0 there already, 0 failed"
    assert re.findall(r"^panokit: warning: .*jobs.jsonl, line (\d+): .*; this job is left out$", warned, re.MULTILINE) == [
        *map(str, range(2, count))
    ]
    assert warned.count("\n") == count - 2
    assert not re.search(r"line \d+: \w+Error: ", warned)
    assert "its picture is that of line 1" in warned.splitlines()[-1]
    assert len([*tmp_path.iterdir()]) == 2
