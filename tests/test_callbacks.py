"""Watching runs: hooks and what they are given, loggers, previews."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers import CSVLogger
from PIL import Image

from panokit import Model, Run, Runtime, Sampler, callbacks
from panokit.callbacks import Log, Preview, call, picture
from panokit.errors import FallbackWarning, OutputError
from panokit.testing.toys import Pull, ToyCodec, ToyDenoiser, toy_run
from panokit_msd import MSDGuidance

SIZE: dict[str, Any] = {"height": 32, "width": 48, "steps": 4}


class Hooks:
    """Keeps what it is called with."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def on_run_start(self, run: Run) -> None:
        self.seen.append(("start", run.level.step))

    def on_step_end(self, run: Run) -> None:
        self.seen.append(("step", run.level.step))

    def on_run_end(self) -> None:
        self.seen.append(("end", 0))


def test_hooks_are_called_in_order_with_what_they_name(tiny: Model) -> None:
    ours, fabrics = Hooks(), Hooks()
    fabric = Fabric(accelerator="cpu", callbacks=[fabrics])
    sampler = Sampler(tiny, runtime=Runtime(fabric=fabric), callbacks=[ours, object()])
    sampler("a lake", **SIZE)
    expected = [("start", 0), *(("step", k) for k in range(1, 5)), ("end", 0)]
    assert ours.seen == fabrics.seen == expected


def test_a_stream_calls_them_too_and_a_break_leaves_the_end_out(tiny: Model, cpu: Runtime) -> None:
    hooks = Hooks()
    for run in Sampler(tiny, runtime=cpu, callbacks=[hooks]).stream("a lake", **SIZE):
        if run.level.step == 2:
            break
    assert hooks.seen == [("start", 0), ("step", 1), ("step", 2)]


def test_a_run_tells_the_energies_and_gradients_of_its_guidances() -> None:
    run = toy_run(guidances=[Pull("identity", to=1.0), Pull("identity", to=2.0, until=1)], steps=3)
    assert run.scalars == {}
    run.step()
    assert run.seen is not None
    told = run.scalars
    assert set(told) == {"energy/Pull/0", "gradient/Pull/0", "energy/Pull/1", "gradient/Pull/1"}
    context: Any = None
    memory = run.guided[0][0]
    first = toy_run(guidances=[Pull("identity", to=1.0)], steps=3)
    windows = first.model_pass.look(first.windows.crop(first.canvas), first.windows, range(len(first.windows)), first.level)
    energies = memory.energy(windows, range(len(first.windows)), context)
    assert told["energy/Pull/0"] == pytest.approx(float(energies.mean()))
    run.step()
    assert set(run.scalars) == {"energy/Pull/0", "gradient/Pull/0"}


