"""The one collective: chunks fixed by count and micro-batch, rows in order, same bits for any number of ranks."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.accelerators import CUDAAccelerator
from lightning.fabric.utilities import device_parser
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn

from panokit import Model, Runtime, Sampler, SettingError
from panokit.runtime import capacity
from panokit.testing.toys import Pull, ToyDenoiser, toy_run


def test_map_returns_all_rows_in_order() -> None:
    seen: list[list[int]] = []

    def square(index: list[int]) -> tuple[Tensor, Tensor]:
        seen.append(index)
        i = torch.tensor(index)
        return i**2, i[:, None].float()

    squares, numbers = Runtime(accelerator="cpu", micro_batch=3).map(square, 7, [(), (1,)])
    assert squares.tolist() == [i**2 for i in range(7)]
    assert numbers.shape == (7, 1)
    assert [len(index) for index in seen] == [2, 2, 3]


@pytest.mark.parametrize("micro_batch", [0, -1])
def test_a_micro_batch_holds_a_window(micro_batch: int) -> None:
    with pytest.raises(SettingError, match="at least 1 window"):
        Runtime(accelerator="cpu", micro_batch=micro_batch)


def test_placed_networks_are_frozen() -> None:
    module = nn.Linear(2, 2).train()
    Runtime(accelerator="cpu").place(module)
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())


def test_double_precision_reaches_canvas_and_networks() -> None:
    runtime = Runtime(accelerator="cpu", precision="64-true")
    module = nn.Linear(2, 2)
    runtime.place(module)
    assert module.weight.dtype == runtime.dtype == torch.float64


def test_what_is_placed_is_remembered() -> None:
    network = nn.Conv2d(2, 2, 1)
    plain, last, half = (
        Runtime(accelerator="cpu", **options) for options in ({}, {"channels_last": True}, {"precision": "bf16-true"})
    )
    assert plain.placement.holds(network)  # it is what this runtime wants, though nobody has placed it
    assert not last.placement.holds(network)
    last.place(network)
    assert last.placement.holds(network)
    assert not plain.placement.holds(network)
    assert not half.placement.holds(network)
    half.place(network)
    assert half.placement.holds(network)
    assert not last.placement.holds(network)


def test_a_runtime_can_be_used_again_after_a_stop(tiny: Model) -> None:
    sampler = Sampler(tiny, runtime=Runtime(accelerator="cpu"))
    settings = {"height": 16, "width": 32, "steps": 3}
    runs = sampler.stream("a lake", **settings)
    next(runs).stop()
    next(runs)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 2 of 3"):
        next(runs)
    assert sampler("a lake", **settings).image.size == (32, 16)


def test_channels_last_changes_nothing_but_rounding(tiny: Model) -> None:
    made = [
        Sampler(tiny, runtime=Runtime(accelerator="cpu", channels_last=last))("a lake", height=16, width=32, steps=2)
        for last in (False, True)
    ]
    torch.testing.assert_close(made[0].latents, made[1].latents, atol=1e-4, rtol=1e-4)


def test_a_map_may_have_a_micro_batch_of_its_own() -> None:
    sizes: list[int] = []

    def note(index: list[int]) -> tuple[Tensor]:
        sizes.append(len(index))
        return (torch.tensor(index),)

    for micro_batch in (None, 2):
        assert Runtime(accelerator="cpu", micro_batch=6).map(note, 6, [()], micro_batch=micro_batch)[0].tolist() == [*range(6)]
    assert sizes == [6, 2, 2, 2]


@pytest.mark.parametrize(("jacobian", "expected"), [("full", 2), ("identity", 8)])
def test_guided_runs_use_it_where_they_go_back_through_the_denoiser(jacobian: Any, expected: int) -> None:
    denoiser = ToyDenoiser()
    runtime = Runtime(accelerator="cpu", guided_micro_batch=2)
    toy_run(denoiser=denoiser, guidances=[Pull(jacobian)], runtime=runtime, steps=1).step()
    assert max(denoiser.forwards) == expected


def test_devices_that_are_not_there_are_told() -> None:
    with pytest.raises(SettingError, match=r"devices=2 \(cuda\) on 1 machine cannot be used"):
        Runtime(accelerator="cuda", devices=2)
    with pytest.raises(SettingError, match=r"\(light\) on 1 machine cannot be used"):
        Runtime(accelerator="light")


def test_more_devices_than_the_machine_has_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with one CUDA device: Fabric's error is then of a class of its own."""
    monkeypatch.setattr(CUDAAccelerator, "is_available", staticmethod(lambda: True))
    monkeypatch.setattr(device_parser, "_get_all_available_gpus", lambda **_: [0])
    with pytest.raises(SettingError, match=r"devices=2 \(cuda\) on 1 machine cannot be used: .*only has: \[0\]"):
        Runtime(accelerator="cuda", devices=2)


