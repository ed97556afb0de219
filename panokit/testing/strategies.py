"""Strategies of hypothesis for tests of geometry."""

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from panokit.grid import Grid

Draw = Callable[[st.SearchStrategy[Any]], Any]


@st.composite
def grids(draw: Draw, axes: tuple[int, int] = (1, 3), *, wrap: bool | None = None, divisible: bool = False) -> Grid:
    """Grids with any window, stride and size.

    Args:
        draw: provided by hypothesis.
        axes: the smallest and the largest number of axes.
        wrap: whether all axes are rings; None draws it for each axis.
        divisible: whether the stride divides the size.
    """
    sizes, windows, strides = [], [], []
    rings = draw(st.lists(st.booleans() if wrap is None else st.just(wrap), min_size=axes[0], max_size=axes[1]))
    for _ in rings:
        window = draw(st.integers(1, 5))
        stride = draw(st.integers(1, window))
        least = -(-window // stride) * stride if divisible else window
        sizes.append(least + draw(st.integers(0, 6)) * (stride if divisible else 1))
        windows.append(window)
        strides.append(stride)
    return Grid(tuple(sizes), tuple(windows), tuple(strides), tuple(rings))
