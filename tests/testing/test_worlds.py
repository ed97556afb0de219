"""Worlds are what they say: exact."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import get_args

import pytest
import torch
from torch import Tensor

from panokit import Codec, Level, Run, Scheduler, Training
from panokit.scheduler import Prediction, x0_from
from panokit.testing.toys import Pull, ToyCodec, ToyDenoiser, ToyScheduler, toy_run
from panokit.testing.worlds import Gaussian, OneImage

CPU = torch.device("cpu")
PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def finished(run: Run) -> Tensor:
    while not run.done:
        run.step()
    return run.canvas


# --- one image ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_model_of_one_image_sees_it_under_any_canvas(prediction: Prediction) -> None:
    world, solver = OneImage(noise(4, 6)), ToyScheduler().begin(3, CPU, Training(prediction))
    for level in solver.levels[:-1]:
        x = noise(4, 6, seed=level.index + 1)
        seen = x0_from(prediction, world.predict(solver, x, level), x, level)
        torch.testing.assert_close(seen, world.image, rtol=1e-12, atol=1e-12)


# --- the exact Gaussian posterior ---------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "variance"), [(0.0, 1.0), (2.0, 0.3)])
def test_the_estimate_is_the_conditional_mean_of_joint_normals(mean: float, variance: float) -> None:
    """E[x0 | x] = E[x0] + Cov(x0, x) Cov(x, x)^-1 (x - E[x]), for all cells of a window at once."""
    level, n = Level(1, 400, 0.8, 0.6, 1, 3), 12
    prior, identity = variance * torch.eye(n, dtype=torch.float64), torch.eye(n, dtype=torch.float64)
    x = noise(n)
    covariance = level.alpha**2 * prior + level.sigma**2 * identity
    expected = mean + level.alpha * prior @ torch.linalg.solve(covariance, x - level.alpha * mean)
    torch.testing.assert_close(Gaussian(mean, variance).x0(x, level), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_prediction_means_the_estimate(prediction: Prediction) -> None:
    world = Gaussian(2.0, 0.3, training=Training(prediction))
    for level in ToyScheduler().begin(3, CPU, world.training).levels[:-1]:
        x = noise(2, 4, 8, 8)
        torch.testing.assert_close(x0_from(prediction, world(x, level, None), x, level), world.x0(x, level))


@pytest.mark.parametrize("prediction", ["epsilon", "flow_prediction"])
def test_many_deterministic_steps_keep_the_standard_score_of_every_cell(prediction: Prediction) -> None:
    """The probability flow of a normal x is its quantile map: x = alpha mu + sqrt(alpha^2 v + sigma^2) z, z unchanged."""
    world = Gaussian(2.0, 0.3, window=(4, 4), channels=2, training=Training(prediction))

    def off(steps: int) -> float:
        run = toy_run((4, 6), denoiser=world, steps=steps)
        first = run.level
        z = (run.canvas - first.alpha * world.mean) / math.sqrt(first.alpha**2 * world.variance + first.sigma**2)
        return float((finished(run) - world.mean - math.sqrt(world.variance) * z).abs().max())

    coarse, fine = off(40), off(160)
    assert fine < 0.05
    assert fine < coarse / 3  # the error of first-order steps goes with their length


def test_a_canvas_of_windows_is_as_exact_as_one_window() -> None:
    canvases = [
        finished(toy_run((4, 12), denoiser=Gaussian(1.0, 0.5, window, channels=2), stride=2)) for window in ((4, 4), (4, 12))
    ]
    torch.testing.assert_close(*canvases, rtol=1e-12, atol=1e-12)


# --- the toys -----------------------------------------------------------------------------------------------


def test_the_toy_codec_decodes_to_unit_range_and_back() -> None:
    codec, latents = ToyCodec(), noise(2, 4, 3, 5)
    images = codec.decode(latents)
    assert images.shape == (2, 3, 6, 10)
    assert images.min() > 0
    assert images.max() < 1
    assert images.std() > 0.1
    torch.testing.assert_close(codec.encode(images), latents, rtol=1e-9, atol=1e-9)


def test_the_toy_codec_has_the_gradient_of_its_pictures() -> None:
    latents = noise(1, 4, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(ToyCodec().decode, latents)


def test_the_toy_codec_encodes_any_picture_as_one_that_it_decodes() -> None:
    codec, images = ToyCodec(), noise(1, 3, 4, 4).sigmoid()
    nearest = codec.decode(codec.encode(images))
    torch.testing.assert_close(codec.decode(codec.encode(nearest)), nearest)
    black = codec.encode(torch.zeros(1, 3, 4, 4, dtype=torch.float64))
    assert black.isfinite().all()


@pytest.mark.parametrize("scheduler", [ToyScheduler(), ToyScheduler(0.7), ToyScheduler(1.0, corrector=True)], ids=repr)
@pytest.mark.parametrize("prediction", ["v_prediction", "flow_prediction"])
def test_the_toy_scheduler_steps_along_its_levels(scheduler: Scheduler, prediction: Prediction) -> None:
    solver = scheduler.begin(4, CPU, Training(prediction))
    for level, below in pairwise(solver.levels):
        total = level.alpha + level.sigma if prediction == "flow_prediction" else math.hypot(level.alpha, level.sigma)
        assert total == pytest.approx(1)
        assert not level.main or level.sigma >= below.sigma


def test_a_toy_run_takes_other_parts() -> None:
    codec: Codec = ToyCodec()
    run = toy_run((8, 16), denoiser=ToyDenoiser((8, 8), channels=4), codec=codec, guidances=[Pull()], stride=4)
    assert run.codec is codec
    other = toy_run((8, 16), denoiser=ToyDenoiser((8, 8), channels=4), runtime=run.runtime, stride=4)
    assert other.runtime is run.runtime
    assert replace(other.level, index=0) == run.level
