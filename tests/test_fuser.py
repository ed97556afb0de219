"""Fusion by weighted means: laws for any grid and any positive weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from panokit import ContractError, Fuser, Grid, Level, Union, WeightedFuser, Windows
from panokit.testing.fusers import LEVEL
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
    torch.testing.assert_close(Mean(tilt).fuse(grid.crop(canvas), grid, LEVEL), canvas)


@modest
@given(grids(), tilts)
def test_a_cell_is_the_weighted_mean_of_the_windows_over_it(grid: Grid, tilt: float) -> None:
    windows, weight = noise(len(grid), *grid.window), Mean(tilt).weight(grid, LEVEL)[0]
    value, total = torch.zeros(2, *grid.size, dtype=torch.float64)
    for origin, window in zip(grid.origins, windows, strict=True):  # a window is added where its origin is rolled to 0
        axes = list(range(len(grid.size)))
        moved = tuple(torch.roll(canvas, [-o for o in origin], axes) for canvas in (value, total))
        moved[0][tuple(map(slice, grid.window))] += weight * window
        moved[1][tuple(map(slice, grid.window))] += weight
        value, total = (torch.roll(canvas, list(origin), axes) for canvas in moved)
    torch.testing.assert_close(Mean(tilt).fuse(windows[:, None], grid, LEVEL)[0], value / total)


@modest
@given(grids(), tilts)
def test_fusion_is_linear_in_the_windows(grid: Grid, tilt: float) -> None:
    one, other = noise(2, len(grid), 1, *grid.window)
    fuse = Mean(tilt).fuse
    torch.testing.assert_close(
        fuse(2 * one - 3 * other, grid, LEVEL), 2 * fuse(one, grid, LEVEL) - 3 * fuse(other, grid, LEVEL)
    )


@modest
@given(grids(wrap=True, divisible=True), tilts, st.data())
def test_rolling_a_ring_by_a_stride_commutes(grid: Grid, tilt: float, data: st.DataObject) -> None:
    canvas, place = noise(2, *grid.size), noise(*grid.window, seed=1)

    def through_windows(canvas: Tensor) -> Tensor:
        return Mean(tilt).fuse(torch.tanh(grid.crop(canvas) * place).cumsum(-1), grid, LEVEL)  # feels place and neighbours

    shifts = [stride * data.draw(st.integers(0, 3)) for stride in grid.stride]
    axes = list(range(1, canvas.ndim))
    torch.testing.assert_close(through_windows(canvas.roll(shifts, axes)), through_windows(canvas).roll(shifts, axes))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_windows_are_added_in_float32(dtype: torch.dtype) -> None:
    grid = Grid((40, 40), (8, 8), (1, 1), (True, False))  # up to 64 windows over a cell
    windows = noise(len(grid), 3, *grid.window).to(dtype)
    fused = Mean(0.1).fuse(windows, grid, LEVEL)
    assert fused.dtype == torch.float32
    exact = Mean(0.1).fuse(windows.double(), grid, LEVEL)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(fused.double(), exact, rtol=1e-5, atol=1e-5)


def test_the_weights_are_made_once() -> None:
    made: list[Windows] = []

    class Counting(WeightedFuser):
        def weight(self, windows: Windows, level: Level) -> Tensor:
            made.append(windows)
            return torch.ones(1, *windows.window)

    fuser, grid = Counting(), Grid((8, 8), (4, 4), (2, 2), (False, False))
    for _ in range(3):
        fuser.fuse(grid.crop(torch.zeros(1, 8, 8)), grid, LEVEL)
    assert made == [grid]


def test_fusers_of_other_settings_do_not_share_weights() -> None:
    grid = Grid((6,), (4,), (2,), (False,))
    windows = noise(len(grid), 1, 4)
    assert not torch.equal(Mean(0.0).fuse(windows, grid, LEVEL), Mean(0.3).fuse(windows, grid, LEVEL))


def test_each_window_may_have_a_weight_of_its_own() -> None:
    """Dilated windows that count a tenth of local ones: the formula of a weighted mean, cell by cell."""
    local, dilated = Grid((9, 9), (5, 5), (4, 4), (False, False)), Grid((9, 9), (5, 5), (1, 1), (False, False), dilation=(2, 2))
    both = Union((local, dilated))

    class Tenth(WeightedFuser):
        def weight(self, windows: Windows, level: Level) -> Tensor:
            weight = torch.tensor([1.0] * len(local) + [0.1] * len(dilated), dtype=torch.float64)
            return weight.view(-1, 1, 1).expand(-1, *windows.window)

    rows = noise(len(both), 1, 5, 5)
    value, total = torch.zeros(2, 9, 9, dtype=torch.float64)
    for i, row in enumerate(rows[:, 0]):
        for (y, x), number in zip(both.cells([i])[0].flatten(1).T.tolist(), row.flatten().tolist(), strict=True):
            weight = 1.0 if i < len(local) else 0.1
            value[y, x] += weight * number
            total[y, x] += weight
    torch.testing.assert_close(Tenth().fuse(rows, both, LEVEL)[0], value / total)


def test_weights_that_change_with_the_level_are_made_at_each_fusion() -> None:
    class First(WeightedFuser):
        constant = False

        def weight(self, windows: Windows, level: Level) -> Tensor:
            weight = torch.zeros(len(windows), *windows.window)
            weight[level.index % len(windows)] = 1
            return weight + 1e-6

    grid = Grid((4,), (4,), (2,), (True,))
    rows = torch.stack([torch.zeros(1, 4), torch.ones(1, 4)])
    levels = [Level(k, 500, 0.8, 0.6, k, 2) for k in range(2)]
    fused = [First().fuse(rows, grid, level) for level in levels]
    torch.testing.assert_close(torch.stack(fused), rows, atol=1e-5, rtol=0)


def test_weights_of_any_sign_need_a_sum_above_0() -> None:
    grid = Grid((6,), (4,), (2,), (False,))

    class Signed(WeightedFuser):
        def weight(self, windows: Windows, level: Level) -> Tensor:
            return torch.tensor([[1.0, 1.0, 1.0, 1.0], [-0.5, -0.5, 1.0, 1.0]])

    rows = torch.stack([torch.full((1, 4), 2.0), torch.full((1, 4), 1.0)])
    assert Signed().fuse(rows, grid, LEVEL).tolist() == [[2, 2, 3, 3, 1, 1]]

    class Cancelling(WeightedFuser):
        def weight(self, windows: Windows, level: Level) -> Tensor:
            return torch.tensor([[1.0, 1.0, 1.0, 1.0], [-1.0, -1.0, 1.0, 1.0]])

    with pytest.raises(ContractError, match=r"Cancelling.weight sums to 0 over 2 of 6 cells, the first at \(2,\); the weights"):
        Cancelling().fuse(rows, grid, LEVEL)


def test_a_fuser_of_the_old_contract_is_answered_with_the_new_one() -> None:
    with pytest.raises(ContractError, match=r"Old.weight\(grid\) is of an older contract: it is weight\(windows, level\) now"):

        class Old(WeightedFuser):
            def weight(self, grid: Grid) -> Tensor:
                return torch.ones(grid.window)

    with pytest.raises(
        ContractError, match=r"Older.fuse\(windows, grid\) is of an older contract: it is fuse\(rows, windows, level\)"
    ):

        class Older(Fuser):
            def fuse(self, windows: Tensor, grid: Grid) -> Tensor:
                return windows
