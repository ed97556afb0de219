"""What hypothesis draws tests of geometry from."""

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from panokit.grid import Grid

Draw = Callable[[st.SearchStrategy[Any]], Any]


@st.composite
def grids(draw: Draw, axes: tuple[int, int] = (1, 3), *, wrap: bool | None = None, divisible: bool = False) -> Grid:
    """Grids of any window, stride and size.

    Args:
        draw: hypothesis's own.
        axes: the fewest and the most axes.
        wrap: of every axis; drawn for each unless given.
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
