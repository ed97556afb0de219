"""Fusion by weighted means: laws for any grid and any positive weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from panokit import Grid, WeightedFuser
from panokit.testing.strategies import grids
from panokit.testing.toys import Mean

# beartype looks at items of a container at random, which hypothesis warns of.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
modest = settings(max_examples=40, deadline=None)
tilts = st.sampled_from([0.0, 0.3])


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@modest
@given(grids(), tilts)
def test_crop_then_fuse_is_the_identity(grid: Grid, tilt: float) -> None:
    canvas = noise(2, *grid.size)
    torch.testing.assert_close(Mean(tilt).fuse(grid.crop(canvas), grid), canvas)


@modest
@given(grids(), tilts)
def test_a_cell_is_the_weighted_mean_of_the_windows_over_it(grid: Grid, tilt: float) -> None:
    windows, weight = noise(len(grid), *grid.window), Mean(tilt).weight(grid)
    value, total = torch.zeros(2, *grid.size, dtype=torch.float64)
    for origin, window in zip(grid.origins, windows, strict=True):  # a window is added where its origin is rolled to 0
        axes = list(range(len(grid.size)))
        moved = tuple(torch.roll(canvas, [-o for o in origin], axes) for canvas in (value, total))
        moved[0][tuple(map(slice, grid.window))] += weight * window
        moved[1][tuple(map(slice, grid.window))] += weight
        value, total = (torch.roll(canvas, list(origin), axes) for canvas in moved)
    torch.testing.assert_close(Mean(tilt).fuse(windows[:, None], grid)[0], value / total)


@modest
@given(grids(), tilts)
def test_fusion_is_linear_in_the_windows(grid: Grid, tilt: float) -> None:
    one, other = noise(2, len(grid), 1, *grid.window)
    fuse = Mean(tilt).fuse
    torch.testing.assert_close(fuse(2 * one - 3 * other, grid), 2 * fuse(one, grid) - 3 * fuse(other, grid))


@modest
@given(grids(wrap=True, divisible=True), tilts, st.data())
def test_rolling_a_ring_by_a_stride_commutes(grid: Grid, tilt: float, data: st.DataObject) -> None:
    canvas, place = noise(2, *grid.size), noise(*grid.window, seed=1)

    def through_windows(canvas: Tensor) -> Tensor:
        return Mean(tilt).fuse(torch.tanh(grid.crop(canvas) * place).cumsum(-1), grid)  # feels place and neighbours

    shifts = [stride * data.draw(st.integers(0, 3)) for stride in grid.stride]
    axes = list(range(1, canvas.ndim))
    torch.testing.assert_close(through_windows(canvas.roll(shifts, axes)), through_windows(canvas).roll(shifts, axes))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_windows_are_added_in_float32(dtype: torch.dtype) -> None:
    grid = Grid((40, 40), (8, 8), (1, 1), (True, False))  # up to 64 windows over a cell
    windows = noise(len(grid), 3, *grid.window).to(dtype)
    fused = Mean(0.1).fuse(windows, grid)
    assert fused.dtype == torch.float32
    exact = Mean(0.1).fuse(windows.double(), grid)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(fused.double(), exact, rtol=1e-5, atol=1e-5)


def test_the_weights_are_made_once() -> None:
    made: list[Grid] = []

    class Counting(WeightedFuser):
        def weight(self, grid: Grid) -> Tensor:
            made.append(grid)
            return torch.ones(grid.window)

    fuser, grid = Counting(), Grid((8, 8), (4, 4), (2, 2), (False, False))
    for _ in range(3):
        fuser.fuse(grid.crop(torch.zeros(1, 8, 8)), grid)
    assert made == [grid]


def test_fusers_of_other_settings_do_not_share_weights() -> None:
    grid = Grid((6,), (4,), (2,), (False,))
    windows = noise(len(grid), 1, 4)
    assert not torch.equal(Mean(0.0).fuse(windows, grid), Mean(0.3).fuse(windows, grid))
