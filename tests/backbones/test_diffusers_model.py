"""Loading models, and the denoiser and codec around them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from panokit import Model, Runtime, Sampler, Scene, load_model
from panokit.backbones.diffusers.codec import VAECodec
from panokit.backbones.diffusers.model import UNetDenoiser, _fits
from panokit.errors import ModelError, PluginNotFoundError, PromptWarning
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
    with pytest.raises(PluginNotFoundError, match=r"installed are .*landscapes.*; a folder"):
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


def test_a_negative_prompt_is_watched_like_a_prompt_and_long_texts_are_shown_in_short(tiny: Model) -> None:
    old = tiny.denoiser
    assert isinstance(old, UNetDenoiser)
    denoiser = UNetDenoiser(old.unet, old.text_encoder, old.tokenizer, old.training, frozenset({"lake"}))
    with pytest.warns(PromptWarning) as caught, torch.no_grad():
        denoiser.encode(Scene("a lake", "x" * 600_000, 7.5))
    cut, unknown = sorted(str(warning.message) for warning in caught)
    assert cut == f"the negative prompt has 600002 tokens and this model reads 16: '{60 * 'x'} ...' at its end is cut off"
    assert unknown.startswith(f"this model knows no word of the negative prompt '{60 * 'x'} ...'; it knows, for instance: lake")
    with torch.no_grad():
        denoiser.encode(Scene("a lake", "x" * 100, 1.0))  # it is not read


def configure(part: str, **settings: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / part / f"{'scheduler_' if part == 'scheduler' else ''}config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))

    return change


def test_a_folder_of_another_kind_needs_an_index(folder: Path, tmp_path: Path) -> None:
    """Its scheduler says that it is no Stable Diffusion, and nothing says what else it is."""
    odd = shutil.copytree(folder, tmp_path / "model")
    configure("scheduler", trained_betas=[0.1, 0.2])(odd)
    with pytest.raises(ModelError, match=r"has no model_index\.json: it must be a pipeline in diffusers' format"):
        load_model(str(odd))


def test_a_scheduler_that_diffusers_does_not_know_is_refused(folder: Path, tmp_path: Path) -> None:
    odd = shutil.copytree(folder, tmp_path / "model")
    configure("scheduler", _class_name="TomorrowScheduler")(odd)
    with pytest.raises(ModelError, match="is a TomorrowScheduler, which this version of diffusers does not have: update"):
        load_model(str(odd))


@pytest.mark.parametrize(
    ("unet", "scheduler"),
    [
        ({"in_channels": 9}, {}),
        ({"addition_embed_type": "text_time"}, {}),
        ({"class_embed_type": "timestep"}, {}),
        ({"time_cond_proj_dim": 8}, {}),
        ({"cross_attention_dim": 24}, {}),
        ({}, {"_class_name": "FlowMatchEulerDiscreteScheduler"}),
        ({}, {"use_flow_sigmas": True}),
        ({}, {"trained_betas": [0.1, 0.2]}),
    ],
    ids=str,
)
def test_what_is_not_stable_diffusion_takes_the_general_road(
    tiny: Model, unet: dict[str, Any], scheduler: dict[str, Any]
) -> None:
    denoiser, codec = tiny.denoiser, tiny.codec
    assert isinstance(denoiser, UNetDenoiser)
    assert isinstance(codec, VAECodec)
    text_encoder = denoiser.text_encoder.config.to_dict()
    configs = {"unet": dict(denoiser.unet.config), "vae": dict(codec.vae.config), "text_encoder": text_encoder}
    assert _fits(configs, {})
    assert not _fits({**configs, "unet": {**configs["unet"], **unet}}, scheduler)


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
