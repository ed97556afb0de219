"""Loading models, and the denoiser and codec around them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from panokit import Model, Runtime, Sampler, load_model
from panokit.backbones.diffusers.model import UNetDenoiser, VAECodec
from panokit.errors import ModelError, PluginNotFoundError
from panokit.testing.tiny import tiny_model


def test_a_folder_is_the_model_that_was_saved(folder: Path, cpu: Runtime) -> None:
    saved, made = load_model(str(folder)), tiny_model("v_prediction")
    assert saved.denoiser.training == made.denoiser.training
    pictures = [Sampler(m, runtime=cpu)("a lake", height=16, width=32, steps=2).latents for m in (saved, made)]
    assert torch.equal(*pictures)


def test_networks_arrive_frozen_in_float32_and_in_eval_mode(folder: Path, cpu: Runtime) -> None:
    model = Sampler(str(folder), runtime=cpu).model
    assert model.codec is not None
    for module in (*model.denoiser.modules(), *model.codec.modules()):
        assert not module.training
        assert all(p.dtype == torch.float32 and not p.requires_grad for p in module.parameters())


def drop(*parts: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for part in parts:
            path = folder / part
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def pickle(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()


def truncate(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("vae"), "has no vae/config.json"),
        (drop("unet/config.json"), "has no unet/config.json"),
        (drop("text_encoder/model.safetensors"), "no weights in text_encoder/"),
        (drop("scheduler"), "has no scheduler/scheduler_config.json"),
        (drop("tokenizer"), "has no tokenizer"),
        (pickle, r"only pickled weights \(diffusion_pytorch_model.bin\), which can run code"),
        (truncate, "cannot load unet of the model"),
    ],
)
def test_a_folder_that_cannot_be_loaded_says_why(
    folder: Path, tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    broken = shutil.copytree(folder, tmp_path / "model")
    change(broken)
    with pytest.raises(ModelError, match=message) as error:
        load_model(str(broken))
    assert "\n" not in str(error.value)


def test_a_name_that_is_nothing_is_told_what_there_is() -> None:
    with pytest.raises(PluginNotFoundError, match="installed are landscapes; a folder"):
        load_model("no such model")


def test_windows_are_denoised_alike_in_any_company(tiny: Model) -> None:
    """Batch-split invariance, classifier-free guidance on."""
    denoiser = tiny.denoiser
    assert isinstance(denoiser, UNetDenoiser)
    from panokit import Grid, Level

    grid = Grid((8, 32), (8, 8), (4, 4), (False, False))
    level = Level(0, 500, 0.6, 0.8, 0, 1)
    x = torch.randn(len(grid), 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        embeddings = denoiser.encode("a lake", "fog", 7.5)
        together = denoiser(x, level, denoiser.condition(embeddings, grid, range(len(grid))))
        apart = [denoiser(x[i : i + 1], level, denoiser.condition(embeddings, grid, [i])) for i in range(len(grid))]
    assert torch.allclose(together, torch.cat(apart), atol=1e-5)


def test_an_unknown_prompt_is_warned_of_once_and_names_known_words(tiny: Model) -> None:
    old = tiny.denoiser
    assert isinstance(old, UNetDenoiser)
    words = frozenset({"lake", "dusk"})
    denoiser = UNetDenoiser(old.unet, old.text_encoder, old.tokenizer, old.training, words)
    with pytest.warns(UserWarning, match="knows no word of the prompt 'xyzzy'; it knows, for instance: .*lake"):
        denoiser.encode("xyzzy", "", 1.0)
    with torch.no_grad():
        denoiser.encode("a Lake, calm", "", 1.0)
        denoiser.encode("", "", 1.0)


def test_the_codec_is_in_unit_range_and_differentiable(tiny: Model) -> None:
    codec = tiny.codec
    assert codec is not None
    images = torch.rand(2, 3, 16, 16)
    latents = codec.encode(images).requires_grad_()
    assert latents.shape == (2, 4, 8, 8)
    decoded = codec.decode(latents)
    assert decoded.shape == images.shape
    (gradient,) = torch.autograd.grad(decoded.sum(), latents)
    assert gradient.abs().sum() > 0


def test_large_canvases_are_decoded_in_tiles(tiny: Model) -> None:
    whole = tiny.codec
    assert isinstance(whole, VAECodec)
    tiled = VAECodec(whole.vae, tile_above=64)
    latents = torch.randn(1, 4, 16, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pieces, one = tiled.decode(latents), whole.decode(latents)
    assert pieces.shape == one.shape
    assert not torch.equal(pieces, one)
