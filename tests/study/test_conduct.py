"""Studies from their plan to their report, on a model in miniature."""

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from panokit import Sampler
from panokit.cli import main
from panokit.study.measures import pixels, seam

pytestmark = pytest.mark.xdist_group("study")  # of which most start from one study that is made once
STUDY: dict[str, Any] = {
    "prompts": ["a lake", "a city"],
    "methods": {"MultiDiffusion": {"guidances": []}, "MSD": {"guidances": [{"plugin": "msd", "levels": 2}]}},
    "height": 32,
    "width": 64,
    "steps": 2,
    "panoramas": 2,
    "references": 4,
    "features": {"colours": "panokit.testing.toys:Colours"},
    "timings": 1,
}


def written(folder: Path, beside: Path) -> Path:
    path = beside / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, "model": str(folder)}, sort_keys=False))
    return path


@pytest.fixture
def config(folder: Path, tmp_path: Path) -> Path:
    return written(folder, tmp_path)


@pytest.fixture(scope="session")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of that study, made once."""
    config = written(folder, tmp_path_factory.mktemp("finished"))
    assert evaluate(config) == 0
    return config.parent / "results"


@pytest.fixture
def results(finished: Path, config: Path) -> Path:
    """A copy of them, where the same command goes on."""
    return shutil.copytree(finished, config.parent / "results")


def evaluate(config: Path, *options: str) -> int:
    return main(["evaluate", "--config", str(config), "--out", str(config.parent / "results"), *options])


def test_a_study_makes_its_pictures_and_tells_its_numbers(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(config) == 0
    results = config.parent / "results"
    assert len([*(results / "panoramas" / "multidiffusion").glob("*.png")]) == 4
    assert len([*(results / "references").glob("*.png")]) == 8
    numbers = json.loads((results / "numbers.json").read_text())
    assert numbers["methods"]["MSD"]["n"] == 4
    assert numbers["methods"]["MSD"]["distances"]["KID, colours"]["deviation"] is None  # of two there are no halves
    assert [numbers["costs"][method]["forward"] for method in numbers["methods"]] == [2 * 21, 21 + 2 * 3]
    assert numbers["differences"]["MultiDiffusion"]["MSD"].keys() == {"seam"}
    assert "Fewer than 8 pairs cannot show a difference." in (results / "report.md").read_text()
    report = capsys.readouterr().out
    assert (results / "report.md").read_text().rstrip() in report
    assert "| MultiDiffusion | MSD |" in report
    assert "| KID, colours | " in report
    page = (results / "report.html").read_text()
    assert "<table><tr><th><th>MultiDiffusion<th>MSD<tr><td>KID, colours<td>" in page
    assert page.count("<svg ") == page.count("</svg>") == 4  # KID, FID, seam, and KID over windows
    assert page.count("head.onclick") == 1
    assert page.count("data:image/jpeg;base64,") == 4  # of each prompt one by each method
    assert not re.search(r"(src|href)=.https?:", page)  # nothing is fetched


def test_a_full_disk_ends_a_study_and_the_same_command_goes_on(
    config: Path, finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = config.parent / "results"
    whole = {path.relative_to(finished): path.read_bytes() for path in finished.rglob("*.png")}
    replace = Path.replace

    def full(path: Path, target: Path) -> Path:
        if "msd" in str(target) and "a-city" in target.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        assert evaluate(config) == 2
    error = capsys.readouterr().err
    full = r"cannot write .*a-city.*: No space left on device; finished pictures are kept, and the same command continues"
    assert re.search(full, error)
    assert error.count("\n") == 1
    assert len([*results.rglob("*.png")]) == len(whole) - 2
    assert not [path for path in results.rglob("*") if path.name.startswith(".") or path.name.endswith(".error.txt")]
    assert evaluate(config) == 0
    assert {path.relative_to(results): path.read_bytes() for path in results.rglob("*.png")} == whole


def test_pictures_of_a_folder_may_be_the_references(config: Path, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = json.loads((results / "numbers.json").read_text())
    folder = (results / "references").rename(config.parent / "mine")
    assert evaluate(config, "--reference_folder", str(folder)) == 0
    numbers = json.loads((results / "numbers.json").read_text())
    assert numbers["methods"] == own["methods"]
    assert not [*(results / "references").iterdir()]
    assert f"against the pictures in {folder}" in capsys.readouterr().out
    for path in folder.iterdir():  # others by the same names
        Image.new("RGB", (16, 16), "white").save(path)
    assert evaluate(config, "--reference_folder", str(folder)) == 0
    others = json.loads((results / "numbers.json").read_text())
    assert others["methods"]["MSD"]["scores"] == own["methods"]["MSD"]["scores"]
    assert others["methods"]["MSD"]["distances"]["KID, colours"] != own["methods"]["MSD"]["distances"]["KID, colours"]


def test_what_is_broken_in_the_folder_is_made_again_or_told(
    config: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = (results / "report.md").read_text().partition("## Costs")[0]
    for path in (*(results / "scores").iterdir(), *results.rglob("*.npy"), results / "costs.json"):
        path.write_text("[")
    assert evaluate(config) == 0
    assert (results / "report.md").read_text().partition("## Costs")[0] == first
    (results / "costs.json").write_text('{"MSD": 3}')
    assert evaluate(config) == 0
    assert isinstance(json.loads((results / "costs.json").read_text())["MSD"], dict)
    shutil.rmtree(results / "scores")
    picture = next((results / "panoramas" / "msd").glob("a-city-1-*.png"))
    whole = picture.read_bytes()
    picture.write_bytes(whole[:-20])
    assert evaluate(config) == 0
    assert picture.read_bytes() == whole
    (results / "study.json").write_text("{")
    assert evaluate(config) == 2
    assert "study.json cannot be read, so" in capsys.readouterr().err


def test_windows_lie_where_the_method_lays_them(config: Path) -> None:
    """A stride of the method's own, whose borders are elsewhere, and more of them."""
    study = {**yaml.safe_load(config.read_text()), "features": {}, "timings": 0}
    study["methods"] = {"MultiDiffusion": {"guidances": [], "stride": 4}}
    config.write_text(yaml.safe_dump(study))
    assert evaluate(config) == 0
    results = config.parent / "results"
    numbers = json.loads((results / "numbers.json").read_text())["methods"]["MultiDiffusion"]
    sampler = Sampler(str(yaml.safe_load(config.read_text())["model"]))
    found = [
        seam(pixels(path), sampler.plan("a lake", height=32, width=64, stride=4).windows, 2)
        for path in (results / "panoramas" / "multidiffusion").glob("*.png")
    ]
    assert numbers["scores"]["seam"]["mean"] == pytest.approx(np.mean(found))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": {"mine": "panokit.testing.toys:Colours"}}, "mine does not work on pictures of this study (TypeError"),
        ({"features": {"mine": "builtins:dict"}}, "mine does not work on pictures of this study (TypeError"),
        ({"wholes": ["builtins:str"]}, "str does not work on pictures of this study (TypeError"),
        ({"scores": {"Intra": "panokit_landscapes.evaluate:IntraStyle"}, "width": 32}, "there are 1: make it twice as wide"),
        (
            {"sweep": "steps=1,2", "methods": {"A": {"guidances": None}}},
            "the method A came as {'guidances': None}: it must be a mapping such as",
        ),
        ({"model": ["a"]}, "model came as"),
    ],
)
def test_what_does_not_work_is_told_before_anything_is_made(
    config: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
) -> None:
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), **change}, sort_keys=False))
    assert evaluate(config) == 2
    assert message in capsys.readouterr().err
    assert not (config.parent / "results").exists()