def test_a_notebook_is_told_where_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    with pytest.raises(SettingError, match=r"cannot be started from a notebook.*panokit generate --devices N"):
        Runtime(accelerator="cpu", devices=2)
    assert Runtime(accelerator="cpu").world_size == 1


def test_a_fabric_that_would_fork_is_told_too() -> None:
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp_spawn")
    with pytest.raises(SettingError, match="cannot be started from a notebook, nor by spawning"):
        Runtime(fabric=fabric).launch()


@pytest.mark.parametrize("program", ["-", "-c", "", "ipykernel_launcher.py"])
def test_a_program_that_is_no_file_cannot_be_started_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str
) -> None:
    """Not even if there is a file of that name, and no process is started for it."""
    monkeypatch.chdir(tmp_path)
    if program:
        (tmp_path / program).write_text("raise SystemExit(3)")
    monkeypatch.setattr(sys, "argv", [program])
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.delattr(sys.modules["__main__"], "__spec__")
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    with pytest.raises(SettingError, match=f"{program!r} is no file: write a script"):
        Runtime(accelerator="cpu", devices=2).launch()


@pytest.fixture
def _lightnings_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set back after the test: its loggers write nothing in a process that it once took for another rank."""
    monkeypatch.setattr(rank_zero_only, "rank", rank_zero_only.rank)


@pytest.mark.usefixtures("_lightnings_rank")
def test_the_processes_of_a_launcher_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "3", "RANK": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("GROUP_RANK", "1")
    runtime = Runtime(accelerator="cpu")
    assert (runtime.world_size, runtime.global_rank) == (6, 4)
    with pytest.raises(SettingError, match=r"the devices cannot be used: .*devices=2"):
        Runtime(accelerator="cpu", devices=2).launch()


@pytest.mark.usefixtures("_lightnings_rank")
def test_those_of_slurm_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_NTASKS": "4", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "3"}.items():
        monkeypatch.setenv(name, value)
    for name, value in {"SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_JOB_NAME": "panorama"}.items():
        monkeypatch.setenv(name, value)
    runtime = Runtime(accelerator="cpu")
    assert (runtime.world_size, runtime.global_rank) == (4, 3)


def test_more_processes_than_the_machine_holds_are_refused_before_one_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.setattr(capacity.Machine, "this", lambda: capacity.Machine(2, 10**9, 10**8))
    with pytest.raises(SettingError, match=r"5 devices are more than this machine holds, 4: its 2 cores may have 4 processes"):
        Runtime(accelerator="cpu", devices=5).launch()
    with pytest.raises(SettingError, match=r"4 devices are more than this machine holds, 2: each takes about 0.5 GB"):
        Runtime(accelerator="cpu", devices=4).launch(lambda: 4 * 10**8)
    for strategy in ("ddp", "ddp_spawn"):  # those of the user, which start processes by themselves
        with pytest.raises(SettingError, match=r"5 devices are more than this machine holds, 4"):
            Runtime(fabric=Fabric(accelerator="cpu", devices=5, strategy=strategy)).launch()


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan"), float("inf")])
def test_a_timeout_is_a_time(timeout: float) -> None:
    with pytest.raises(SettingError, match="a number of seconds above 0"):
        Runtime(accelerator="cpu", timeout=timeout)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: checks that networks and rows are on it")
def test_on_cuda_networks_and_rows_are_there() -> None:
    runtime = Runtime(accelerator="cuda")
    module = nn.Linear(2, 2)
    runtime.place(module)
    (rows,) = runtime.map(lambda index: (module(torch.ones(len(index), 2, device=runtime.device)),), 5, [(2,)])
    assert module.weight.device.type == rows.device.type == "cuda"
    assert runtime.peak_memory > 0


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices: the collective over NCCL")
def test_the_same_bits_on_two_gpus(tmp_path: Path) -> None:
    made = []
    for devices in (1, 2):
        out = tmp_path / f"{devices}.png"
        words = ["a lake", "--height", "128", "--width", "512", "--steps", "4", "--devices", str(devices), "--out", str(out)]
        subprocess.run([sys.executable, "-m", "panokit", "generate", *words], check=True, timeout=240)
        made.append(out.read_bytes())
    assert made[0] == made[1]
