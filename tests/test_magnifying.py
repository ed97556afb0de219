"""The canvas of a larger picture: in tiles it is that of one piece, as far as decoder and encoder are local."""

import pytest
import torch
from torch import nn

from panokit import Grid, Runtime, magnifying
from panokit.enlarging import enlarged
from panokit.magnifying import magnified
from panokit.testing.toys import ToyCodec


@pytest.mark.parametrize("wrap", [(False, False), (False, True), (True, True)])
@pytest.mark.parametrize("factor", [2, 3])
def test_tiles_make_the_canvas_of_one_piece(
    wrap: tuple[bool, bool], factor: int, cpu: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = torch.randn(1, 4, 6, 12, generator=torch.Generator().manual_seed(0))
    canvas = nn.functional.interpolate(noise, size=(40, 70), mode="bicubic")[0]
    windows = Grid((40, 70), (8, 8), (4, 4), wrap)
    whole = magnified(ToyCodec(), canvas, windows, cpu, factor)
    assert whole.shape == (4, 40 * factor, 70 * factor)
    monkeypatch.setattr(magnifying, "WHOLE", 1000)
    monkeypatch.setattr(magnifying, "TILE", 96)
    monkeypatch.setattr(magnifying, "SHARED", 36)
    assert len(magnifying._tiles((40, 70), wrap, ToyCodec(), factor)) > 3
    tiled = magnified(ToyCodec(), canvas, windows, cpu, factor)
    torch.testing.assert_close(tiled, whole, atol=1e-4, rtol=1e-4)


def test_where_the_canvas_is_the_picture_it_is_enlarged(cpu: Runtime) -> None:
    canvas = torch.rand(3, 8, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        magnified(None, canvas, Grid((8, 12), (4, 4), (2, 2), (False, True)), cpu, 2), enlarged(canvas, (False, True), 2)
    )
