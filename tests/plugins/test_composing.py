"""Guidances together: with every kind of scheduler, in any order, at the price of one."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from panokit import DiffusersScheduler, Guidance, Model, Run, Runtime, Sampler
from panokit.backbones.diffusers.model import UNetDenoiser
from panokit.scheduler import Prediction
from panokit.testing.tiny import tiny_model
from panokit_msd import MSDGuidance, MSDPaper
from panokit_multidiffusion import MultiDiffusion
from panokit_syncdiffusion import SyncDiffusion


def squares(images: Tensor, other: Tensor) -> Tensor:
    return (images - other).square().mean((1, 2, 3))


SYNC = SyncDiffusion(2.0, metric=squares, until=1.0)
PAPER = MSDPaper(0.1, until=1.0)
MSD = MSDGuidance(0.5, until=1.0)


@pytest.fixture(scope="module")
def models() -> Callable[[Prediction], Model]:
    """The tiny model of each prediction, made once."""
    return functools.cache(tiny_model)


def begun(model: Model, *guidances: Guidance, scheduler: str = "ddim", steps: int = 3, **settings: Any) -> Run:
    sampler = Sampler(
        model,
        scheduler=DiffusersScheduler(scheduler),
        fuser=MultiDiffusion(),
        guidances=guidances,
        runtime=Runtime(accelerator="cpu", micro_batch=8, **settings),
    )
    return sampler.begin("a lake", height=32, width=40, steps=steps, guidance_scale=1.0, seed=1)


def finished(run: Run) -> Tensor:
    while not run.done:
        run.step()
    return run.canvas


@pytest.mark.parametrize("scheduler", ["ddim", "ddpm", "euler", "euler_a", "heun", "dpm++_2m", "dpm++_2m_sde", "unipc", "pndm"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_every_kind_of_scheduler_is_guided(models: Any, scheduler: str, prediction: Prediction) -> None:
    model = models(prediction)
    plain, guided = (finished(begun(model, *each, scheduler=scheduler)) for each in ((), (SYNC, PAPER, MSD)))
    assert torch.isfinite(guided).all()
    assert float((plain - guided).abs().max()) > 1e-3


def test_flow_matching_is_guided() -> None:
    model = tiny_model("flow_prediction")
    plain, guided = (finished(begun(model, *each, scheduler="flow_euler")) for each in ((), (SYNC, PAPER, MSD)))
    assert torch.isfinite(guided).all()
    assert float((plain - guided).abs().max()) > 1e-3


@pytest.mark.parametrize("order", [(PAPER, SYNC, MSD), (PAPER, MSD, SYNC)])
def test_the_order_does_not_matter(tiny: Model, order: tuple[Guidance, ...]) -> None:
    torch.testing.assert_close(finished(begun(tiny, *order)), finished(begun(tiny, SYNC, PAPER, MSD)), rtol=1e-4, atol=1e-4)


def test_together_they_cost_two_forwards_and_one_backward_a_window(tiny: Model) -> None:
    assert isinstance(tiny.denoiser, UNetDenoiser)
    forwards: list[int] = []
    backwards: list[int] = []

    def count(module: nn.Module, args: Any, output: Any) -> None:
        forwards.append(len(output[0]))
        if output[0].requires_grad:
            output[0].register_hook(lambda gradient: backwards.append(len(gradient)))

    run = begun(tiny, SYNC, PAPER, steps=2)
    fine, coarse = len(run.windows), len(run.windows.scaled(2))
    with tiny.denoiser.unet.register_forward_hook(count):
        run.step()
    assert sum(forwards) == 2 * fine + coarse + 1  # and the anchor
    assert sum(backwards) == fine


@pytest.mark.parametrize("checkpointed", [False, True])
def test_checkpointing_changes_no_gradient(tiny: Model, checkpointed: bool) -> None:
    sync = SyncDiffusion(2.0, metric=squares, until=1.0, checkpointing=checkpointed)
    plain, saving = (finished(begun(tiny, sync, PAPER, steps=2, checkpointing=each)) for each in (False, True))
    assert torch.equal(plain, saving)


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_half_precision_does_not_underflow(precision: Any) -> None:
    """A gradient far below what half precision can tell from nothing comes through, scaled on the way."""
    model = tiny_model()
    faint = SyncDiffusion(2e30, metric=lambda a, b: squares(a, b) * 1e-30, until=1.0)
    canvases = [finished(begun(model, *each, steps=2, precision=precision)) for each in ((), (SYNC,), (faint,))]
    moved, faintly = (float((canvas - canvases[0]).abs().mean()) for canvas in canvases[1:])
    assert faintly == pytest.approx(moved, rel=0.05)
    assert moved > 0
