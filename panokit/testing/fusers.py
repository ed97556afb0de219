"""Checks for fusers: windows that were cropped from a canvas must give that canvas back, in any layout."""

from collections.abc import Callable

import torch
from torch import Tensor

from panokit.fuser import Fuser, WeightedFuser
from panokit.grid import Grid
from panokit.runtime import Runtime
from panokit.scheduler import Level
from panokit.testing.demands import contents, demand, distance, unchanged
from panokit.testing.ranks import same_on_ranks
from panokit.testing.settings import pickles_and_reprs
from panokit.testing.toys import Drift, toy_run
from panokit.union import Union
from panokit.windows import Windows

Make = Callable[[], Fuser]

LEVEL = Level(0, 500, 0.8, 0.6, step=0, steps=1)
GRIDS: tuple[Windows, ...] = (
    Grid((10, 13), (6, 6), (3, 4), (False, False)),  # the last window is moved back to the border
    Grid((6, 14), (6, 6), (6, 2), (False, True)),  # a strip whose ends meet
    Grid((8, 9), (4, 3), (2, 3), (True, True)),  # a torus, and windows side by side
    Grid((6, 6), (6, 6), (3, 3), (False, False)),  # a single window
    Grid((9, 12), (6, 6), (6, 6), (False, True), shift=(2, 4)),  # windows side by side that have been moved
    Union((Grid((9, 13), (5, 5), (4, 4), (False, False)), Grid((9, 13), (5, 5), (1, 2), (False, False), dilation=(2, 2)))),
)
WIDE = Grid((72, 80), (64, 64), (8, 8), (False, False))
"""Windows as large as those of Stable Diffusion. Up to 6 cover a cell, and only the corner of one covers a corner cell."""


def checks(fuser: Fuser) -> tuple[Callable[[Make], None], ...]:
    """The checks for a fuser. The ones whose failures explain others come first."""
    return (
        *((weights_cover,) if isinstance(fuser, WeightedFuser) else ()),
        fuse_of_crops_is_the_canvas,
        constant_stays_constant,
        *((linear,) if isinstance(fuser, WeightedFuser) else ()),
        wraps,
        keeps_dtype_and_device,
        half_precision_is_added_in_float32,
        leaves_windows_alone,
        same_for_any_number_of_ranks,
        pickles_and_reprs,
    )


def weights_cover(make: Make) -> None:
    """Weights are finite, one a cell for all windows or for each, and sum to more than 0 over every cell of a canvas."""
    fuser = make()
    assert isinstance(fuser, WeightedFuser)
    for grid in (*GRIDS, WIDE):
        weight, name = fuser.weight(grid, LEVEL), type(fuser).__name__
        demand(
            weight.shape in ((1, *grid.window), (len(grid), *grid.window)),
            f"{name}.weight returned shape {tuple(weight.shape)} for {len(grid)} windows of {grid.window}; it must return one "
            f"weight for each cell, {(1, *grid.window)} for all windows or {(len(grid), *grid.window)}",
        )
        total = torch.zeros(grid.size, dtype=torch.float32)
        for i in range(len(grid)):
            grid.put(total, i, weight[i % len(weight)].float())
        demand(
            bool(weight.isfinite().all() and (total > 0).all()),
            f"{name}.weight goes from {float(weight.min())} to {float(weight.max())} over windows of {grid.window}, and sums "
            f"to {float(total.min()):.2g} over a cell; the sum over each cell must be above 0 and finite, because a cell under "
            "only one window's corner would be 0 / 0: clamp weights to a small number",
        )


def fuse_of_crops_is_the_canvas(make: Make) -> None:
    """Windows that were cropped from a canvas are fused to that canvas."""
    fuser = make()
    for grid in GRIDS:
        canvas = _noise(3, *grid.size)
        fused = fuser.fuse(grid.crop(canvas), grid, LEVEL)
        demand(
            distance(fused, canvas) < 1e-5,
            f"{type(fuser).__name__}.fuse of the crops of a canvas {tuple(canvas.shape)} is not that canvas but one of shape "
            f"{tuple(fused.shape)}, {_off(fused, canvas)}, on {grid}: divide by the sum of weights over each cell, and put "
            "window i in its place by windows.put(canvas, i, window)",
        )


def constant_stays_constant(make: Make) -> None:
    """Windows with one number everywhere are fused to a canvas with that number everywhere."""
    fuser = make()
    for grid in GRIDS:
        for number in (0.0, -3.0, 1e4):
            canvas = torch.full((1, *grid.size), number)
            fused = fuser.fuse(grid.crop(canvas), grid, LEVEL)
            demand(
                distance(fused, canvas) < 1e-5,
                f"{type(fuser).__name__}.fuse of windows that are {number} everywhere is a canvas that is not "
                f"({_off(fused, canvas)}): the weights over a cell must sum to 1",
            )


