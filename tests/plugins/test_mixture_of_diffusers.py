"""Mixture of Diffusers against a literal loop: texts and strengths of guidance by window, kernels, predictions fused."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from panokit import Grid, Level, Model, Region, Regions, Run, Runtime, Sampler, Scene, SettingError
from panokit.testing import Check, conforms
from panokit_mixture_of_diffusers import MixtureOfDiffusers
from panokit_multidiffusion import MultiDiffusion

LEVEL = Level(0, 500, 0.8, 0.6, step=0, steps=1)
TILES = Regions(
    (
        Region((0, 0, 0.4, 1), "a lake", guidance_scale=3.0),
        Region((0.4, 0, 0.6, 1), "a city", "rain", guidance_scale=1.0),
        Region((0.6, 0, 1, 1), "a lake at night"),
    ),
    "fog",
    mix="windows",
)


@conforms(lambda: MixtureOfDiffusers("quartic"))
def test_quartic(check: Check) -> None:
    check()


@conforms(lambda: MixtureOfDiffusers("constant"))
def test_constant(check: Check) -> None:
    check()


def finished(run: Run) -> Tensor:
    while not run.done:
        run.step()
    return run.canvas


def kernel(name: str, u: int, cells: int) -> float:
    """The kernels, cell by cell, as the paper and its pipelines write them."""
    middle = (cells - 1) / 2
    if name == "gaussian":
        return math.exp(-((u - middle) ** 2) / cells**2 / (2 * 0.01)) / math.sqrt(2 * math.pi * 0.01)
    return 15 / 16 * (1 - ((u - middle) / (cells / 2)) ** 2) ** 2 if name == "quartic" else 1.0


@pytest.mark.parametrize("name", ["gaussian", "quartic", "constant"])
def test_it_is_the_loop_of_the_paper(tiny: Model, name: Any) -> None:
    """Each window has a text and a strength of its own; the predictions are averaged, and one DDIM step is made."""
    runtime = Runtime(accelerator="cpu", precision="64-true")
    sampler = Sampler(tiny, fuser=MixtureOfDiffusers(name), scheduler="ddim", runtime=runtime)
    run, denoiser = sampler.begin(TILES, height=16, width=48, steps=3, seed=4), sampler.model.denoiser
    assert isinstance(run.windows, Grid)
    assert [x for _, x in run.windows.origins] == [0, 4, 8, 12, 16]
    texts = [("a lake", "", 3.0)] * 2 + [("a city", "rain", 1.0)] + [("a lake at night", "", 7.5)] * 2
    weight = torch.tensor([[kernel(name, y, 8) * kernel(name, x, 8) for x in range(8)] for y in range(8)], dtype=torch.float64)
    canvas = run.canvas
    one = Grid((8, 8), (8, 8), (8, 8), (False, False))
    with torch.no_grad():
        for level, below in pairwise(run.solver.levels):
            value, total = torch.zeros_like(canvas), torch.zeros_like(canvas)
            for (_, x), (text, negative, scale) in zip(run.windows.origins, texts, strict=True):
                embeddings = denoiser.encode(Scene(text, negative, scale))
                eps = denoiser(canvas[None, :, :, x : x + 8], level, denoiser.condition(embeddings, one, [0]))[0]
                value[:, :, x : x + 8] += weight * eps
                total[:, :, x : x + 8] += weight
            eps = value / total
            canvas = below.alpha * (canvas - level.sigma * eps) / level.alpha + below.sigma * eps
    assert float((finished(run) - canvas).abs().max()) <= 1e-9 * float(canvas.abs().max())


def test_gaussian_weights_are_those_of_multidiffusion() -> None:
    windows = Grid((8, 12), (8, 6), (4, 3), (False, False))
    ours, theirs = MixtureOfDiffusers(variance=0.04), MultiDiffusion(spread=0.2)
    torch.testing.assert_close(ours.weight(windows, LEVEL), theirs.weight(windows, LEVEL))


@given(cells=st.integers(1, 40), name=st.sampled_from(["gaussian", "quartic", "constant"]), variance=st.floats(1e-3, 1.0))
def test_weights_are_symmetric_and_highest_in_the_middle(cells: int, name: Any, variance: float) -> None:
    (weight,) = MixtureOfDiffusers(name, variance).weight(Grid((cells,), (cells,), (cells,), (False,)), LEVEL)
    assert torch.equal(weight, weight.flip(0))
    assert (weight > 0).all()
    assert (weight[: (cells + 1) // 2].diff() >= 0).all()


def test_a_window_has_the_text_with_the_largest_share_and_costs_one_pass() -> None:
    scene = Scene(TILES, guidance_scale=7.5)
    windows = Grid((8, 24), (8, 8), (8, 4), (False, False))
    mixture = scene.mixture(scene.maps(windows), windows, [4, 2, 0, 1])
    assert (mixture.rows, mixture.texts, mixture.shares) == ([0, 1, 2, 3], [3, 2, 1, 1], None)
    assert mixture.scales == [7.5, 1.0, 3.0, 3.0]
    halves = Scene(Regions((((0, 0, 0.5, 1), "left"), ((0.5, 0, 1, 1), "right")), mix="windows"))
    one = Grid((8, 8), (8, 8), (8, 8), (False, False))
    assert halves.mixture(halves.maps(one), one, [0]).texts == [2]  # of equal shares the later one


def test_a_guidance_scale_of_a_region_is_that_of_its_own_picture(tiny: Model, cpu: Runtime) -> None:
    sampler, size = Sampler(tiny, runtime=cpu), {"height": 16, "width": 64, "steps": 2, "stride": 16, "progress": False}

    def latents(prompt: Any, scale: float) -> Tensor:
        return sampler(prompt, **size, guidance_scale=scale).latents

    halves = Regions((Region((0, 0, 0.5, 1), "a lake", guidance_scale=3.0), Region((0.5, 0, 1, 1), "a lake", guidance_scale=0)))
    for scale in (0.0, 7.5):  # that of the scene counts nowhere here
        mixed = latents(halves, scale)
        torch.testing.assert_close(mixed[..., :16], latents("a lake", 3.0)[..., :16], rtol=0, atol=1e-4)
        torch.testing.assert_close(mixed[..., 16:], latents("a lake", 1.0)[..., 16:], rtol=0, atol=1e-4)


def test_a_resumed_run_has_the_same_bits_and_works_with_msd_on_a_ring(tiny: Model, cpu: Runtime) -> None:
    def begin() -> Run:
        sampler = Sampler(tiny, fuser="mixture_of_diffusers", guidances=["msd"], layout="spotdiffusion", runtime=cpu)
        return sampler.begin(TILES, height=32, width=64, steps=4, wrap=True, seed=2)

    run, resumed = begin(), begin()
    for _ in range(2):
        run.step()
    resumed.restore(run.state())
    assert torch.isfinite(finished(run)).all()
    assert torch.equal(finished(resumed), run.canvas)


@pytest.mark.parametrize("positions", ["local", "offset"])
def test_a_pipeline_is_called_once_for_each_strength(cpu: Runtime, positions: str) -> None:
    """Each half is the one that its text and its strength make alone, for the windows of the halves do not overlap."""
    from panokit import load_model
    from panokit.testing.families import tiny_pipeline

    sampler = Sampler(load_model(tiny_pipeline("sdxl"), window=16, positions=positions), runtime=cpu)

    def canvas(prompt: Any, scale: float) -> Tensor:
        return finished(sampler.begin(prompt, height=32, width=64, steps=2, stride=32, guidance_scale=scale))

    halves = Regions(
        (Region((0, 0, 0.5, 1), "a lake", guidance_scale=2.0), Region((0.5, 0, 1, 1), "a lake", guidance_scale=1.0))
    )
    both, two, one = canvas(halves, 5.0), canvas("a lake", 2.0), canvas("a lake", 1.0)
    torch.testing.assert_close(both[..., :16], two[..., :16], rtol=0, atol=1e-5)
    torch.testing.assert_close(both[..., 16:], one[..., 16:], rtol=0, atol=1e-5)
    assert not torch.allclose(one, two, rtol=0, atol=1e-3)


@pytest.mark.usefixtures("unannotated")
def test_settings_and_regions_that_cannot_be_say_why() -> None:
    cubic: Any = "cubic"
    with pytest.raises(SettingError, match="kernel is 'cubic': it must be gaussian, quartic or constant"):
        MixtureOfDiffusers(cubic)
    with pytest.raises(SettingError, match=r"variance is 0: it must be above 0, in windows; the paper's is 0\.01"):
        MixtureOfDiffusers(variance=0)
    rows: Any = "rows"
    with pytest.raises(SettingError, match="mix of the regions is 'rows': it must be cells or windows"):
        Regions((((0, 0, 1, 1), "a"),), mix=rows)
    with pytest.raises(SettingError, match="the guidance_scale of the region 'a' is nan: it must be a number"):
        Region((0, 0, 1, 1), "a", guidance_scale=math.nan)
