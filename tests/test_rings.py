"""Rings: convolutions that go around, windows of which one suffices, and what a backward pass computes again."""

import threading
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from panokit import Grid
from panokit.rings import Ring, around, circular, kept
from panokit.union import Union

Wrap = tuple[bool, bool]
wraps = st.tuples(st.booleans(), st.booleans()).filter(any)


def noise(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rolled(x: Tensor, by: int, wrap: Wrap) -> Tensor:
    return x.roll([by * ring for ring in wrap], (-2, -1))


@settings(max_examples=60)
@given(
    wrap=wraps,
    cells=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.sampled_from([1, 2]),
    dilation=st.sampled_from([1, 2]),
    film=st.booleans(),
    same=st.booleans(),
)
def test_convolutions_go_around(
    wrap: Wrap, cells: tuple[int, int], kernel: int, stride: int, dilation: int, film: bool, same: bool
) -> None:
    """Rolled cells become the rolled result, with more taps than cells too. Other axes are padded as without a ring."""
    height, width = (4 * count for count in cells)
    padding: Any = "same" if same and stride == 1 else dilation * (kernel // 2)
    made: Any = nn.Conv3d if film else nn.Conv2d
    layer = made(2, 3, kernel, stride, padding, dilation).double().requires_grad_(False)
    x = noise(1, 2, *(4,) * film, height, width)
    with circular(Ring.along((height, width), wrap)):
        once, again = layer(x), layer(rolled(x, 2, wrap))
    torch.testing.assert_close(again, rolled(once, 2 // stride, wrap), rtol=0, atol=1e-12)
    assert once.shape == layer(x).shape
    inner = [slice(dilation * (kernel // 2) * ring, -dilation * (kernel // 2) * ring or None) for ring in wrap]
    if stride == 1 and all(side > 2 * dilation * (kernel // 2) for side in (height, width)):
        torch.testing.assert_close(once[(..., *inner)], layer(x)[(..., *inner)], rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["constant", "replicate", "reflect"])
def test_padding_goes_around_one_axis_and_not_the_other(mode: str) -> None:
    x = noise(1, 1, 4, 8)
    with circular(Ring.along((4, 8), (False, True))):
        padded = functional.pad(x, (1, 2, 0, 1), mode=mode)
    around = torch.cat([x[..., -1:], x, x[..., :2]], -1)
    assert torch.equal(padded, functional.pad(around, (0, 0, 0, 1), mode=mode))


def test_padding_of_other_things_stays() -> None:
    """Cuts, other numbers than zero, rows of tokens, and pictures of another shape."""
    ring = Ring.along((4, 8), (True, True))
    cases: list[tuple[Tensor, list[int], float]] = [
        (noise(1, 1, 4, 8), [-1, -1], 0.0),
        (noise(1, 1, 4, 8), [1, 1], 2.0),
        (noise(2, 4, 8), [1, 1], 0.0),
        (noise(1, 2, 6, 8), [1, 1, 1, 1], 0.0),
    ]
    for x, pads, value in cases:
        plain = functional.pad(x, pads, value=value)
        with circular(ring):
            assert torch.equal(functional.pad(x, pads, value=value), plain)
    layer = nn.Conv2d(2, 2, 3, padding=1).double()
    plain = layer(noise(1, 2, 6, 8))
    with circular(ring):
        assert torch.equal(layer(noise(1, 2, 6, 8)), plain)


def test_a_ring_is_an_axis_as_long_as_a_window() -> None:
    assert Ring.of(Grid((8, 16), (8, 16), (4, 16), (False, True))) == Ring((8, 16), (False, True))
    assert Ring.of(Grid((8, 16), (8, 16), (4, 4), (True, True), once=True)) == Ring((8, 16), (True, True))
    assert Ring.of(Grid((8, 16), (8, 16), (4, 4), (False, False))) is None
    assert Ring.of(Grid((8, 32), (8, 16), (4, 4), (False, True), once=True)) is None
    assert Ring.of(Grid((8, 16), (8, 16), (4, 4), (False, True))) is None  # two windows go around it
    assert Ring.of(Grid((16, 8), (8, 8), (4, 4), (False, True), once=True)) == Ring((8, 8), (False, True))
    assert Ring.of(Grid((3, 8, 16), (3, 8, 16), (3, 4, 4), (True, False, True), once=True)) == Ring((8, 16), (False, True))
    assert Ring.of(Grid((3, 8, 16), (3, 8, 16), (3, 4, 4), (True, False, False))) is None


def test_one_window_suffices_around_a_ring_of_its_length() -> None:
    """On every canvas of the layout; longer rings, and other axes, keep their windows."""
    windows = Grid((16, 32), (8, 16), (4, 8), (True, True))
    once = windows.once_around()
    assert once.origins == windows.origins
    assert len(windows.scaled((1, 2))) == 8
    assert once.scaled((1, 2)).origins == ((0, 0), (4, 0), (8, 0), (12, 0))
    assert once.scaled(2).coarsened(2).refined(2) == once.scaled(2)
    assert len(once.scaled(2)) == 1
    assert len(Grid((8, 16), (8, 16), (4, 8), (False, False)).once_around()) == 1
    film = Grid((3, 8, 16), (3, 8, 16), (1, 4, 8), (True, True, True)).once_around()
    assert film.origins == ((0, 0, 0), (1, 0, 0), (2, 0, 0))  # a loop of frames is no ring of cells
    assert len(Union((once, windows)).once_around().scaled(2)) == 2


def test_a_ring_is_that_of_one_thread_and_ends_with_an_error() -> None:
    ring, others = Ring((4, 8), (False, True)), []
    with circular(ring):
        thread = threading.Thread(target=lambda: others.append(around()))
        thread.start()
        thread.join()
        assert around() == ring
    with pytest.raises(RuntimeError), circular(ring):
        functional.conv2d(torch.zeros(1, 1, 4, 8), torch.zeros(1, 2, 3, 3))
    assert around() is None
    assert others == [None]


def test_a_second_computation_of_checkpoints_sees_the_ring() -> None:
    """The backward pass comes after the ring, and in another thread."""
    layer = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.SiLU(), nn.Conv2d(1, 1, 3, padding=1)).double()
    x, results = noise(1, 1, 4, 8).requires_grad_(), []
    for run in (layer, lambda x: checkpoint(kept(layer), x, use_reentrant=False)):
        with circular(Ring.along((4, 8), (False, True))):
            y = run(x).square().sum()
        thread = threading.Thread(target=lambda y=y: results.append(torch.autograd.grad(y, x)[0]))
        thread.start()
        thread.join()
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-12)
    assert kept(layer) is layer