def test_any_logger_is_told_of_each_step(tiny: Model, cpu: Runtime, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    Sampler(tiny, runtime=cpu, guidances=[MSDGuidance(levels=2, head_start=0.0, until=1.0)], loggers=[logger])("a lake", **SIZE)
    (file,) = tmp_path.rglob("metrics.csv")
    header, *rows = file.read_text().splitlines()
    assert set(header.split(",")) == {"step", "seconds", "memory", "energy/MSDGuidance/0", "gradient/MSDGuidance/0"}
    assert len(rows) == 4
    assert all(float(value) > 0 for row in rows[:-1] for value in row.split(","))


class Pictures:
    """A logger that takes pictures as Weights & Biases's does, or TensorBoard's."""

    def __init__(self, wandb: bool) -> None:
        self.steps: list[int] = []
        if wandb:
            self.log_image = lambda key, images, step: self.steps.append(step)
        else:
            self.experiment = self

    def add_image(self, tag: str, image: Any, step: int, dataformats: str) -> None:
        assert image.shape == (32, 48, 3)
        self.steps.append(step)

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        assert metrics["memory"] > 0


@pytest.mark.parametrize("wandb", [False, True])
def test_loggers_that_take_pictures_get_previews(tiny: Model, cpu: Runtime, wandb: bool) -> None:
    logger = Pictures(wandb)
    Sampler(tiny, runtime=cpu, callbacks=[Log([logger], pictures=3)])("a lake", **SIZE)
    assert logger.steps == [3, 4]


def test_a_preview_is_written_while_the_panorama_is_made(tiny: Model, cpu: Runtime, tmp_path: Path) -> None:
    path, sizes = tmp_path / "preview.png", []
    for _ in Sampler(tiny, runtime=cpu, callbacks=[Preview(path, every=2)]).stream("a lake", **SIZE):
        if path.exists():
            with Image.open(path) as image:
                sizes.append(image.size)
    assert sizes == [(48, 32)] * 3  # not after the first step
    assert [each.name for each in tmp_path.iterdir()] == ["preview.png"]


class Broken:
    """A logger that fails in one of its methods."""

    def __init__(self, method: str, error: Exception) -> None:
        self.method, self.error, self.steps = method, error, list[int]()

    def reach(self, method: str) -> None:
        if method == self.method:
            raise self.error

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.steps.append(step)
        self.reach("log_metrics")

    def log_image(self, key: str, images: list[Any], step: int) -> None:
        self.reach("log_image")

    def save(self) -> None:
        self.reach("save")


ERRORS = [OSError(code, os.strerror(code)) for code in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENOENT)]
ERRORS += [
    PermissionError("no"),
    ConnectionError("no network"),
    ValueError("no number"),
    KeyError("run"),
    RuntimeError("closed"),
]


def watched(*callbacks: object) -> torch.Tensor:
    """The canvas of a run of toys that callbacks watch."""
    run = toy_run(denoiser=ToyDenoiser(channels=4), codec=ToyCodec())
    call(callbacks, "on_run_start", run)
    while not run.done:
        run.step()
        call(callbacks, "on_step_end", run)
    call(callbacks, "on_run_end", run)
    return run.canvas


@pytest.mark.parametrize("method", ["log_metrics", "log_image", "save"])
def test_a_logger_that_fails_costs_one_warning_and_neither_the_picture_nor_other_loggers(method: str) -> None:
    expected = watched()
    for error in ERRORS:
        broken, sound = Broken(method, error), Broken("", error)
        with pytest.warns(FallbackWarning) as caught:
            canvas = watched(Log([broken, sound], pictures=1))
        assert [str(warning.message) for warning in caught] == [
            f"{type(error).__name__}: {error}; the run goes on without Broken"
        ]
        assert torch.equal(canvas, expected)
        assert broken.steps == sound.steps == [1, 2, 3]


def test_a_preview_that_cannot_be_computed_costs_one_warning_each_and_never_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(run: Run) -> None:
        raise MemoryError("too little of it")

    expected = watched()
    monkeypatch.setattr(callbacks, "picture", small)
    with pytest.warns(FallbackWarning) as caught:
        canvas = watched(Preview(tmp_path / "a.png"), Log([Broken("", KeyError())], pictures=1))
    assert torch.equal(canvas, expected)
    assert [str(warning.message) for warning in caught] == [
        "MemoryError: too little of it; the run goes on without a new preview",
        "MemoryError: too little of it; the run goes on without previews in its loggers",
    ]


def test_a_preview_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="make it first"):
        Preview(tmp_path / "nowhere" / "a.png")


def test_there_is_no_picture_before_the_first_step(tiny: Model, cpu: Runtime) -> None:
    assert picture(Sampler(tiny, runtime=cpu).begin("a lake", **SIZE)) is None


def test_what_is_watched_is_what_is_made_unwatched(tiny: Model, cpu: Runtime, tmp_path: Path) -> None:
    watched = Sampler(tiny, runtime=cpu, callbacks=[Preview(tmp_path / "a.png")], loggers=[Pictures(True)])
    assert torch.equal(watched("a lake", **SIZE).latents, Sampler(tiny, runtime=cpu)("a lake", **SIZE).latents)
