"""Loading models, and the denoiser and codec around them."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from panokit import Model, Runtime, Sampler, Scene, load_model
from panokit.backbones.diffusers.model import UNetDenoiser, VAECodec, _unfit
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
        (truncate, "has a damaged file unet/diffusion_pytorch_model.safetensors: .*; fetch it again"),
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
        embeddings = denoiser.encode(Scene("a lake", "fog", 7.5))
        together = denoiser(x, level, denoiser.condition(embeddings, grid, range(len(grid))))
        apart = [denoiser(x[i : i + 1], level, denoiser.condition(embeddings, grid, [i])) for i in range(len(grid))]
    assert torch.allclose(together, torch.cat(apart), atol=1e-5)


def test_an_unknown_prompt_is_warned_of_once_and_names_known_words(tiny: Model) -> None:
    old = tiny.denoiser
    assert isinstance(old, UNetDenoiser)
    words = frozenset({"lake", "dusk"})
    denoiser = UNetDenoiser(old.unet, old.text_encoder, old.tokenizer, old.training, words)
    with pytest.warns(UserWarning, match="knows no word of the prompt 'xyzzy'; it knows, for instance: .*lake"):
        denoiser.encode(Scene("xyzzy"))
    with torch.no_grad():
        denoiser.encode(Scene("a Lake, calm"))
        denoiser.encode(Scene(""))


def test_unknown_words_are_found_between_any_signs(tiny: Model) -> None:
    old = tiny.denoiser
    assert isinstance(old, UNetDenoiser)
    denoiser = UNetDenoiser(old.unet, old.text_encoder, old.tokenizer, old.training, frozenset({"lake"}))
    with torch.no_grad():
        for known in ("Lake.", "lake!", "a lake-side"):
            denoiser.encode(Scene(known))
        with pytest.warns(UserWarning, match="knows no word"):
            denoiser.encode(Scene("lakes"))


def test_what_is_cut_off_a_long_prompt_is_told(tiny: Model) -> None:
    """The tiny tokenizer reads a letter at a time, 16 with start and end."""
    with pytest.warns(UserWarning, match="the prompt has 22 tokens and this model reads 16: 'wxyzab' at its end is cut off"):
        tiny.denoiser.encode(Scene("abcdefghijklmnwxyzab"))


def configure(part: str, **settings: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / part / f"{'scheduler_' if part == 'scheduler' else ''}config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (configure("scheduler", prediction_type="noise"), "it predicts 'noise'"),
        (
            configure("scheduler", _class_name="FlowMatchEulerDiscreteScheduler"),
            "FlowMatchEulerDiscreteScheduler, has other noise",
        ),
        (configure("scheduler", _class_name="EDMEulerScheduler"), "EDMEulerScheduler, has other noise levels"),
        (configure("scheduler", use_flow_sigmas=True), "has other noise levels than betas make"),
        (configure("scheduler", trained_betas=[0.1, 0.2]), r"a list of betas \(trained_betas\)"),
        (configure("unet", sample_size=None), "configuration lacks the size"),
    ],
)
def test_a_kind_of_model_that_cannot_be_driven_is_refused(
    folder: Path, tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    odd = shutil.copytree(folder, tmp_path / "model")
    change(odd)
    with pytest.raises(ModelError, match=f"is of a kind that panokit cannot drive, .*{message}.*: use Stable Diffusion"):
        load_model(str(odd))


@pytest.mark.parametrize(
    ("unet", "message"),
    [
        ({"in_channels": 9}, "takes 9 channels and returns 4, and its latents have 4"),
        ({"addition_embed_type": "text_time"}, "more than a text"),
        ({"class_embed_type": "timestep"}, "more than a text"),
        ({"cross_attention_dim": 24}, "texts of width 24, and its text encoder writes 8"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tiny: Model, unet: dict[str, Any], message: str) -> None:
    denoiser, codec = tiny.denoiser, tiny.codec
    assert isinstance(denoiser, UNetDenoiser)
    assert isinstance(codec, VAECodec)
    odd = SimpleNamespace(**{**denoiser.unet.config, **unet})
    reason = _unfit(odd, codec.vae.config, denoiser.text_encoder.config, {})
    assert reason is not None
    assert re.search(message, reason)
    assert _unfit(denoiser.unet.config, codec.vae.config, denoiser.text_encoder.config, {}) is None


def test_the_codec_is_the_autoencoder_on_pictures_from_0_to_1(tiny: Model) -> None:
    codec = tiny.codec
    assert isinstance(codec, VAECodec)
    vae, scale = codec.vae, codec.vae.config.scaling_factor
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        latents = codec.encode(images)
        torch.testing.assert_close(latents, vae.encode(images * 2 - 1).latent_dist.mode() * scale)
        torch.testing.assert_close(codec.decode(latents), vae.decode(latents / scale).sample / 2 + 0.5)
    assert latents.shape == (2, 4, 8, 8)


def test_the_codec_is_differentiable(tiny: Model) -> None:
    assert tiny.codec is not None
    latents = torch.randn(1, 4, 8, 8).requires_grad_()
    (gradient,) = torch.autograd.grad(tiny.codec.decode(latents).sum(), latents)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_no_precision_rounds_a_timestep(precision: Any) -> None:
    """Half precision would make 980 of 981."""
    sampler = Sampler(tiny_model(), runtime=Runtime(accelerator="cpu", precision=precision))
    denoiser = sampler.model.denoiser
    assert isinstance(denoiser, UNetDenoiser)
    told: list[float] = []
    with denoiser.unet.time_proj.register_forward_pre_hook(lambda _, inputs: told.extend(inputs[0].double().tolist())):
        run = sampler.begin("a lake", height=16, width=16, steps=50)
        run.step()
    assert set(told) == {981.0}
