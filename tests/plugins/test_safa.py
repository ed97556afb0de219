"""SaFa against a literal loop of windows that swap columns, and the laws that make it that method."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from panokit import Grid, Guidance, Level, Model, Run, Runtime, Sampler, SettingError, Union
from panokit.testing import Check, conforms
from panokit.testing.strategies import grids
from panokit.testing.toys import Pull, ToyDenoiser, toy_run
from panokit_msd import MSDGuidance
from panokit_multidiffusion import MultiDiffusion
from panokit_safa import SaFa
from panokit_spotdiffusion import SpotDiffusion
from panokit_syncdiffusion import SyncDiffusion
from panokit_twindiffusion import CrossSampling

# beartype looks at items of a container at random, which hypothesis warns of.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
modest = settings(max_examples=40, deadline=None)


@conforms(lambda: SaFa(width=2))
def test_safa_with_wider_stripes(check: Check) -> None:
    check()


def finished(run: Run) -> Tensor:
    while not run.done:
        run.step()
    return run.canvas


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def level(step: int) -> Level:
    return Level(step, 500, 0.8, 0.6, step, 8)


def owners(grid: Grid, step: int, fuser: SaFa | None = None) -> Tensor:
    """The number of the window that has each cell."""
    rows = torch.arange(float(len(grid))).view(-1, 1, *(1,) * len(grid.window)).expand(-1, 1, *grid.window)
    return (fuser or SaFa()).fuse(rows, grid, level(step))[0]


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("ring", [False, True])
def test_it_is_the_loop_of_the_paper(ring: bool, width: int) -> None:
    """Each window keeps latents of its own, steps them, and swaps its overlaps: on a line or a ring, with DDIM."""
    size = 20 if ring else 23
    run = toy_run((size,), denoiser=ToyDenoiser((8,)), fuser=SaFa(width), stride=5, wrap=ring, steps=5, seed=3)
    denoiser, starts = ToyDenoiser((8,)), [0, 5, 10, 15]
    views = [run.canvas.roll(-start, 1)[..., :8].clone() for start in starts]
    pairs = [(0, 1), (1, 2), (2, 3), *([(3, 0)] if ring else [])]
    for k, (here, below) in enumerate(zip(run.solver.levels, run.solver.levels[1:], strict=False)):
        for number, x in enumerate(views):
            eps = denoiser(x[None], here, run.parts.embeddings)[0]
            views[number] = below.alpha * (x - here.sigma * eps) / here.alpha + below.sigma * eps
        for one, other in pairs:
            right, left = views[one][..., 5:], views[other][..., :3]
            v = torch.tensor([(1 - (-1) ** (j // width + k)) / 2 for j in range(3)], dtype=torch.float64)
            swapped = v * right + (1 - v) * left
            views[one][..., 5:] = views[other][..., :3] = swapped
    canvas = torch.zeros_like(run.canvas)
    for start, x in zip(starts, views, strict=True):
        canvas[..., torch.arange(start, start + 8) % size] = x
    torch.testing.assert_close(finished(run), canvas, rtol=0, atol=1e-9)


@modest
@given(grids(), st.integers(1, 3), st.integers(0, 5))
def test_every_cell_is_the_value_of_exactly_one_window_that_covers_it(grid: Grid, width: int, step: int) -> None:
    has = owners(grid, step, SaFa(width)).long()
    for number in range(len(grid)):
        covered = torch.zeros(grid.size)
        grid.put(covered, number, torch.ones(grid.window))
        assert covered[has == number].eq(1).all()
    weight = SaFa(width).weight(grid, level(step))
    assert set(weight.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("ring", [False, True])
def test_over_two_steps_both_windows_of_an_overlap_have_every_cell(ring: bool) -> None:
    grid = Grid((8, 32 if ring else 29), (8, 8), (8, 4 if ring else 7), (False, ring))
    first, second, third = (owners(grid, step)[0] for step in range(3))
    assert torch.equal(first, third)
    overlap = torch.zeros(grid.size)
    for number in range(len(grid)):
        grid.put(overlap, number, torch.ones(8, 8))
    assert torch.equal(first != second, overlap[0] == 2)


def test_stripes_have_their_width_and_begin_with_the_later_window() -> None:
    grid = Grid((8, 14), (8, 8), (8, 6), (False, False))
    assert owners(grid, 0)[0].tolist() == [0] * 6 + [1, 0] + [1] * 6
    wide = Grid((8, 12), (8, 8), (8, 4), (False, False))
    assert owners(wide, 0, SaFa(2))[0].tolist() == [0] * 4 + [1, 1, 0, 0] + [1] * 4
    assert owners(wide, 1, SaFa(2))[0].tolist() == [0] * 4 + [0, 0, 1, 1] + [1] * 4


def test_in_two_directions_it_is_the_product_of_both_axes() -> None:
    grid = Grid((6, 6), (4, 4), (2, 2), (False, False))
    along = torch.tensor([0, 0, 1, 0, 1, 1])
    assert torch.equal(owners(grid, 0).long(), 2 * along[:, None] + along)


def test_three_windows_at_a_border_take_turns() -> None:
    grid = Grid((8, 21), (8, 8), (8, 4), (False, False))  # the windows begin at 0, 4, 8, 12 and 13
    assert [owners(grid, step)[0, 13].item() for step in range(4)] == [4, 2, 3, 4]


def test_noise_keeps_its_variance_where_a_mean_loses_it() -> None:
    grid = Grid((32, 64), (32, 32), (16, 16), (True, True))
    rows = noise(len(grid), 4, 32, 32)
    swapped, mean = (fuser.fuse(rows, grid, level(0)) for fuser in (SaFa(), MultiDiffusion("uniform")))
    assert float(swapped.std()) == pytest.approx(1, abs=0.03)
    assert float(mean.std()) == pytest.approx(0.5, abs=0.03)  # four windows over each cell


@modest
@given(grids(wrap=True, divisible=True), st.integers(1, 2), st.data())
def test_all_places_of_a_ring_are_alike(grid: Grid, width: int, data: st.DataObject) -> None:
    canvas = noise(1, *grid.size)

    def through_windows(canvas: Tensor) -> Tensor:
        return SaFa(width).fuse(torch.tanh(grid.crop(canvas)).cumsum(-1), grid, level(1))

    shifts = [stride * data.draw(st.integers(0, 3)) for stride in grid.stride]
    axes = list(range(1, canvas.ndim))
    torch.testing.assert_close(through_windows(canvas.roll(shifts, axes)), through_windows(canvas).roll(shifts, axes))


@pytest.mark.parametrize(
    ("layout", "stride", "width", "wrap", "guidances"),
    [
        ("overlap", None, 70, False, []),
        ("overlap", None, 64, True, [MSDGuidance()]),
        (CrossSampling(), 8, 70, False, [Pull()]),
        (CrossSampling(), 8, 64, True, [MSDGuidance(head_start=0.0)]),
        (SpotDiffusion(), None, 24, False, [SyncDiffusion(weight=0.1)]),
        (SpotDiffusion(), 12, 64, True, []),
    ],
    ids=str,
)
def test_it_works_with_layouts_and_guidances_and_a_resumed_run_has_the_same_bits(
    tiny: Model, cpu: Runtime, layout: Any, stride: int | None, width: int, wrap: bool, guidances: list[Guidance]
) -> None:
    def begin() -> Run:
        return Sampler(tiny, layout=layout, fuser="safa", guidances=guidances, runtime=cpu).begin(
            "a lake", height=32, width=width, steps=3, stride=stride, wrap=wrap, seed=2
        )

    run, resumed = begin(), begin()
    run.step()
    resumed.restore(run.state())
    assert torch.isfinite(finished(run)).all()
    assert torch.equal(finished(resumed), run.canvas)


def test_more_than_two_windows_over_a_cell_are_refused_before_the_run(tiny: Model, cpu: Runtime) -> None:
    def plan(width: int, stride: int, **parts: Any) -> None:
        Sampler(tiny, fuser="safa", runtime=cpu, **parts).plan("a lake", height=16, width=width, stride=stride).check()

    message = (
        r"safa swaps between two windows, and [45] windows of 8 cells overlap along axis 1: choose a stride of 4 cells or more "
        r"\(a cell is 2 x 2 pixels\)"
    )
    for parts in ({}, {"layout": "twindiffusion"}):
        with pytest.raises(SettingError, match=message):
            plan(64, 4, **parts)
        plan(64, 8, **parts)  # and what it names works,
        plan(70, 8, **parts)  # where borders push windows together, too


def test_windows_that_are_no_rows_and_columns_are_refused_and_count_alike() -> None:
    local, dilated = Grid((9, 9), (5, 5), (4, 4), (False, False)), Grid((9, 9), (5, 5), (1, 1), (False, False), dilation=(2, 2))
    for windows in (Union((local, dilated)), Union((local, local))):
        with pytest.raises(SettingError, match="windows that lie in rows and columns, and those of this layout do not: choose"):
            SaFa().begin(windows, [level(0)])
        rows = noise(len(windows), 1, 5, 5)
        mean = MultiDiffusion("uniform").fuse(rows, windows, level(0))
        torch.testing.assert_close(SaFa().fuse(rows, windows, level(0)), mean)


def test_a_stripe_without_cells_is_refused() -> None:
    with pytest.raises(SettingError, match="width is 0: a stripe must have 1 cell or more"):
        SaFa(width=0)
