"""Geometry: where windows lie, for any size, window, stride and wrap, on one to three axes."""

import re
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from panokit import Grid, SettingError
from panokit.testing.strategies import grids

# beartype looks at items of a container at random, which hypothesis warns of.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
modest = settings(max_examples=60, deadline=None)


def cells(grid: Grid, i: int) -> set[tuple[int, ...]]:
    """The cells of window `i`, from its origin alone."""
    spans = zip(grid.origins[i], grid.window, grid.size, strict=True)
    return set(product(*([(o + k) % size for k in range(window)] for o, window, size in spans)))


def numbered(size: tuple[int, ...]) -> Tensor:
    """A canvas of two channels, every cell of which has a number of its own."""
    return torch.arange(2 * torch.Size(size).numel()).view(2, *size)


@modest
@given(grids())
def test_every_cell_is_covered(grid: Grid) -> None:
    covered = set().union(*(cells(grid, i) for i in range(len(grid))))
    assert covered == set(product(*map(range, grid.size)))


@modest
@given(grids())
def test_every_window_is_whole(grid: Grid) -> None:
    assert all(len(cells(grid, i)) == torch.Size(grid.window).numel() for i in range(len(grid)))


@modest
@given(grids())
def test_origins_are_in_row_major_order_and_none_comes_twice(grid: Grid) -> None:
    assert list(grid.origins) == sorted(set(grid.origins))
    assert grid.origins[0] == (0,) * len(grid.size)


@modest
@given(grids((1, 1), wrap=False))
def test_windows_are_a_stride_apart_and_the_last_is_clamped_to_the_border(grid: Grid) -> None:
    (size,), (window,), (stride,) = grid.size, grid.window, grid.stride
    starts = [start for (start,) in grid.origins]
    gaps = [after - before for before, after in pairwise(starts)]
    assert starts[-1] == size - window
    assert all(gap == stride for gap in gaps[:-1])
    assert all(0 < gap <= stride for gap in gaps)


@modest
@given(grids((1, 1), wrap=True))
def test_windows_of_a_ring_go_round_its_join(grid: Grid) -> None:
    (size,), (stride,) = grid.size, grid.stride
    starts = [start for (start,) in grid.origins]
    assert starts == list(range(0, size, stride))
    gaps = [after - before for before, after in pairwise([*starts, size])]
    assert all(gap == stride for gap in gaps[:-1])
    assert gaps[-1] <= stride


def test_a_ring_of_one_window_still_has_windows_across_its_join() -> None:
    grid = Grid((8,), (8,), (4,), (True,))
    assert grid.origins == ((0,), (4,))
    assert grid.crop(torch.arange(8.0), [1]).tolist() == [[4, 5, 6, 7, 0, 1, 2, 3]]


@modest
@given(grids())
def test_crop_reads_the_cells_of_each_window(grid: Grid) -> None:
    canvas = numbered(grid.size)
    windows = grid.crop(canvas)
    assert windows.shape == (len(grid), 2, *grid.window)
    for origin, window in zip(grid.origins, windows, strict=True):
        moved = canvas.roll([-o for o in origin], list(range(1, canvas.ndim)))
        assert torch.equal(window, moved[(..., *map(slice, grid.window))])


@modest
@given(grids(), st.data())
def test_crop_takes_the_windows_asked_for_in_that_order(grid: Grid, data: st.DataObject) -> None:
    index = data.draw(st.lists(st.integers(0, len(grid) - 1), min_size=1, max_size=4))
    canvas = numbered(grid.size)
    assert torch.equal(grid.crop(canvas, index), grid.crop(canvas)[index])


def test_windows_are_copies() -> None:
    canvas = torch.zeros(1, 6)
    Grid((6,), (6,), (3,), (False,)).crop(canvas).add_(1)
    assert canvas.sum() == 0


