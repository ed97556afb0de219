"""TwinDiffusion against a literal loop, and the laws that make it that method."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from panokit import Grid, Guidance, Level, Model, Run, Runtime, Sampler, SettingError
from panokit.testing import Check, conforms
from panokit.testing.fusers import LEVEL
from panokit.testing.strategies import grids
from panokit.testing.toys import Pull, ToyDenoiser, ToyScheduler, toy_run
from panokit_msd import MSDGuidance
from panokit_multidiffusion import MultiDiffusion
from panokit_spotdiffusion import SpotDiffusion
from panokit_syncdiffusion import SyncDiffusion
from panokit_twindiffusion import CropFusion, CrossSampling

# beartype looks at items of a container at random, which hypothesis warns of.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
modest = settings(max_examples=40, deadline=None)


@conforms(lambda: CropFusion(lam=0.3))
def test_crop_fusion(check: Check) -> None:
    check()


@conforms(CrossSampling)
def test_cross_sampling(check: Check) -> None:
    check()


def finished(run: Run) -> Tensor:
    while not run.done:
        run.step()
    return run.canvas


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("lam", [1.0, 0.25])
def test_it_is_the_loop_of_the_paper(lam: float) -> None:
    """Step each window by itself, fuse it with its left neighbour, and take the mean: one row, with DDIM."""
    run = toy_run((8, 20), denoiser=ToyDenoiser((8, 8)), layout=CrossSampling(), fuser=CropFusion(lam), steps=6, seed=3)
    denoiser, canvas = ToyDenoiser((8, 8)), run.canvas
    for k, (level, below) in enumerate(zip(run.solver.levels, run.solver.levels[1:], strict=False)):
        starts = [[0, 2, 4, 6, 8, 10, 12], [0, 1, 3, 5, 7, 9, 11, 12]][k % 2]
        value, count = torch.zeros_like(canvas), torch.zeros_like(canvas)
        last, before = canvas, 0
        for number, start in enumerate(starts):
            x = canvas[:, :, start : start + 8]
            eps = denoiser(x[None], level, run.parts.embeddings)[0]
            window = below.alpha * (x - level.sigma * eps) / level.alpha + below.sigma * eps
            if number and k < 3:
                shared = 8 - (start - before)
                window[..., :shared] = (last[..., 8 - shared :] + lam * window[..., :shared]) / (1 + lam)
            value[:, :, start : start + 8] += window
            count[:, :, start : start + 8] += 1
            last, before = window, start
        canvas = value / count
    torch.testing.assert_close(finished(run), canvas, rtol=0, atol=1e-9)


@modest
@given(grids(wrap=False), st.sampled_from([0.01, 1.0, 7.0]))
def test_on_a_flat_canvas_each_window_is_fused_with_what_the_ones_before_it_left(grid: Grid, lam: float) -> None:
    rows = noise(len(grid), 2, *grid.window)
    latest, total, count = (torch.zeros(2, *grid.size, dtype=torch.float64) for _ in range(3))
    for origin, row in zip(grid.origins, rows, strict=True):
        at = (slice(None), *(slice(start, start + cells) for start, cells in zip(origin, grid.window, strict=True)))
        latest[at] = torch.where(count[at] > 0, (latest[at] + lam * row) / (1 + lam), row)
        total[at] += latest[at]
        count[at] += 1
    torch.testing.assert_close(CropFusion(lam).fuse(rows, grid, LEVEL), total / count)


@modest
@given(grids(wrap=True, divisible=True), st.data())
def test_all_places_of_a_ring_are_alike(grid: Grid, data: st.DataObject) -> None:
    canvas, place = noise(1, *grid.size), noise(*grid.window, seed=1)

    def through_windows(canvas: Tensor) -> Tensor:
        return CropFusion().fuse(torch.tanh(grid.crop(canvas) * place).cumsum(-1), grid, LEVEL)

    shifts = [stride * data.draw(st.integers(0, 3)) for stride in grid.stride]
    axes = list(range(1, canvas.ndim))
    torch.testing.assert_close(through_windows(canvas.roll(shifts, axes)), through_windows(canvas).roll(shifts, axes))


def test_of_two_windows_the_first_counts_three_quarters_until_the_half_of_the_steps() -> None:
    grid = Grid((1, 12), (1, 8), (1, 4), (False, False))
    rows = torch.stack([torch.zeros(1, 1, 8), torch.ones(1, 1, 8)])

    def shared(fuser: CropFusion, step: int) -> list[float]:
        fused = fuser.fuse(rows, grid, Level(step, 500, 0.8, 0.6, step, 4))[0, 0]
        assert fused[:4].eq(0).all()
        assert fused[8:].eq(1).all()
        return fused[4:8].unique().tolist()

    assert [shared(CropFusion(), step) for step in range(4)] == [[0.25], [0.25], [0.5], [0.5]]
    assert shared(CropFusion(lam=3.0), 0) == pytest.approx([0.375])
    assert shared(CropFusion(until=1.0), 3) == [0.25]
    assert shared(CropFusion(lam=float("inf")), 0) == [0.5]


@modest
@given(grids(), st.sampled_from([1e-30, 1e-9, 1.0, 1e9]))
def test_weights_sum_to_one_for_any_lambda(grid: Grid, lam: float) -> None:
    total, weight = torch.zeros(grid.size, dtype=torch.float64), CropFusion(lam).weight(grid, LEVEL)
    for i, row in enumerate(weight):
        grid.put(total, i, row)
    torch.testing.assert_close(total, torch.ones_like(total))


def test_without_crop_fusion_it_is_multidiffusion() -> None:
    plain, never = (finished(toy_run((9, 14), fuser=fuser)) for fuser in (MultiDiffusion("uniform"), CropFusion(until=0.0)))
    assert torch.equal(plain, never)
    assert not torch.allclose(plain, finished(toy_run((9, 14), fuser=CropFusion())))


@pytest.mark.parametrize("wrap", [False, True])
def test_windows_are_half_a_stride_elsewhere_at_every_other_step(wrap: bool) -> None:
    windows = CrossSampling().begin((8, 32), (8, 8), (8, 4), (False, wrap), 0)
    starts = [[x for _, x in windows.at(Level(k, 500, 0.8, 0.6, k, 4)).origins] for k in range(4)]
    assert starts[0] == starts[2] == [*range(0, 32 if wrap else 25, 4)]
    assert starts[1] == starts[3] == ([30, *range(2, 30, 4)] if wrap else [0, *range(2, 24, 4), 24])


def test_with_more_places_they_are_smaller_parts_of_a_stride_apart_on_finer_canvases_too() -> None:
    windows = CrossSampling(every=3).begin((8, 32), (8, 8), (7, 7), (True, True), 0)
    levels = [Level(k, 500, 0.8, 0.6, k, 6) for k in range(6)]
    assert [windows.at(level).shift for level in levels] == [(0, 0), (2, 2), (4, 4)] * 2
    for level in levels:
        assert windows.refined(2).at(level) == windows.at(level).refined(2)
        assert windows.refined(2).coarsened(2).at(level) == windows.at(level)


def test_the_stride_is_a_quarter_of_the_window_unless_it_is_set() -> None:
    assert CrossSampling().begin((64, 256), (64, 64), None, (False, False), 0).stride == (16, 16)
    assert CrossSampling().begin((64, 256), (64, 64), (32, 24), (False, False), 0).stride == (32, 24)
    assert CrossSampling(every=5).begin((8, 32), (8, 8), None, (False, False), 0).unit == (1, 1)


def test_inner_stages_of_a_solver_stay_with_their_step() -> None:
    run = toy_run((8, 12), layout=CrossSampling(), scheduler=ToyScheduler(corrector=True), steps=4)
    places = {(level.step, run.windows.at(level)) for level in run.solver.levels[:-1]}
    assert len(run.solver.levels) == 8
    assert sorted(step for step, _ in places) == [0, 1, 2, 3]
    assert len({windows for _, windows in places}) == 2


@pytest.mark.parametrize(
    ("guidances", "width", "wrap"),
    [
        ([], 70, False),
        ([MSDGuidance()], 64, True),
        ([MSDGuidance(head_start=0.0, levels=2), Pull()], 64, False),
        ([SyncDiffusion(weight=0.1)], 70, True),
    ],
    ids=str,
)
def test_every_guidance_works_with_it_and_a_resumed_run_has_the_same_bits(
    tiny: Model, cpu: Runtime, guidances: list[Guidance], width: int, wrap: bool
) -> None:
    def begin() -> Run:
        return Sampler(tiny, layout="twindiffusion", fuser="twindiffusion", guidances=guidances, runtime=cpu).begin(
            "a lake", height=32, width=width, steps=4, stride=8, wrap=wrap, seed=2
        )

    run, resumed = begin(), begin()
    for _ in range(2):
        run.step()
    resumed.restore(run.state())
    assert torch.isfinite(finished(run)).all()
    assert torch.equal(finished(resumed), run.canvas)


WIDE = {"height": 32, "width": 64}


@pytest.mark.parametrize(
    ("parts", "size", "message"),
    [
        (
            {"fuser": "twindiffusion"},
            {"height": 16, "width": 16},
            "twindiffusion fuses neighbours, and a canvas of 8 x 8 cells has a single window of 8 x 8: make it larger, "
            "choose a stride of half a window on a ring, or take the fuser multidiffusion",
        ),
        (
            {"layout": "twindiffusion"},
            {"height": 16, "width": 16},
            "twindiffusion moves windows, and a canvas of 8 x 8 cells has a single window of 8 x 8: make it larger, or take "
            "the layout overlap",
        ),
        (
            {"fuser": "twindiffusion"},
            {**WIDE, "stride": 16},
            "windows of 8 x 8 cells lie side by side here: choose a stride below 8 cells",
        ),
        (
            {"fuser": "twindiffusion", "layout": SpotDiffusion()},
            {**WIDE, "wrap": "xy"},
            "windows of 8 x 8 cells lie side by side here: choose a stride below 8 cells",
        ),
        (
            {"layout": "twindiffusion"},
            {**WIDE, "stride": 2},
            "every is 2, and a stride of 1 cells is too short for so many shifts: choose a stride of 2 cells or more, or every "
            "from 1 to 1",
        ),
        (
            {"layout": "twindiffusion", "guidances": [MSDGuidance()]},
            {**WIDE, "stride": 4},
            r"the shift between steps \(the stride divided by every, 2\) has 1 cells along axis 0, which 2 does not divide: "
            "the nearest that works is 2",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_the_run(
    tiny: Model, cpu: Runtime, parts: dict[str, Any], size: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingError, match=f"{message} .a cell is 2 x 2 pixels") as error:
        Sampler(tiny, runtime=cpu, **parts).plan("a lake", **size).check()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("head_start", [0.3, 0.0])
def test_a_smaller_canvas_of_one_window_has_nothing_to_fuse(tiny: Model, cpu: Runtime, head_start: float) -> None:
    """MSD paints a canvas of one window first, or estimates it."""
    sampler = Sampler(tiny, fuser="twindiffusion", guidances=[MSDGuidance(head_start=head_start)], runtime=cpu)
    assert torch.isfinite(finished(sampler.begin("a lake", height=32, width=32, steps=2))).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CropFusion(lam=0.0), "lam is 0.0: it must be above 0; 1 lets a window and its neighbour count alike"),
        (lambda: CropFusion(lam=float("nan")), "lam is nan: it must be above 0"),
        (lambda: CropFusion(until=1.5), "until is 1.5: it is a share of the steps, from 0 to 1"),
        (lambda: CrossSampling(every=0), "every is 0: it must be 1 step or more"),
    ],
)
def test_settings_out_of_their_range_are_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(SettingError, match=message):
        make()
