"""Canvases and pictures that are enlarged."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from panokit import enlarged


@given(axes=st.integers(1, 3), up=st.integers(2, 4), down=st.integers(1, 3), base=st.integers(2, 4), turn=st.integers(0, 3))
def test_all_places_of_a_ring_are_alike(axes: int, up: int, down: int, base: int, turn: int) -> None:
    generator = torch.Generator().manual_seed(0)
    small = torch.randn((2, *(base * down,) * axes), dtype=torch.float64, generator=generator)
    large = enlarged(small, (True,) * axes, up, down)
    assert large.shape == (2, *(base * up,) * axes)
    for axis in range(-axes, 0):
        turned = enlarged(small.roll(turn * down, axis), (True,) * axes, up, down)
        torch.testing.assert_close(turned, large.roll(turn * up, axis), rtol=0, atol=1e-12)


@given(axes=st.integers(1, 3), up=st.integers(2, 4))
def test_what_is_constant_stays_so(axes: int, up: int) -> None:
    same = torch.full((1, *(3,) * axes), 0.7, dtype=torch.float64)
    torch.testing.assert_close(enlarged(same, (False,) * axes, up), same.new_full((1, *(3 * up,) * axes), 0.7))


def test_along_two_axes_it_is_bicubic() -> None:
    x = torch.randn(3, 6, 4)
    bicubic = torch.nn.functional.interpolate(x[None], scale_factor=3, mode="bicubic")[0]
    torch.testing.assert_close(enlarged(x, (False, False), 3), bicubic)
    bicubic = torch.nn.functional.interpolate(x[None], size=(9, 6), mode="bicubic")[0]
    torch.testing.assert_close(enlarged(x, (False, False), 3, 2), bicubic)
