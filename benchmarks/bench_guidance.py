"""The cost of a guided step, compared with loops in the style of the papers' authors: CPU time and peak memory.

Both sides denoise the same windows, one at a time, in turns. `pytest benchmarks/bench_guidance.py --benchmark-enable -s`
prints the ratios and checks them against bars. As tests they check what can be counted: both sides return the same, and the
peak of the bytes of all tensors.
"""

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import jaxtyping
import pytest
import torch
from diffusers import UNet2DConditionModel
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from panokit import Estimate, Model, Run, Runtime, Sampler, Windows
from panokit.backbones.diffusers.model import UNetDenoiser
from panokit.denoiser import Codec
from panokit.testing.living import peak
from panokit.testing.toys import Pull
from panokit_msd import MSDPaper
from panokit_msd.scale import mean
from panokit_multidiffusion import MultiDiffusion
from panokit_syncdiffusion import EfficientNet, SyncDiffusion


@pytest.fixture(autouse=True)
def _as_a_user_runs_it() -> Iterator[None]:
    """Run on one thread, without the checks of annotations that tests add."""
    threads, checks = torch.get_num_threads(), jaxtyping.config.jaxtyping_disable
    torch.set_num_threads(1)
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", checks)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> Model:
    return Sampler().model


@pytest.fixture(scope="module")
def large(model: Model) -> Model:
    """Stable Diffusion 2's UNet at a tenth of its width and half of its size, with random weights."""
    parts = model.denoiser
    assert isinstance(parts, UNetDenoiser)
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(32, 64, 128, 128),
        attention_head_dim=(1, 2, 4, 4),
        cross_attention_dim=parts.unet.config.cross_attention_dim,
        use_linear_projection=True,
    )
    return Model(UNetDenoiser(unet, parts.text_encoder, parts.tokenizer, parts.training), None, "large")


def begun(model: Model, guidance: Any, height: int, width: int, stride: int | None = None, **runtime: Any) -> Run:
    """Begin a run. By default it denoises one window at a time."""
    sampler = Sampler(
        model, fuser=MultiDiffusion(), guidances=guidance, runtime=Runtime(accelerator="cpu", **{"micro_batch": 1, **runtime})
    )
    return sampler.begin("a mountain lake at dusk", height=height, width=width, stride=stride, steps=50, seed=0)


def look(run: Run, grid: Windows, x: Tensor, i: int) -> Estimate:
    """The denoiser's estimate of one window."""
    return run.model_pass.look(x, grid, [i], run.level)


def literal_sync(run: Run, metric: EfficientNet, weight: float) -> Tensor:
    """A guided step as in the authors' loop.

    The anchor takes the same passes as every other window, and its features are computed again for each window.
    """
    grid, anchor = run.windows, run.windows.nearest(0.5, 0.5)
    codec = run.codec
    assert isinstance(codec, Codec)
    with torch.no_grad():
        reference = codec.decode(look(run, grid, grid.crop(run.canvas, [anchor]), anchor).x0).clamp(0, 1)
    moved = []
    for i in range(len(grid)):
        x = grid.crop(run.canvas, [i]).requires_grad_()
        with torch.enable_grad():
            loss = metric(codec.decode(look(run, grid, x, i).x0).clamp(0, 1), reference).sum()
        (gradient,) = torch.autograd.grad(loss, x)
        x = x.detach() if i == anchor else x.detach() - weight * gradient
        with torch.no_grad():
            moved.append(run.model_pass.predict(x, grid, [i], run.level))
    return run.parts.fuser.fuse(torch.cat(moved), grid, run.level)