def linear(make: Make) -> None:
    """A weighted fuser is linear in its windows. So fusing predictions before a step equals fusing after it."""
    fuser = make()
    for grid in GRIDS:
        one, other = _noise(2, len(grid), 1, *grid.window)
        fused = fuser.fuse(2 * one - 3 * other, grid, LEVEL)
        demand(
            distance(fused, 2 * fuser.fuse(one, grid, LEVEL) - 3 * fuser.fuse(other, grid, LEVEL)) < 1e-5,
            f"{type(fuser).__name__} is a WeightedFuser, but its fuse is not linear in the windows: define only `weight` and "
            "keep the `fuse` of WeightedFuser, or derive from Fuser",
        )


def wraps(make: Make) -> None:
    """All places of a ring are alike: a canvas rolled by a stride gives the rolled result."""
    fuser = make()
    for grid in (Grid((6, 12), (6, 6), (6, 3), (False, True)), Grid((8, 9), (4, 3), (2, 3), (True, True))):
        canvas, place = _noise(1, *grid.size), _noise(*grid.window, seed=1)
        shift = [stride if ring else 0 for stride, ring in zip(grid.stride, grid.wrap, strict=True)]

        def through_windows(canvas: Tensor, grid: Grid = grid, place: Tensor = place) -> Tensor:
            """Like a model: a cell depends on its neighbours and on its place in the window."""
            return fuser.fuse(torch.tanh(grid.crop(canvas) * place).cumsum(-1), grid, LEVEL)

        fused, expected = through_windows(canvas.roll(shift, (1, 2))), through_windows(canvas).roll(shift, (1, 2))
        demand(
            distance(fused, expected) < 1e-5,
            f"{type(fuser).__name__}.fuse treats the join of a ring differently from other places ({_off(fused, expected)} on "
            f"{grid}): what a window counts for must not depend on its number or its place on the canvas",
        )


def keeps_dtype_and_device(make: Make) -> None:
    """The canvas has the device and dtype of the windows; half precision becomes float32."""
    fuser, grid = make(), GRIDS[0]
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        fused, expected = (
            fuser.fuse(grid.crop(_noise(1, *grid.size).to(dtype)), grid, LEVEL),
            torch.promote_types(dtype, torch.float32),
        )
        demand(
            (fused.dtype, fused.device) == (expected, torch.device("cpu")),
            f"{type(fuser).__name__}.fuse returned {fused.dtype} on {fused.device} for windows in {dtype} on the CPU; expected "
            f"{expected} there: make tensors with windows.new_zeros, in torch.promote_types(windows.dtype, torch.float32)",
        )


def half_precision_is_added_in_float32(make: Make) -> None:
    """Windows in half precision are added in float32, and no cell is 0 / 0."""
    fuser, grid = make(), WIDE
    for dtype in (torch.float16, torch.bfloat16):
        windows = (_noise(len(grid), 1, *grid.window) + 100).to(dtype)
        expected, fused = fuser.fuse(windows.double(), grid, LEVEL), fuser.fuse(windows, grid, LEVEL)
        demand(
            distance(fused, expected) < 1e-5,
            f"{type(fuser).__name__}.fuse of windows in {dtype} differs from float64 ({_off(fused, expected)}): convert "
            "windows and weights to torch.promote_types(windows.dtype, torch.float32) first",
        )


def leaves_windows_alone(make: Make) -> None:
    """The fuser does not write to its windows."""
    fuser, grid = make(), GRIDS[0]
    windows = _noise(len(grid), 2, *grid.window)
    before = contents(windows)
    fuser.fuse(windows, grid, LEVEL)
    demand(unchanged(before, windows), f"{type(fuser).__name__}.fuse wrote to its windows: work on a copy")


def same_for_any_number_of_ranks(make: Make) -> None:
    """A run whose windows move has the same bits on one, two and three ranks, and on every rank."""

    def canvas(runtime: Runtime) -> Tensor:
        run = toy_run(fuser=make(), layout=Drift(), runtime=runtime)
        while not run.done:
            run.step()
        return run.canvas

    same_on_ranks(
        canvas,
        2,
        ": `fuse` gets the same windows on every rank and "
        "must return the same canvas; it may not draw noise or remember anything",
    )


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _off(actual: Tensor, expected: Tensor) -> str:
    """The distance, in words."""
    return f"off by {distance(actual, expected):.2g} of the largest magnitude"
