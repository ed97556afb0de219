"""From the prompt to the last latents, with a network that costs what networks cost.

The network is Stable Diffusion 2's UNet with a fifth of its channels and random weights, at windows of 64 x 64 cells. Both
sides call it with the same windows, as many at once, in turns on one thread. A CPU spends nearly all of the time in the
network, and no framework can spend less there.
"""

from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from measuring import Bench, in_turns, seconds
from panokit import DiffusersScheduler, Model, Runtime, Sampler
from panokit.testing.tiny import tiny_model
from panokit_multidiffusion import MultiDiffusion
from sides import CELL, begun, first_pass, panorama, small_model

WIDTHS = (64, 128, 256, 256)


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest) -> Model:
    measuring = request.config.getoption("--benchmark-enable")
    return small_model(64, WIDTHS) if measuring else tiny_model(window=64)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers, in set_timesteps
@pytest.mark.parametrize("batch", [1, 4])
def test_multidiffusion_takes_as_long_as_in_diffusers_and_makes_the_same(model: Model, bench: Bench, batch: int) -> None:
    """4 windows of 64 x 64 cells, 8 cells apart, and 2 steps of DDIM."""
    size, steps, prompt = (64, 88), 2, "a lake"
    pipeline = panorama(model)
    assert len(pipeline.get_views(*(cells * CELL for cells in size))) == 4

    def ours() -> Tensor:
        runtime = Runtime(accelerator="cpu", micro_batch=batch)
        sampler = Sampler(model, scheduler=DiffusersScheduler("ddim"), fuser=MultiDiffusion("uniform"), runtime=runtime)
        high, wide, stride = (cells * model.factor for cells in (*size, 8))
        run = sampler.begin(prompt, height=high, width=wide, stride=stride, steps=steps, guidance_scale=7.5, seed=0)
        while not run.done:
            run.step()
        return run.canvas

    def theirs() -> Tensor:
        return pipeline(
            prompt,
            height=size[0] * CELL,
            width=size[1] * CELL,
            num_inference_steps=steps,
            guidance_scale=7.5,
            view_batch_size=batch,
            latents=torch.randn((1, 4, *size), generator=torch.Generator().manual_seed(0)),
            output_type="latent",
        ).images[0]

    mine, other = ours(), theirs()
    apart = float((mine - other).abs().max() / other.std())
    what = f"MultiDiffusion, 4 windows, {steps} steps, {batch} at once:"
    same = "the same bits" if torch.equal(mine, other) else "not the same bits"
    bench.record(
        "P5",
        f"{what} largest difference of latents",
        apart,
        f"standard deviations, {same}",
        most=1e-4,
        peer="diffusers",
        always=True,
    )
    if bench.enabled:
        turns = in_turns(5, partial(seconds, ours), partial(seconds, theirs))
        bench.record(
            "P5",
            f"{what} CPU time",
            turns.ratio,
            f"of diffusers' ({turns.ours:.1f} s)",
            most=1.03,
            peer=f"{turns.theirs:.1f} s",
        )


@pytest.mark.measured
@pytest.mark.parametrize("windows", [8, 16])
def test_twice_as_many_windows_take_twice_as_long(bench: Bench, windows: int) -> None:
    landscapes = Sampler().model
    side, stride = 128, 16

    def run(count: int) -> Any:
        begins = begun(landscapes, [], side, side + (count - 1) * stride, stride, micro_batch=4)
        assert len(begins.windows) == count
        return partial(seconds, first_pass(begins))

    turns = in_turns(15, run(2 * windows), run(windows))
    bench.record(
        "P11", f"a step of {2 * windows} windows", turns.ratio, f"times that of {windows}", least=1.9, most=2.1, peer=2
    )


def test_half_precision_is_faster_where_the_processor_has_it(model: Model, bench: Bench) -> None:
    """In bfloat16, which is never compared bit by bit: canvas, fusion and solver stay in float32."""

    def side(precision: str) -> Any:
        return first_pass(
            begun(deepcopy(model), [], 64 * model.factor, 72 * model.factor, 8 * model.factor, precision=precision)
        )

    half, full = side("bf16-true"), side("32-true")
    made, expected = half(), full()
    apart = float((made - expected).std() / expected.std())
    bench.record("P19", "bf16 networks: difference of a prediction", apart, "of its standard deviation", most=0.1, always=True)
    if bench.enabled:
        turns = in_turns(5, partial(seconds, half), partial(seconds, full))
        bench.record(
            "P19", "bf16 networks: a pass over 2 windows", 1 / turns.ratio, "times as fast as fp32", least=1.25, peer=1
        )
