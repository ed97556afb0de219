"""What a command says of its pictures before and while it makes them."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from panokit import Sampler, forecast, recipe
from panokit.cli import main
from panokit.denoiser import Model
from panokit.forecast import Forecast
from panokit.sampler import Plan

SMALL = ["--height", "24", "--width", "40", "--steps", "3"]


@pytest.fixture
def plan(tiny: Model) -> Plan:
    return Sampler(tiny, guidances=["msd"]).plan("a lake", height=32, width=64, steps=3)


def test_a_picture_in_words_and_as_data(plan: Plan) -> None:
    windows, passes = len(plan.windows), plan.passes
    line = f"a.png: 64 x 32 pixels, {windows} windows a step, 3 steps, about {passes} passes of the network, "
    assert forecast.words(Path("a.png"), plan) == line + "and those of the guidances"
    numbers = {"width": 64, "height": 32, "windows": windows, "steps": 3, "passes": passes}
    assert forecast.data(Path("a.png"), plan) == {"event": "begin", "file": "a.png", **numbers}


def watched(plan: Plan, monkeypatch: pytest.MonkeyPatch, seconds: float, count: int = 1) -> list[str]:
    """The lines for people about pictures whose steps take so long."""
    now, lines = [0.0], list[str]()
    monkeypatch.setattr("panokit.forecast.time.monotonic", lambda: now[0])
    plans = {Path(f"{k}.png"): plan for k in range(count)}
    watching = Forecast(plans, lines.append, None)
    for path in plans:
        watching.begin(path)
        run = plan.begin()
        watching.on_run_start(run)
        while not run.done:
            run.step()
            now[0] += seconds
            watching.on_step_end(run)
    return lines


@pytest.fixture
def plain(tiny: Model) -> Plan:
    return Sampler(tiny).plan("a lake", height=32, width=64, steps=3)


def test_a_long_run_says_what_it_is_and_how_long_it_takes(plain: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    assert watched(plain, monkeypatch, 30.0) == []
    assert watched(plain, monkeypatch, 300.0) == ["0.png: about 10 min left"]
    assert watched(plain, monkeypatch, 60.0, count=3) == ["3 pictures: about 8 min left"]  # 2 steps of one and 6 of others
    monkeypatch.setattr("panokit.forecast.LONG", 10)
    assert watched(plain, monkeypatch, 0.0) == [forecast.words(Path("0.png"), plain)]
    assert watched(plain, monkeypatch, 30.0) == [forecast.words(Path("0.png"), plain), "0.png: about 60 s left"]
    assert watched(plain, monkeypatch, 0.0, count=3) == [f"3 pictures, about {3 * plain.passes} passes of the network"]


def test_a_head_start_is_no_measure_of_the_steps_after_it(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step paints all of a smaller canvas, the next ones compute nothing. The eighth is the first of 18."""
    guided = Sampler(tiny, guidances=["msd"]).plan("a lake", height=32, width=64, steps=25)
    assert watched(guided, monkeypatch, 30.0) == ["0.png: about 8 min left"]  # 17 steps of 30 s


def test_a_run_that_goes_on_is_timed_from_there(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    now, events = [100.0], list[Mapping[str, Any]]()
    monkeypatch.setattr("panokit.forecast.time.monotonic", lambda: now[0])
    watching = Forecast({Path("a.png"): plan}, None, events.append)
    watching.begin(Path("a.png"))
    run = plan.begin()
    run.step()
    watching.on_run_start(run)
    run.step()
    now[0] += 20
    watching.on_step_end(run)
    expected = {"event": "step", "file": "a.png", "step": 2, "steps": 3, "seconds": 20.0, "seconds_left": 20.0}
    assert events[1:] == [expected]


def test_a_dry_run_makes_nothing(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "a lake", "a city", "--model", str(folder), *SMALL, "--out", f"{tmp_path}/", "--dry-run"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for line, prompt in zip(lines, ("a-lake", "a-city"), strict=True):
        assert re.search(
            rf"/{prompt}-0-\w{{8}}.png: 40 x 24 pixels, \d+ windows a step, 3 steps, about \d+ passes of the net", line
        )
    assert not [*tmp_path.iterdir()]
    assert main([*words, "--progress", "json"]) == 0
    assert [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()] == ["begin", "begin"]


def test_a_script_reads_every_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--model", str(folder), *SMALL, "--progress=json"]
    assert main(["generate", "a lake", *small, "--out", str(tmp_path / "a.png"), "--sheet", str(tmp_path / "b.png")]) == 0
    out = capsys.readouterr()
    events = [json.loads(line) for line in out.out.splitlines()]
    assert [event["event"] for event in events] == ["begin", "step", "step", "step", "done", "sheet"]
    assert [event.get("step") for event in events[1:4]] == [1, 2, 3]
    assert events[-2] == {"event": "done", "file": str(tmp_path / "a.png"), "width": 40, "height": 24}
    assert out.err == ""
    assert recipe.read(tmp_path / "a.png")["steps"] == 3


@pytest.mark.filterwarnings("default")
def test_a_script_hears_of_jobs_that_fail(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, [{"prompt": "a lake"}, {"prompt": "a city", "steps": 0}])))
    (tmp_path / "made").mkdir()
    words = ["generate", "--jobs", str(tmp_path / "jobs.jsonl"), "--model", str(folder), *SMALL]
    assert main([*words, "--progress", "json", "--out", str(tmp_path / "made")]) == 1
    out = capsys.readouterr()
    events = [json.loads(line) for line in out.out.splitlines()]
    assert "line 2: steps is 0" in out.err
    assert events[-1] == {"event": "end", "made": 1, "there already": 0, "failed": 0}
