"""Decoding in tiles: the picture of the whole canvas, exactly where that can be stated, and with no seam that is not in it."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor, nn

from panokit import Runtime, Sampler, decoding
from panokit.backbones.diffusers.codec import VAECodec
from panokit.decoding import decode, strips
from panokit.denoiser import Codec, Stage
from panokit.errors import FallbackWarning, OutOfMemoryError, SettingError, ShardingWarning
from panokit.testing.families import codecs
from panokit.testing.memory import peak
from panokit.testing.ranks import same_on_ranks
from panokit.testing.tiny import tiny_model
from panokit.tiles import sample, shares

Wrap = tuple[bool, bool]


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


@dataclass
class Staged(Codec):
    """A decoder in stages, of convolutions, group norms and attention in float64. `wrap` makes it that of a ring."""

    norms: bool = False
    attention: bool = False
    wrap: Wrap = (False, False)
    fits: int = 1 << 60
    """The most cells that its last stage holds."""
    factor = 4

    def __post_init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.weights = [torch.randn(o, i, 3, 3, generator=draw).double() / 4 for o, i in ((6, 3), (6, 6), (6, 6), (3, 6))]
        self.failed = 0

    def modules(self) -> list[nn.Module]:
        return []

    def encode(self, images: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n c h w"]:
        return nn.functional.avg_pool2d(images, self.factor)

    def decode(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 H W"]:
        for stage in self.stages():
            latents = stage.run(latents)
        return latents

    def stages(self) -> Sequence[Stage]:
        return (
            Stage(lambda x: self._convolved(x, 0), 1),
            *((Stage(self._attended, attends=True),) * self.attention),
            Stage(lambda x: x + self._convolved(x, 1), 1),
            Stage(lambda x: self._convolved(x.repeat_interleave(2, -1).repeat_interleave(2, -2), 2), 1, 2),
            Stage(self._last, 1, 2),
        )

    def _last(self, x: Tensor) -> Tensor:
        if x.shape[-1] * x.shape[-2] > self.fits:
            self.failed += 1
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return self._convolved(x.repeat_interleave(2, -1).repeat_interleave(2, -2), 3)

    def _convolved(self, x: Tensor, k: int) -> Tensor:
        if self.norms:
            x = nn.functional.group_norm(x, 3, torch.ones(x.shape[1]).double() * 1.5)
        for axis, ring in enumerate(self.wrap):
            pads = (0, 0, 1, 1) if axis == 0 else (1, 1, 0, 0)
            x = nn.functional.pad(x, pads, mode="circular" if ring else "constant")
        return nn.functional.conv2d(x.sin(), self.weights[k])

    def _attended(self, x: Tensor) -> Tensor:
        cells = x.flatten(2).transpose(1, 2)[:, None]
        return x + nn.functional.scaled_dot_product_attention(cells, cells, cells)[:, 0].transpose(1, 2).view_as(x)


def tiled(tile: int | None = None, overlap: int | None = None) -> Runtime:
    return Runtime(accelerator="cpu", tile=tile, tile_overlap=overlap)


def latents(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, cells in {"WHOLE": 64, "TILE": 12, "APART": 12, "OVERLAP": 6, "PAD": 4}.items():
        monkeypatch.setattr(decoding, name, cells)


# --- exactly the whole picture --------------------------------------------------------------------------------


@settings(max_examples=20)
@given(
    height=st.integers(2, 24),
    width=st.integers(2, 40),
    wrap=st.tuples(st.booleans(), st.booleans()),
    tile=st.integers(8, 24),
    norms=st.booleans(),
    attention=st.booleans(),
    coarse=st.booleans(),
)
def test_tiles_are_the_picture_of_the_whole_canvas(
    height: int, width: int, wrap: Wrap, tile: int, norms: bool, attention: bool, coarse: bool
) -> None:
    """With statistics of the whole canvas, on a plane, a ring and a torus."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "FEATURES", 1 << 18 if coarse else 0)
        patch.setattr(decoding, "SAMPLE", 1 << 20)
        canvas = latents(3, height, width).double()
        codec, runtime = Staged(norms, attention), tiled(4 * tile)
        tiles = decoding._Tiles(codec, canvas, wrap, runtime, decoding.Tiling.of(codec, runtime, (height, width)))
        picture = torch.cat(list(tiles.strips()), 1)
        # The reference is computed on the ring itself: its convolutions go round.
        expected = Staged(norms, attention, wrap).decode(canvas[None])[0]
        torch.testing.assert_close(picture, expected, rtol=0, atol=1e-11)