@modest
@given(grids())
def test_put_adds_a_window_to_its_cells_and_to_no_other(grid: Grid) -> None:
    for i in {0, len(grid) // 2, len(grid) - 1}:
        canvas, window = numbered(grid.size), 1 + torch.arange(2 * torch.Size(grid.window).numel()).view(2, *grid.window)
        before = canvas.clone()
        grid.put(canvas, i, window)
        assert torch.equal(grid.crop(canvas, [i]), grid.crop(before, [i]) + window)
        assert (canvas - before).sum() == window.sum()


@pytest.mark.parametrize("wrap", [False, True])
def test_a_canvas_must_have_the_size_of_its_grid(wrap: bool) -> None:
    with pytest.raises(SettingError, match=re.escape("a canvas of shape (1, 9) does not fit windows on a canvas of (8,)")):
        Grid((8,), (4,), (2,), (wrap,)).crop(torch.zeros(1, 9))


@pytest.mark.parametrize(("wrap", "count"), [(False, 45), (True, 4 * 16)])
def test_the_usual_panorama_has_45_windows(wrap: bool, count: int) -> None:
    assert len(Grid((128, 512), (64, 64), (32, 32), (wrap, wrap))) == count


@modest
@given(grids())
def test_centres_are_relative_and_in_the_middle(grid: Grid) -> None:
    for i in range(len(grid)):
        for centre, origin, window, size in zip(grid.centre(i), grid.origins[i], grid.window, grid.size, strict=True):
            assert 0 <= centre < 1
            off = (centre * size - origin - window / 2) % size
            assert min(off, size - off) < 1e-9


@modest
@given(grids(), st.integers(1, 3))
def test_scaled_keeps_windows_and_stride_on_a_smaller_canvas(grid: Grid, factor: int) -> None:
    large = Grid(tuple(n * factor for n in grid.size), grid.window, grid.stride, grid.wrap)
    assert large.scaled(factor) == grid


@modest
@given(grids(), st.integers(1, 3))
def test_coarse_windows_lie_in_step_with_fine_ones(grid: Grid, factor: int) -> None:
    axes = (tuple(n * factor for n in cells) for cells in (grid.size, grid.window, grid.stride))
    fine = Grid(*axes, grid.wrap)
    assert fine.coarsened(factor) == grid
    assert [tuple(o // factor for o in origin) for origin in fine.origins] == list(grid.origins)


def offered(error: SettingError) -> list[int]:
    """The sizes that an error says would work."""
    return [int(n) for n in re.findall(r"\d+", re.split(r"the nearest that works is|make it", str(error))[-1])]


@modest
@given(grids((1, 1)), st.integers(2, 3))
def test_scaled_offers_the_nearest_sizes_that_work(grid: Grid, factor: int) -> None:
    size, window = grid.size[0], grid.window[0]
    works = [n for n in range(1, 60) if n % factor == 0 and n // factor >= window]
    if size in works:
        assert grid.scaled(factor).size == (size // factor,)
        return
    with pytest.raises(SettingError) as caught:
        grid.scaled(factor)
    below, above = [n for n in works if n < size], [n for n in works if n > size]
    assert offered(caught.value) == [*below[-1:], *above[:1]]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (
            Grid((33,), (8,), (4,), (False,)),
            "the canvas has 33 cells along axis 0, which 2 does not divide: the nearest that works is 32 or 34",
        ),
        (
            Grid((32,), (9,), (4,), (False,)),
            "the window has 9 cells along axis 0, which 2 does not divide: the nearest that works is 8 or 10",
        ),
        (
            Grid((32, 32), (8, 8), (4, 3), (False, True)),
            "the stride has 3 cells along axis 1, which 2 does not divide: the nearest that works is 2 or 4",
        ),
        (
            Grid((32,), (8,), (1,), (False,)),
            "the stride has 1 cells along axis 0, which 2 does not divide: the nearest that works is 2",
        ),
    ],
)
def test_coarsened_says_what_does_not_divide_and_what_would(grid: Grid, message: str) -> None:
    with pytest.raises(SettingError, match=f"^{re.escape(message)}$"):
        grid.coarsened(2)


def test_scaled_says_which_axis_no_longer_holds_a_window() -> None:
    message = "a canvas of 96 cells along axis 1 does not hold a window of 64 at 1/2 of its size: make it 128 cells or larger"
    with pytest.raises(SettingError, match=f"^{re.escape(message)}$"):
        Grid((128, 96), (64, 64), (32, 32), (False, False)).scaled(2)


@pytest.mark.parametrize("factor", [0, -1])
def test_a_factor_is_a_whole_number_from_1_up(factor: int) -> None:
    grid = Grid((8,), (4,), (2,), (False,))
    for method in (grid.scaled, grid.coarsened):
        with pytest.raises(SettingError, match="a whole number from 1 up"):
            method(factor)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (((8,), (9,), (4,), (False,)), "a canvas holds at least one window; make it 9 or larger"),
        (((8, 7), (8, 8), (4, 4), (False, True)), "7 cells along axis 1 and a window has 8"),
        (
            ((8,), (4,), (5,), (False,)),
            "stride 5 along axis 0 leaves gaps or goes nowhere: it must be from 1 to the window's 4",
        ),
        (((8,), (4,), (0,), (True,)), "it must be from 1 to the window's 4"),
        (((8,), (0,), (0,), (True,)), "must be"),
        (((8, 8), (4,), (2,), (False,)), "must have the same number of axes, one or more"),
        (((), (), (), ()), "must have the same number of axes, one or more"),
    ],
)
def test_a_grid_that_cannot_cover_says_why(axes: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(SettingError, match=re.escape(message)):
        Grid(*axes)
