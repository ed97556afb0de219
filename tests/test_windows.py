"""Laws of windows in any layout: lattices with shift and dilation, unions of them, and drifting ones."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from panokit import Grid, Level, SettingError, Union, Windows
from panokit.testing.strategies import grids
from panokit.testing.toys import Drift
from panokit.windows import divided, per_axis, require_cover

# beartype looks at items of a container at random, which hypothesis warns of.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
modest = settings(max_examples=60, deadline=None)
FLAT, RING = (False,), (True,)


@st.composite
def lattices(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Grid:
    """Grids that are shifted, dilated or both, on one or two axes."""
    axes, fields = draw(st.integers(1, 2)), []
    for _ in range(axes):
        window, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 3))
        span = dilation * (window - 1) + 1
        stride = draw(st.integers(1, span))
        fields.append((span + draw(st.integers(0, 5)), window, stride, draw(st.booleans()), draw(st.integers(0, 5)), dilation))
    return Grid(*map(tuple, zip(*fields, strict=True)))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@modest
@given(lattices())
def test_crop_takes_the_cells_that_cells_names(grid: Grid) -> None:
    canvas = noise(*grid.size)
    for crop, cells in zip(grid.crop(canvas), grid.cells(), strict=True):
        where = tuple(cells[axis] % size for axis, size in enumerate(grid.size))
        assert torch.equal(crop, canvas[where])


@modest
@given(lattices())
def test_the_cells_of_a_window_are_a_dilation_apart_from_its_origin(grid: Grid) -> None:
    for origin, cells in zip(grid.origins, grid.cells(), strict=True):
        assert tuple(cells.flatten(1)[:, 0].tolist()) == origin
        for axis, step in enumerate(grid.dilation or ()):
            assert (cells[axis].diff(dim=axis) == step).all()


@modest
@given(lattices())
def test_put_is_the_adjoint_of_crop(grid: Grid) -> None:
    canvas, rows, weight = noise(2, *grid.size), noise(len(grid), 2, *grid.window, seed=1), noise(*grid.window, seed=2)
    added = torch.zeros_like(canvas)
    for i, row in enumerate(rows):
        grid.put(added, i, row, weight)
    torch.testing.assert_close((grid.crop(canvas) * weight * rows).sum(), (canvas * added).sum())


@modest
@given(grids((1, 2)), st.data())
def test_shifted_windows_still_cover(grid: Grid, data: st.DataObject) -> None:
    shift = tuple(data.draw(st.integers(0, 6)) for _ in grid.size)
    moved = Grid(grid.size, grid.window, grid.stride, grid.wrap, shift)
    require_cover(moved)
    if all(grid.wrap):
        canvas = noise(1, *grid.size)
        rolled = canvas.roll([*shift], list(range(1, canvas.ndim)))
        assert torch.equal(moved.crop(canvas), grid.crop(rolled))


def test_windows_that_leave_a_flat_canvas_are_moved_back_to_its_border() -> None:
    assert Grid((16,), (4,), (4,), FLAT, (1,)).origins == ((0,), (3,), (7,), (11,), (12,))
    assert Grid((16,), (4,), (4,), RING, (1,)).origins == ((15,), (3,), (7,), (11,))


def test_a_union_numbers_its_windows_through() -> None:
    local, dilated = Grid((9,), (4,), (3,), FLAT), Grid((9,), (4,), (1,), FLAT, dilation=(2,))
    both, canvas = Union((local, dilated)), noise(2, 9)
    assert len(both) == len(local) + len(dilated)
    assert torch.equal(both.crop(canvas), torch.cat([local.crop(canvas), dilated.crop(canvas)]))
    index = [4, 0, 1, 3]
    assert torch.equal(both.crop(canvas, index), both.crop(canvas)[index])
    assert torch.equal(both.cells(index), both.cells()[index])
    assert [both.centre(i) for i in range(len(both))] == [part.centre(i) for part in both.parts for i in range(len(part))]
    added = torch.zeros(9)
    for i in range(len(both)):
        both.put(added, i, torch.ones(4))
    assert added.sum() == 4 * len(both)


def test_a_union_changes_all_its_parts() -> None:
    drift, local = (layout.begin((16,), (4,), (2,), RING, 0) for layout in (Drift(2), Drift()))
    both, level = Union((drift, local)), Level(3, 500, 0.8, 0.6, 3, 4)
    assert both.at(level) == Union((drift.at(level), local.at(level)))
    assert both.on((32,)).size == both.refined(2).size == (32,)
    assert both.refined(2).coarsened(2) == both
    assert both.scaled(2).parts[0] == drift.scaled(2)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((), "a union of windows none: it must have parts with the same canvas"),
        (
            (Grid((8,), (4,), (2,), FLAT), Grid((9,), (4,), (2,), FLAT)),
            "windows (4,) on (8,), (4,) on (9,): it must have parts",
        ),
    ],
)
def test_a_union_of_other_canvases_is_refused(parts: tuple[Windows, ...], message: str) -> None:
    with pytest.raises(SettingError, match=re.escape(message)):
        Union(parts)


def test_factors_may_differ_between_axes() -> None:
    """A time axis keeps its cells while height and width are halved."""
    film = Grid((5, 8, 16), (3, 4, 4), (2, 2, 2), (False, False, True))
    low = film.coarsened((1, 2, 2))
    assert (low.size, low.window, low.stride) == ((5, 4, 8), (3, 2, 2), (2, 1, 1))
    assert low.refined((1, 2, 2)) == film
    assert film.scaled((1, 2, 2)).size == (5, 4, 8)
    assert per_axis((1, 2), (8, 8)) == (1, 2)
    with pytest.raises(SettingError, match=r"a factor of \(2, 2\) cannot scale 3 axes"):
        film.coarsened((2, 2))
    with pytest.raises(SettingError, match="the canvas has 9 cells along axis 1, which 2 does not divide"):
        divided((9, 9), (3, 2), "the canvas")


def test_dilated_windows_are_neither_coarsened_nor_refined() -> None:
    dilated = Grid((8,), (4,), (1,), FLAT, dilation=(2,))
    for method in (dilated.coarsened, dilated.refined):
        with pytest.raises(SettingError, match="dilated windows cannot be"):
            method(2)


def test_the_nearest_window_is_found_across_the_join_of_a_ring() -> None:
    flat, ring = (Grid((16,), (4,), (4,), wrap) for wrap in (FLAT, RING))
    assert [flat.nearest(x) for x in (0.0, 0.3, 0.99)] == [0, 1, 3]
    assert Grid((16,), (4,), (4,), RING, (2,)).nearest(0.99) == 0  # its centre is the join
    assert ring.nearest(0.5) == 2  # two are as near: the last one
    assert Grid((128, 512), (64, 64), (32, 32), (False, False)).nearest(0.5, 0.5) == 22  # the middle of 3 x 15


def test_uncovered_cells_are_counted_and_named() -> None:
    with pytest.raises(
        SettingError, match=r"the windows leave 4 of 9 cells uncovered, the first at \(1,\): .*a smaller stride"
    ):
        require_cover(Grid((9,), (4,), (2,), FLAT, dilation=(2,)))
