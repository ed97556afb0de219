"""The one collective: chunks fixed by count and micro-batch, rows in order, same bits for any number of ranks."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from panokit import Model, Runtime, Sampler, SettingError
from panokit.sharding import chunks
from panokit.testing.toys import Pull, ToyDenoiser, toy_run


@given(st.integers(1, 600), st.integers(1, 16))
def test_chunks_deal_every_number_once_in_order_in_near_equal_runs(n: int, micro_batch: int) -> None:
    plan = chunks(n, micro_batch)
    assert [i for chunk in plan for i in chunk] == list(range(n))
    lengths = [len(chunk) for chunk in plan]
    assert max(lengths) <= micro_batch
    assert max(lengths) - min(lengths) <= 1
    assert len(plan) == -(-n // micro_batch)


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


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_checkpointing_is_for_the_finer_half_of_a_unet(levels: int) -> None:
    unet = UNet2DConditionModel(
        block_out_channels=(32,) * levels,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        layers_per_block=1,
    )
    plain, saving = Runtime(accelerator="cpu"), Runtime(accelerator="cpu", checkpointing=True)
    saving.place(unet)
    assert saving.has(unet)
    assert not plain.has(unet)
    again = {name for name, part in unet.named_modules() if getattr(part, "gradient_checkpointing", False)}
    fine = {
        1: {"down_blocks.0", "up_blocks.0"},
        2: {"down_blocks.0", "up_blocks.1"},
        3: {"down_blocks.0", "down_blocks.1", "up_blocks.1", "up_blocks.2"},
    }
    assert {name.partition(".attentions")[0] for name in again} == fine[levels]


def test_what_one_runtime_asked_of_a_network_the_next_takes_back() -> None:
    unet = UNet2DConditionModel(
        block_out_channels=(32,), down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",)
    )
    plain = Runtime(accelerator="cpu")
    plain.place(unet)
    assert plain.has(unet)
    for asked in ({"checkpointing": True}, {"channels_last": True}, {"compile": True}):
        other = Runtime(accelerator="cpu", **asked)
        assert not other.has(unet)
        other.place(unet)
        assert other.has(unet)
        assert not plain.has(unet)
        plain.place(unet)
        assert plain.has(unet)


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


def test_the_same_bits_on_one_and_two_ranks(tmp_path: Path) -> None:
    """Real processes over gloo: 21 windows in chunks of 2, a stochastic scheduler, a wrapped canvas."""
    latents = []
    for devices in (1, 2):
        path = tmp_path / f"{devices}.pt"
        script = Path(__file__).with_name("sharded_run.py")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, str(script), str(devices), str(path)], env=environment, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr
        latents.append(torch.load(path, weights_only=True))
    assert torch.equal(*latents)
    assert latents[0].std() > 0.1
