"""The cost of a guided step, compared with loops in the style of the papers' authors: CPU time and peak memory.

Both sides denoise the same windows, one at a time, in turns. As tests they check what can be counted: both sides return the
same, and the peak of the bytes of all tensors.
"""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from measuring import Bench, in_turns, seconds
from panokit import Estimate, Model, Run, Sampler, Windows
from panokit.backbones.diffusers.model import UNetDenoiser
from panokit.denoiser import Codec
from panokit.testing.memory import peak
from panokit_msd import MSDPaper
from panokit_msd.scale import mean
from panokit_syncdiffusion import EfficientNet, SyncDiffusion
from sides import begun, first_pass


@pytest.fixture(scope="module")
def model() -> Model:
    return Sampler().model


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


def test_syncdiffusion_makes_the_anchors_features_once(model: Model, bench: Bench) -> None:
    run = begun(model, [SyncDiffusion()], 128, 384 if bench.enabled else 256)
    metric = EfficientNet()
    torch.testing.assert_close(first_pass(run)(), literal_sync(run, metric, 20.0), rtol=1e-3, atol=1e-3)
    turns = in_turns(
        9 if bench.enabled else 1,
        partial(seconds, first_pass(run)),
        partial(seconds, partial(literal_sync, run, metric, 20.0)),
    )
    bench.record(
        "P6",
        f"a guided step of SyncDiffusion, {len(run.windows)} windows, against a literal loop",
        1 / turns.ratio,
        "times as fast",
        least=1.2,
        peer=1,
    )


def test_msd_keeps_nothing_for_weights(model: Model, bench: Bench) -> None:
    assert isinstance(model.denoiser, UNetDenoiser)
    unet: Any = model.denoiser.unet
    run = begun(model, [MSDPaper(0.1)], 256, 256, stride=64 if bench.enabled else 128)

    def theirs() -> Tensor:
        unet.requires_grad_(True)
        prediction = literal_msd(run, run.guided[0][0].strength(run.level))
        unet.requires_grad_(False)
        unet.zero_grad()
        return prediction

    (made, less), (expected, more) = peak(first_pass(run)), peak(theirs)
    torch.testing.assert_close(made, expected, rtol=1e-3, atol=1e-3)
    what = f"a guided step of MSD, {len(run.windows)} windows, against a literal loop"
    bench.record("P7", f"{what}: memory", less / more, "of its bytes", most=0.6, peer=1, always=True)
    if bench.enabled:
        turns = in_turns(5, partial(seconds, first_pass(run)), partial(seconds, theirs))
        bench.record("P7", f"{what}: time", 1 / turns.ratio, "times as fast", least=1.1, peer=1)