def literal_msd(run: Run, weight: float) -> Tensor:
    """A guided step whose loss also has gradients for the weights."""
    grid, below = run.windows, run.windows.scaled(2)
    low = run.parts.fuser.fuse(
        torch.cat([look(run, below, below.crop(mean(run.canvas, 2, 2), [i]), i).prev for i in range(len(below))]).detach(),
        below,
        run.level,
    )
    moved = []
    for i in range(len(grid)):
        x = grid.crop(run.canvas, [i]).requires_grad_()
        with torch.enable_grad():
            apart = mean(look(run, grid, x, i).prev, 2, 2) - grid.coarsened(2).crop(low, [i])
            apart.square().sum().backward()
        assert x.grad is not None
        with torch.no_grad():
            moved.append(run.model_pass.predict(x.detach() - weight * x.grad, grid, [i], run.level))
    return run.parts.fuser.fuse(torch.cat(moved), grid, run.level)


def ratios(pairs: int, ours: Callable[[], Any], theirs: Callable[[], Any]) -> float:
    """The CPU time of the other side divided by ours: the median of runs in turns."""

    def seconds(step: Callable[[], Any]) -> float:
        start = time.process_time()
        step()
        return time.process_time() - start

    return median(seconds(theirs) / seconds(ours) for _ in range(pairs))


def stage(run: Run) -> Callable[[], Any]:
    """A function that makes the guided passes of one step. It can be called many times."""

    def step() -> Tensor:
        with torch.no_grad():
            return run.pass_over(run.canvas, run.windows, run.guided, run.level).pred

    return step


def test_syncdiffusion_makes_the_anchors_features_once(model: Model, benchmark: BenchmarkFixture) -> None:
    run = begun(model, [SyncDiffusion()], 128, 256 if benchmark.disabled else 384)
    metric = EfficientNet()
    torch.testing.assert_close(benchmark.pedantic(stage(run)), literal_sync(run, metric, 20.0), rtol=1e-3, atol=1e-3)
    if not benchmark.disabled:
        gain = ratios(9, stage(run), lambda: literal_sync(run, metric, 20.0))
        print(f"\nSyncDiffusion, {len(run.windows)} windows: a literal loop takes {gain:.2f} times as long, bar 1.1")
        assert gain >= 1.1


def test_msd_keeps_nothing_for_weights(model: Model, benchmark: BenchmarkFixture) -> None:
    assert isinstance(model.denoiser, UNetDenoiser)
    unet: Any = model.denoiser.unet
    run = begun(model, [MSDPaper(0.1)], 256, 256, stride=128 if benchmark.disabled else 64)

    def theirs() -> Tensor:
        unet.requires_grad_(True)
        prediction = literal_msd(run, run.guided[0][0].strength(run.level))
        unet.requires_grad_(False)
        unet.zero_grad()
        return prediction

    (_, less), (expected, more) = peak(stage(run)), peak(theirs)
    torch.testing.assert_close(benchmark.pedantic(stage(run)), expected, rtol=1e-3, atol=1e-3)
    share = less / more
    assert share <= 0.6
    if not benchmark.disabled:
        gain = ratios(5, stage(run), theirs)
        print(f"\nMSD, guided step: a literal loop takes {gain:.2f} times as long, bar 1.1; memory {share:.2f} of its, bar 0.6")
        assert gain >= 1.1


def test_checkpointing_trades_memory_for_time(large: Model, benchmark: BenchmarkFixture) -> None:
    plain, saving = (stage(begun(large, [Pull()], 32, 32, checkpointing=checkpointing)) for checkpointing in (False, True))
    (_, less), (expected, more) = peak(saving), peak(plain)
    torch.testing.assert_close(benchmark.pedantic(saving), expected)
    share = less / more
    assert share <= 0.6
    if not benchmark.disabled:
        factor = 1 / ratios(9, saving, plain)
        print(f"\ncheckpointing: {share:.2f} of the memory, bar 0.6, in {factor:.2f} times the time, bar 1.3")
        assert factor <= 1.3


def test_peak_memory_is_flat_in_the_number_of_windows(model: Model) -> None:
    peaks = [peak(stage(begun(model, [MSDPaper(0.1)], 256, width, stride=128)))[1] for width in (256, 512)]
    print(f"\npeak memory: {peaks[0] / 1e6:.1f} MB at 4 windows, {peaks[1] / 1e6:.1f} MB at 8")
    assert peaks[1] <= 1.1 * peaks[0]