FAMILIES: dict[str, Any] = {
    "kl": codecs.kl,
    "kl 8": lambda: codecs.kl(4),
    "kl 16": lambda: codecs.kl(5),
    "flux": codecs.flux_kl,
    "flux2": codecs.flux2_kl,
    "qwen": codecs.qwen_kl,
    "wan": codecs.wan_kl,
    "dc": codecs.dc,
    "dc 32": lambda: codecs.dc(6, attention=3),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> VAECodec:
    torch.manual_seed(0)
    vae = FAMILIES[request.param]().requires_grad_(False).eval()
    return VAECodec(vae, getattr(vae, "spatial_compression_ratio", None))


def test_every_family_is_decoded_in_stages_and_agrees_with_the_whole(family: VAECodec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly with statistics of the whole canvas, and nearly with those of a sample."""
    side = max(16, 64 // family.factor)
    canvas = latents(family.channels, side, 2 * side)
    rough = latents(family.channels, side // 4, side // 2, seed=1)
    canvas = 0.3 * canvas + nn.functional.interpolate(rough[None], canvas.shape[1:], mode="bicubic")[0]
    assert len(family.stages()) > 3
    with torch.no_grad():
        whole = family.decode(canvas[None])[0]
    tile = max(side // 2, 2 * decoding.Tiling.of(family, tiled(), (side, 2 * side)).around) * family.factor
    monkeypatch.setattr(decoding, "SAMPLE", 1 << 20)
    torch.testing.assert_close(decode(family, canvas, (False, False), tiled(tile)), whole, rtol=0, atol=2e-3)
    monkeypatch.setattr(decoding, "SAMPLE", 64)
    apart = (decode(family, canvas, (False, False), tiled(tile)) - whole).abs().mean() / whole.std()
    assert apart < 0.1


# --- as far as the decoder is local -----------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [(False, False), (False, True), (True, True)])
@pytest.mark.parametrize("size", [(24, 96), (40, 61), (10, 50)])
def test_a_decoder_that_is_not_known_in_stages_fades_its_tiles(small_tiles: None, wrap: Wrap, size: tuple[int, int]) -> None:
    canvas = latents(3, *size)
    whole = decoding.joined(Blurry(), canvas[None], wrap, Blurry().decode, 1, Blurry().factor)[0]
    torch.testing.assert_close(decode(Blurry(), canvas, wrap, tiled()), whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("wrap", [(False, False), (True, True)])
@pytest.mark.parametrize("size", [(24, 96), (40, 62), (26, 90)])
def test_tiles_begin_where_patches_begin(small_tiles: None, wrap: Wrap, size: tuple[int, int]) -> None:
    canvas = latents(3, *size)
    whole = decoding.joined(Patched(), canvas[None], wrap, Patched().decode, 1, Patched().factor)[0]
    torch.testing.assert_close(decode(Patched(), canvas, wrap, tiled()), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("codec", [Blurry(), Staged(norms=True, attention=True)])
def test_tiles_go_round_the_join(small_tiles: None, codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rolled by whole tiles, the canvas has the same picture, rolled."""
    monkeypatch.setattr(decoding, "SAMPLE", 1 << 20)
    canvas = latents(3, 24, 96).double()
    plain, rolled = (decode(codec, each, (False, True), tiled()) for each in (canvas, canvas.roll(12, -1)))
    torch.testing.assert_close(plain.roll(12 * codec.factor, -1), rolled)


def test_small_canvases_are_decoded_in_one_piece() -> None:
    shapes: list[tuple[int, ...]] = []

    class Notes(Blurry):
        def decode(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 H W"]:
            shapes.append(tuple(latents.shape))
            return super().decode(latents)

    decode(Notes(), torch.rand(3, 128, 256), (False, False), tiled())
    assert shapes == [(1, 3, 128, 256)]
    shapes.clear()
    decode(Notes(), torch.rand(3, 128, 128), (False, False), tiled(tile=256))
    assert shapes == [(1, 3, 128, 128)]
    shapes.clear()
    decode(Notes(), torch.rand(3, 128, 264), (False, False), tiled())
    assert max(shape[-2] * shape[-1] for shape in shapes) <= 120 * 120


@pytest.mark.parametrize("codec", [Blurry(), Staged()])
@pytest.mark.parametrize("wrap", [(False, False), (True, True)])
def test_strips_come_one_by_one_and_are_the_picture(
    small_tiles: None, codec: Codec, wrap: Wrap, monkeypatch: pytest.MonkeyPatch
) -> None:
    canvas = latents(3, 50, 30).double()
    runtime = tiled()
    made: list[int] = []
    compute = runtime.map

    def counted(fn: Any, n: int, rows: Any, **options: Any) -> Any:
        made.append(n)
        return compute(fn, n, rows, **options)

    monkeypatch.setattr(runtime, "map", counted)
    strip = strips(codec, canvas, wrap, runtime)
    heights, parts = [], []
    for k, part in enumerate(strip):
        assert len(made) <= k + 1 + wrap[0] * isinstance(codec, Blurry)
        parts.append(part)
        heights.append(part.shape[1])
    assert len(parts) > 3
    assert max(heights) <= 20 * codec.factor
    assert torch.equal(torch.cat(parts, 1), decode(codec, canvas, wrap, tiled()))


def test_any_number_of_ranks_makes_the_same_picture(small_tiles: None) -> None:
    codec, canvas = tiny_model().codec, latents(4, 24, 40)
    assert codec

    def picture(runtime: Runtime) -> Tensor:
        return decode(codec, canvas, (False, True), runtime)

    same_on_ranks(picture, 8, "")


def test_tiles_of_larger_cells_have_as_many_pixels() -> None:
    codec = Blurry()
    codec.factor = 32
    assert decoding.Tiling.of(codec, tiled(), (96, 96)).tile * 32 == decoding.APART * 8


# --- statistics of the whole canvas ---------------------------------------------------------------------------


def test_other_threads_see_the_network_as_it_is(small_tiles: None) -> None:
    """While one thread decodes tiles, a norm in another thread uses its own statistics."""
    x, inside, seen = latents(1, 6, 4, 4).double(), threading.Event(), threading.Event()
    results: list[Tensor] = []

    class Waits(Staged):
        def _last(self, x: Tensor) -> Tensor:
            inside.set()
            assert seen.wait(20)
            return super()._last(x)

    def other() -> None:
        inside.wait(20)
        results.append(nn.functional.group_norm(x, 3))
        seen.set()

    thread = threading.Thread(target=other)
    thread.start()
    decode(Waits(norms=True), latents(3, 20, 20).double(), (False, False), tiled())
    thread.join()
    assert torch.equal(results[0], nn.functional.group_norm(x, 3))


def test_statistics_are_wide_in_narrow_precisions() -> None:
    torch.manual_seed(0)
    vae = codecs.kl(3).requires_grad_(False).eval()
    canvas = latents(4, 24, 40)
    exact = decode(VAECodec(vae), canvas, (False, False), tiled(tile=48))
    narrow = VAECodec(vae.to(torch.bfloat16))
    with torch.no_grad():
        whole = narrow.decode(canvas[None])[0]
    picture = decode(narrow, canvas, (False, False), tiled(tile=48))
    assert picture.dtype == torch.float32
    assert (picture - exact).abs().mean() < 1.2 * (whole - exact).abs().mean() + 1e-4


def test_an_autoencoder_that_cuts_batches_up_keeps_its_own_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of a pipeline with slices, which is called as a whole because it is offloaded."""
    codec = VAECodec(codecs.kl(3).requires_grad_(False).eval())
    monkeypatch.setattr(codec, "_moves", True)
    codec.vae.enable_slicing()
    canvas = latents(4, 24, 60)
    assert decode(codec, canvas, (False, False), tiled(tile=96)).isfinite().all()


def test_the_sample_has_the_means_of_the_canvas() -> None:
    rough = nn.functional.interpolate(latents(1, 4, 5, 9), (128, 512), mode="bicubic")[0] + 0.3 * latents(4, 128, 512)
    boxes = sample((128, 512), 4, 128)
    weights = shares(rough, boxes)
    assert 100 < len(boxes) <= 128
    assert sum(weights) == pytest.approx(1)

    def means(of: Sequence[float]) -> Tensor:
        parts = [
            share * rough[:, slice(*rows), slice(*columns)].mean((1, 2))
            for share, (rows, columns) in zip(of, boxes, strict=True)
        ]
        return torch.stack(parts).sum(0)

    equal = (means([1 / len(boxes)] * len(boxes)) - rough.mean((1, 2))).abs()
    assert ((means(weights) - rough.mean((1, 2))).abs() < equal / 10).all()


def test_samples_are_spread_evenly() -> None:
    for size in ((128, 512), (64, 4096), (37, 1000), (4096, 16)):
        boxes = sample(size, 4, 256)
        assert 150 < len(boxes) <= 256
        for axis in (0, 1):
            middles = torch.tensor([(box[axis].start + box[axis].stop) / 2 / size[axis] for box in boxes])
            counts = torch.histc(middles, 4, 0, 1)
            assert counts.min() > 0.5 * counts.max()


# --- memory ---------------------------------------------------------------------------------------------------


def test_a_tile_that_does_not_fit_is_halved() -> None:
    canvas = latents(3, 40, 48).double()
    expected = Staged().decode(canvas[None])[0]
    codec = Staged(fits=40 * 40)
    with pytest.warns(ShardingWarning, match=r"a tile of 96 pixels does not fit the memory of cpu, so .* have 48: set tile=48"):
        picture = decode(codec, canvas, (False, False), tiled(tile=96))
    torch.testing.assert_close(picture, expected, rtol=0, atol=1e-11)
    assert codec.failed < 12  # later tiles are as small at once


def test_a_picture_that_does_not_fit_in_one_piece_is_decoded_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "TILE", 16)
    canvas = latents(3, 40, 48).double()
    with pytest.warns(
        ShardingWarning, match=r"the picture does not fit the memory in one piece \(.*\), so it is decoded in tiles"
    ):
        picture = decode(Staged(fits=40 * 48 * 4 - 1), canvas, (False, False), tiled())
    torch.testing.assert_close(picture, Staged().decode(canvas[None])[0], rtol=0, atol=1e-11)


def test_strips_take_the_memory_of_a_strip(small_tiles: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A canvas four times as high takes no more than itself and its latents: nothing is as large as the picture."""
    monkeypatch.setattr(decoding, "FEATURES", 0)
    monkeypatch.setattr(decoding, "SAMPLE", 8)

    def rest(height: int) -> tuple[int, int]:
        canvas = latents(3, height, 48).double()
        codec, runtime = Staged(norms=True), tiled()

        def all_strips() -> Tensor:
            return torch.stack([strip.mean() for strip in strips(codec, canvas, (False, False), runtime)])

        made, most = peak(all_strips)
        assert len(made) == height // 12
        return most, canvas.nbytes

    (low, small), (high, large) = rest(48), rest(192)
    assert high <= 1.1 * low + 3 * (large - small)


@pytest.mark.filterwarnings("ignore:.*does not fit the memory")
def test_a_tile_that_fits_nowhere_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "SIDE", 1)
    with pytest.raises(
        OutOfMemoryError, match=r"a tile of \d+ pixels does not fit the memory of cpu \(.*\): try checkpointing"
    ):
        decode(Staged(fits=60), latents(3, 40, 48).double(), (False, False), tiled())


# --- settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [
        (0, None, "tile is 0: it must be 1 pixel or more, such as 384"),
        (64, -8, "tile_overlap is -8: it must be 0 pixels or more, such as 64"),
        (33, None, "tile is 33 pixels: this model needs a multiple of 2; the nearest is 32"),
        (64, 7, "tile_overlap is 7 pixels: this model needs a multiple of 2; the nearest is 8"),
        (
            8,
            None,
            "tile is 8 pixels, smaller than twice its overlap of 8: make tile 16 or larger, or tile_overlap 4 or smaller",
        ),
        (8, 6, "tile is 8 pixels, smaller than twice its overlap of 6: make tile 12 or larger, or tile_overlap 4 or smaller"),
    ],
)
def test_settings_that_cannot_work_are_told_before_a_run(tile: int, overlap: int | None, message: str) -> None:
    with pytest.raises(SettingError) as caught:
        Sampler(tiny_model(), runtime=tiled(tile, overlap)).plan("a lake", height=16, width=32)
    assert str(caught.value) == message


def test_less_overlap_takes_less_work_and_leaves_traces() -> None:
    canvas = latents(3, 40, 40).double()
    whole = Staged().decode(canvas[None])[0]
    none, enough = (decode(Staged(), canvas, (False, False), tiled(64, overlap)) for overlap in (0, 8))
    assert (none - whole).abs().max() > 1e-3
    torch.testing.assert_close(enough, whole, rtol=0, atol=1e-11)


def test_a_recipe_holds_the_tiles() -> None:
    plan = Sampler(tiny_model(), runtime=tiled(32, 8)).plan("a lake", height=16, width=32)
    assert (plan.recipe["tile"], plan.recipe["tile_overlap"]) == (32, 8)


def test_stages_of_another_version_of_diffusers_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = tiny_model().codec
    assert isinstance(codec, VAECodec)
    decoder: Any = codec.vae.decoder
    monkeypatch.setattr(decoder, "forward", lambda x: type(decoder).forward(decoder, x) + 1)
    with pytest.warns(FallbackWarning, match="decodes otherwise than panokit knows"):
        assert codec.stages() == ()
    assert codec.stages() == ()
