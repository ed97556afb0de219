"""Layouts in the composition: from a name or an object to windows, in recipes, in jobs and on the command line."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from torch import Tensor

from panokit import (
    ContractError,
    Grid,
    Layout,
    Level,
    Model,
    Run,
    Runtime,
    Sampler,
    SettingError,
    Union,
    WeightedFuser,
    Windows,
    recipe,
)
from panokit.cli import main
from panokit.jobs import Worker
from panokit.layout import Overlap
from panokit.testing.ranks import VirtualRanks
from panokit.testing.toys import Pull, toy_run
from panokit_spotdiffusion import SpotDiffusion, Spots

Cells = tuple[int, ...]
SIZE: dict[str, Any] = {"height": 32, "width": 64, "steps": 2}


@dataclass(frozen=True)
class Gaps(Layout):
    """Dilated windows that leave every third column out."""

    def begin(self, size: Cells, window: Cells, stride: Cells | None, wrap: tuple[bool, ...], seed: int) -> Windows:
        return Grid(size, window, (4, 3), wrap, dilation=(1, 3))


@dataclass(frozen=True)
class NoWindows(Layout):
    def begin(self, *args: Any) -> Any:
        return [(0, 0)]


@dataclass(frozen=True)
class LocalAndDilated(Layout):
    """Windows of neighbouring cells, and windows of every other cell, which see twice as far."""

    def begin(self, size: Cells, window: Cells, stride: Cells | None, wrap: tuple[bool, ...], seed: int) -> Windows:
        local = Overlap().begin(size, window, stride, wrap, seed)
        return Union((local, Grid(size, window, (1,) * len(size), wrap, dilation=(2,) * len(size))))


@dataclass(frozen=True)
class ForTheLocal(WeightedFuser):
    """A weight for each window: dilated ones count little, and less from level to level."""

    constant: ClassVar[bool] = False

    def weight(self, windows: Windows, level: Level) -> Tensor:
        assert isinstance(windows, Union)
        local, dilated = map(len, windows.parts)
        weights = torch.tensor([1.0] * local + [0.3 * level.sigma] * dilated)
        return weights.view(-1, *(1,) * len(windows.window)).expand(-1, *windows.window)


@pytest.mark.parametrize("wrap", [False, True])
def test_local_and_dilated_windows_with_a_weight_each_make_the_same_on_any_ranks_and_after_a_break(wrap: bool) -> None:
    def begin(runtime: Runtime) -> Run:
        return toy_run(
            (9, 12), layout=LocalAndDilated(), fuser=ForTheLocal(), guidances=[Pull()], wrap=wrap, steps=4, runtime=runtime
        )

    def finished(run: Run) -> Tensor:
        while not run.done:
            run.step()
        return run.canvas

    (one,) = VirtualRanks(1, 3).run(lambda runtime: finished(begin(runtime)))
    for other in VirtualRanks(3, 3).run(lambda runtime: finished(begin(runtime))):
        assert torch.equal(other, one)
    cpu = Runtime(accelerator="cpu", micro_batch=3)
    run, resumed = begin(cpu), begin(cpu)
    for _ in range(2):
        run.step()
    resumed.restore(run.state())
    assert torch.equal(finished(resumed), finished(run))
    local = toy_run((9, 12), guidances=[Pull()], wrap=wrap, steps=4, runtime=cpu)
    assert not torch.isclose(finished(local), run.canvas).all()  # the dilated ones count


def test_windows_overlap_by_half_if_nothing_else_is_said() -> None:
    assert Overlap().begin((16, 32), (8, 8), None, (False, True), 3) == Grid((16, 32), (8, 8), (4, 4), (False, True))
    assert Overlap().begin((16, 32), (8, 8), (2, 2), (False, False), 3).stride == (2, 2)


def test_a_sampler_takes_a_layout_by_name_with_settings_or_as_an_object(tiny: Model, cpu: Runtime) -> None:
    assert Sampler(tiny, runtime=cpu).layout == Overlap()
    for layout in ("spotdiffusion", {"plugin": "spotdiffusion", "unit": 2}, SpotDiffusion()):
        sampler = Sampler(tiny, layout=layout, runtime=cpu)
        plan = sampler.plan("a lake", **SIZE, wrap=True, seed=5)
        assert plan.windows == Spots((16, 32), (8, 8), (8, 8), (False, True), once=True, seed=5, unit=(2, 2))
        assert plan.recipe["layout"] == {"plugin": "spotdiffusion", "unit": 2}
        assert "layout=SpotDiffusion(unit=2)" in repr(sampler)


def test_stride_and_wrap_set_any_layout(tiny: Model, cpu: Runtime) -> None:
    windows = Sampler(tiny, layout="spotdiffusion", runtime=cpu).plan("a lake", **SIZE, stride=8, wrap="y").windows
    assert isinstance(windows, Spots)
    assert (windows.stride, windows.wrap) == ((4, 4), (True, False))


def test_a_recipe_keeps_the_layout_and_an_older_one_has_the_usual(tiny: Model, cpu: Runtime) -> None:
    made = Sampler(tiny, layout=SpotDiffusion(4), runtime=cpu)("a lake", **SIZE, seed=1, progress=False)
    again = Worker({"accelerator": "cpu", "model": tiny})
    kept = {key: value for key, value in made.recipe.items() if key in ("prompt", "layout", "seed", *SIZE)}
    assert torch.equal(again.make(kept).latents, made.latents)
    del kept["layout"]
    assert torch.equal(again.make(kept).latents, Sampler(tiny, runtime=cpu)("a lake", **SIZE, seed=1, progress=False).latents)


@pytest.mark.usefixtures("unannotated")
def test_the_command_line_jobs_and_rerun_take_a_layout(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "a lake", "--model", str(folder), "--height", "16", "--width", "32", "--steps", "2", "--quiet"]
    words += ["--layout", "spotdiffusion", "--layout.unit=1", "--seed", "2"]
    assert main([*words, "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["layout"] == {"plugin": "spotdiffusion", "unit": 1}
    assert main([*words, "--out", str(tmp_path / "a.png")]) == 0
    assert recipe.read(tmp_path / "a.png")["layout"] == {"plugin": "spotdiffusion", "unit": 1}
    assert main(["rerun", str(tmp_path / "a.png"), "--out", str(tmp_path / "b.png"), "--trust"]) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()

    job = {"prompt": "a lake", "seed": 2, "layout": {"plugin": "spotdiffusion", "unit": 1}}
    (tmp_path / "jobs.jsonl").write_text(json.dumps(job))
    (tmp_path / "made").mkdir()
    words = ["generate", "--jobs", str(tmp_path / "jobs.jsonl"), *words[2:11], "--out", str(tmp_path / "made")]
    assert main(words) == 0
    (made,) = (tmp_path / "made").glob("*.png")
    assert made.read_bytes() == (tmp_path / "a.png").read_bytes()


@pytest.mark.parametrize(
    ("layout", "error", "message"),
    [
        ("overlapp", Exception, "no layout is called 'overlapp': did you mean 'overlap'?"),
        (SpotDiffusion, SettingError, "the class SpotDiffusion came where a Layout was expected"),
        ({"plugin": "spotdiffusion", "units": 2}, SettingError, "spotdiffusion has no setting 'units': did you mean 'unit'?"),
        (NoWindows(), ContractError, "NoWindows.begin returned a list; it must return Windows"),
    ],
)
@pytest.mark.usefixtures("unannotated")
def test_what_is_no_layout_is_refused(tiny: Model, cpu: Runtime, layout: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message.replace("?", r"\?")):
        Sampler(tiny, layout=layout, runtime=cpu).plan("a lake", **SIZE)


def test_a_layout_with_gaps_is_refused_before_the_run(tiny: Model, cpu: Runtime) -> None:
    plan = Sampler(tiny, layout=Gaps(), runtime=cpu).plan("a lake", **SIZE)
    for attempt in (plan.check, plan.begin):
        with pytest.raises(SettingError, match=r"the windows leave \d+ of 512 cells uncovered, the first at \(\d+, \d+\): try"):
            attempt()
