"""MultiDiffusion's weights and what they do to a canvas."""

from typing import Literal, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from panokit import Grid, SettingError
from panokit.testing.fusers import LEVEL
from panokit.testing.strategies import grids
from panokit_multidiffusion import MultiDiffusion

Weights = Literal["uniform", "gaussian"]
# beartype looks at items of a container at random, which hypothesis warns of.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
modest = settings(max_examples=40, deadline=None)
fusers = st.builds(MultiDiffusion, st.sampled_from(get_args(Weights)), st.sampled_from([0.02, 0.2, 1.0]))


@modest
@given(grids(), fusers, st.floats(-100, 100))
def test_a_constant_field_stays_constant(grid: Grid, fuser: MultiDiffusion, constant: float) -> None:
    canvas = torch.full((2, *grid.size), constant)
    torch.testing.assert_close(fuser.fuse(grid.crop(canvas), grid, LEVEL), canvas)


@modest
@given(grids(), fusers)
def test_crop_then_fuse_is_the_identity(grid: Grid, fuser: MultiDiffusion) -> None:
    canvas = torch.linspace(-1, 1, torch.Size(grid.size).numel(), dtype=torch.float64).view(1, *grid.size)
    torch.testing.assert_close(fuser.fuse(grid.crop(canvas), grid, LEVEL), canvas)


@modest
@given(grids(wrap=True, divisible=True), fusers)
def test_rolling_a_ring_by_a_stride_commutes(grid: Grid, fuser: MultiDiffusion) -> None:
    canvas = torch.randn(1, *grid.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def through_windows(canvas: Tensor) -> Tensor:
        return fuser.fuse(torch.tanh(grid.crop(canvas)).cumsum(-1), grid, LEVEL)

    axes = list(range(1, canvas.ndim))
    torch.testing.assert_close(through_windows(canvas.roll(grid.stride, axes)), through_windows(canvas).roll(grid.stride, axes))


@modest
@given(grids(), fusers)
def test_weights_are_positive_and_symmetric_about_the_true_centre(grid: Grid, fuser: MultiDiffusion) -> None:
    (weight,) = fuser.weight(grid, LEVEL)
    assert weight.shape == grid.window
    assert (weight > 0).all()
    assert (weight <= 1).all()
    for axis in range(weight.ndim):
        torch.testing.assert_close(weight.flip(axis), weight, rtol=1e-6, atol=0)
        middle = (grid.window[axis] - 1) // 2
        assert (weight.diff(dim=axis).narrow(axis, 0, middle) >= 0).all()  # it rises up to the centre


def test_the_gaussian_is_the_documented_one() -> None:
    (weight,) = MultiDiffusion("gaussian", spread=0.25).weight(Grid((4, 8), (4, 8), (2, 4), (False, False)), LEVEL)
    u = torch.tensor([[(y - 1.5) / (0.25 * 4), (x - 3.5) / (0.25 * 8)] for y in range(4) for x in range(8)])
    torch.testing.assert_close(weight, torch.exp(-0.5 * u.square().sum(1)).view(4, 8))


def test_uniform_weights_are_the_papers() -> None:
    assert torch.equal(MultiDiffusion("uniform").weight(Grid((9,), (4,), (2,), (True,)), LEVEL), torch.ones(1, 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("spread", [0.01, 0.1, 0.2])
def test_half_precision_never_divides_nothing_by_nothing(dtype: torch.dtype, spread: float) -> None:
    grid = Grid((72, 80), (64, 64), (8, 8), (False, False))  # a corner of the canvas has one window's corner alone
    canvas = torch.randn(2, *grid.size, generator=torch.Generator().manual_seed(0)).to(dtype)
    fused = MultiDiffusion("gaussian", spread).fuse(grid.crop(canvas), grid, LEVEL)
    assert fused.dtype == torch.float32
    torch.testing.assert_close(fused, canvas.float())


def test_the_default_fades_towards_the_border() -> None:
    (weight,) = MultiDiffusion().weight(Grid((8,), (8,), (4,), (False,)), LEVEL)
    assert weight[0] < weight[3] / 5


@pytest.mark.parametrize("spread", [0.0, -1.0, float("nan")])
def test_a_spread_that_is_not_positive_is_refused(spread: float) -> None:
    with pytest.raises(SettingError, match=f"spread is {spread}: it must be positive, in windows"):
        MultiDiffusion(spread=spread)
