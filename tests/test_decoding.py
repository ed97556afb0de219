"""Decoding in tiles: the picture of one piece, as far as the decoder is local, with no seam that is not in it."""

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from panokit import Runtime, decoding
from panokit.decoding import decode
from panokit.denoiser import Codec


class Blurry(Codec):
    """A decoder that sees two cells around, and zeros beyond the edge."""

    factor = 2

    def modules(self) -> list[nn.Module]:
        return []

    def encode(self, images: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n c h w"]:
        return nn.functional.avg_pool2d(images, 2)

    def decode(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 H W"]:
        blurred = nn.functional.avg_pool2d(latents, 5, stride=1, padding=2)
        return nn.functional.interpolate(blurred, scale_factor=2)


class Patched(Blurry):
    """A codec whose latents have another scale in each cell of a patch, as those of FLUX.2 have."""

    multiple = 2

    def decode(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 H W"]:
        patch = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).repeat(*(cells // 2 for cells in latents.shape[-2:]))
        return super().decode(latents * patch)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, cells in {"WHOLE": 64, "TILE": 24, "OVERLAP": 12, "PAD": 4}.items():
        monkeypatch.setattr(decoding, name, cells)


@pytest.mark.parametrize("wrap", [(False, False), (False, True), (True, True)])
@pytest.mark.parametrize("size", [(24, 96), (40, 61), (10, 50)])
def test_tiles_make_the_picture_of_one_piece(
    small_tiles: None, cpu: Runtime, wrap: tuple[bool, bool], size: tuple[int, int]
) -> None:
    canvas = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    tiled = decode(Blurry(), canvas, wrap, cpu)
    whole = decoding._whole(Blurry(), canvas, wrap)
    assert tiled.shape == whole.shape
    torch.testing.assert_close(tiled, whole, atol=1e-4, rtol=0)


def test_tiles_go_round_the_join(small_tiles: None, cpu: Runtime) -> None:
    """Rolled by whole tiles, the canvas has the same picture, rolled."""
    canvas = torch.rand(3, 24, 96, generator=torch.Generator().manual_seed(0))
    plain, rolled = (decode(Blurry(), each, (False, True), cpu) for each in (canvas, canvas.roll(12, -1)))
    torch.testing.assert_close(plain.roll(24, -1), rolled)


def test_small_canvases_are_decoded_in_one_piece(cpu: Runtime) -> None:
    seen: list[tuple[int, ...]] = []

    class Notes(Blurry):
        def decode(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 H W"]:
            seen.append(tuple(latents.shape))
            return super().decode(latents)

    decode(Notes(), torch.rand(3, 128, 256), (False, False), cpu)
    assert seen == [(1, 3, 128, 256)]
    seen.clear()
    decode(Notes(), torch.rand(3, 128, 264), (False, False), cpu)
    assert seen == [(1, 3, 128, 104)] * 3


@pytest.mark.parametrize("wrap", [(False, False), (False, True)])
@pytest.mark.parametrize("size", [(24, 96), (40, 62), (26, 90)])
def test_tiles_begin_where_patches_begin(
    small_tiles: None, cpu: Runtime, wrap: tuple[bool, bool], size: tuple[int, int]
) -> None:
    canvas = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    whole = decoding._whole(Patched(), canvas, wrap)
    torch.testing.assert_close(decode(Patched(), canvas, wrap, cpu), whole, rtol=1e-4, atol=1e-4)


def test_tiles_of_larger_cells_have_as_many_pixels() -> None:
    codec = Blurry()
    codec.factor = 32
    tiles = decoding._tiles((96, 96), (False, False), codec)
    assert max(tiles.window) * codec.factor <= decoding.TILE * decoding.FACTOR
    assert len(tiles) > 1