def test_networks_are_missed_before_anything_is_made(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = "{plugin: panokit.study.networks:Inception, weights: nowhere.pth}"
    config.write_text(config.read_text().replace("panokit.testing.toys:Colours", network))
    assert evaluate(config) == 2
    assert "Inception-v3 needs nowhere.pth, which cannot be loaded" in capsys.readouterr().err
    assert not (config.parent / "results").exists()


def test_a_sweep_is_drawn_as_a_curve(config: Path) -> None:
    study = {**yaml.safe_load(config.read_text()), "prompts": ["a lake"]}
    config.write_text(yaml.safe_dump(study, sort_keys=False))
    assert evaluate(config, "--sweep", "guidances.weight=0,1,10") == 0
    page = (config.parent / "results" / "report.html").read_text()
    assert "<td>MSD, weight 10<td>" in page
    assert page.count("<!-- guidances.weight -->") == 3  # the axis of each figure


def test_a_finished_study_reports_without_making_anything(
    config: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = (results / "report.md").read_text()
    times = {path: path.stat().st_mtime_ns for path in results.rglob("*.png")}
    assert evaluate(config) == 0
    assert (results / "report.md").read_text() == first
    assert capsys.readouterr().out.startswith("# ")
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert evaluate(config, "--panoramas", "3") == 0  # more of the same is the same study
    assert len([*(results / "panoramas" / "msd").glob("*.png")]) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sweep", "guidances.wieght=1,2"], "did you mean 'weight'"),
        (["--sweep", "fuser=1"], "fuser came as 1: it must be text or a mapping"),
        (["--panoramas", "0"], "panoramas is 0"),
        (["--reference_folder", "nowhere"], "the reference folder nowhere cannot be read"),
        (["--model", "landscape"], "did you mean 'landscapes'"),
        (["--config", "nowhere.yaml"], "the configuration nowhere.yaml cannot be read"),
    ],
)
def test_what_the_user_got_wrong_is_one_line_and_status_2(
    config: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert evaluate(config, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (config.parent / "results").exists()


@pytest.mark.usefixtures("results")
def test_a_folder_of_another_study_is_not_mixed_up(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(config, "--quick") == 0
    config.write_text(config.read_text().replace("steps: 2", "steps: 3"))
    capsys.readouterr()
    assert evaluate(config, "--quick") == 2
    assert "holds the results of another study: in this one and that one, steps is 3 and 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("references: 4", "references: 1"), "there are 2 and 1: ask for more, or leave out features"),
        (("panoramas: 2", "panoramas: 1"), "there are 1 and 4: ask for more, or leave out features"),
        (("height: 32", "height: 96"), "panoramas of 64 x 96 pixels hold no square of 96 to measure"),
        (("steps: 2", "steps: 2\ncrop: 80"), "panoramas of 64 x 32 pixels hold no square of 80 to measure"),
    ],
)
def test_too_few_pictures_for_a_measure_are_told_before_they_are_made(
    config: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], message: str
) -> None:
    config.write_text(config.read_text().replace(*change))
    assert evaluate(config) == 2
    assert message in capsys.readouterr().err
    assert not (config.parent / "results").exists()
