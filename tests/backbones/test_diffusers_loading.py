"""Loading pipelines of diffusers: which files are read, in which precision, and what a user is told if they do not fit."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import pytest
import torch
import transformers
from diffusers import AutoencoderKL, ControlNetModel, DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from panokit.backbones.diffusers.loading import Loading, load_pipeline
from panokit.backbones.diffusers.weights import choice, named
from panokit.errors import FallbackWarning, ModelError, SettingError
from panokit.hints import make
from panokit.testing.families import (
    FAMILIES,
    save_tiny_embedding,
    save_tiny_ip_adapter,
    save_tiny_lora,
    tiny_controlnet,
    tiny_pipeline,
)
from panokit.testing.families.pipelines import denoiser

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family. It is written once, and not to be changed."""
    home = tmp_path_factory.mktemp("families")

    def folder(name: str) -> Path:
        if not (home / name).exists():
            tiny_pipeline(name).save_pretrained(home / name)
        return home / name

    return folder


@pytest.fixture
def copy(saved: Callable[[str], Path], tmp_path: Path) -> Path:
    """A Stable Diffusion that a test may change."""
    return shutil.copytree(saved("sd"), tmp_path / "model")


def weights(pipe: DiffusionPipeline) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for name, part in networks(pipe).items() for key, value in part.state_dict().items()}


def networks(pipe: DiffusionPipeline) -> dict[str, Any]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def rename(folder: Path, variant: str, *parts: str) -> None:
    """Give the weights of some parts, or all, the names of a variant."""
    for file in folder.glob("*/*.safetensors"):
        if not parts or file.parent.name in parts:
            file.rename(file.with_suffix(f".{variant}.safetensors"))


def shard(folder: Path, variant: str = "") -> None:
    """Cut the weights of a folder into shards."""
    file = next(folder.glob("*.safetensors"))
    whole = load_file(file)
    file.unlink()
    stem, keys, places = f"{file.stem}{variant}", sorted(whole), {}
    for number, some in enumerate((keys[::2], keys[1::2]), 1):
        name = f"{stem}-0000{number}-of-00002.safetensors"
        save_file({key: whole[key] for key in some}, folder / name, {"format": "pt"})
        places |= dict.fromkeys(some, name)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / f"{file.stem}.safetensors.index{variant}.json").write_text(json.dumps(index))


def refused(source: Path | str, message: str, **settings: Any) -> None:
    """A folder or a setting is refused in one line."""
    with pytest.raises(ModelError, match=message) as error:
        load_pipeline(str(source), Loading(**settings))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux", "z_image", "qwen_image", "wan"])
def test_a_folder_is_the_pipeline_that_was_saved(saved: Callable[[str], Path], family: str) -> None:
    pipe, made = load_pipeline(str(saved(family))), tiny_pipeline(family)
    assert type(pipe) is type(made)
    assert pipe.config._name_or_path == str(saved(family))
    expected = weights(made)
    assert weights(pipe).keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in weights(pipe).items())
    assert not any(part.training for part in networks(pipe).values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_keep_the_precision_of_their_files(dtype: torch.dtype, tmp_path: Path) -> None:
    pipe = tiny_pipeline("wan")
    for part in networks(pipe).values():
        part.to(dtype)
    pipe.save_pretrained(tmp_path)
    loaded = load_pipeline(str(tmp_path))
    assert loaded.vae.dtype == loaded.text_encoder.dtype == dtype
    assert loaded.transformer.blocks[0].attn1.to_q.weight.dtype == dtype
    assert loaded.transformer.condition_embedder.time_embedder.linear_1.weight.dtype == torch.float32  # Wan keeps it
    assert {value.dtype for value in weights(load_pipeline(str(tmp_path), Loading(torch_dtype="float32"))).values()} == {
        torch.float32
    }


def test_parts_of_other_precision_keep_theirs(copy: Path) -> None:
    file = copy / "unet" / WEIGHTS
    save_file({key: value.half() for key, value in load_file(file).items()}, file, {"format": "pt"})
    pipe = load_pipeline(str(copy))
    assert (pipe.unet.dtype, pipe.vae.dtype) == (torch.float16, torch.float32)


def test_the_only_variant_is_read_without_naming_it(copy: Path, saved: Callable[[str], Path]) -> None:
    expected = weights(load_pipeline(str(saved("sd"))))
    (copy / "unet" / "LICENSE").touch()
    rename(copy, "fp16", "unet")  # the others are plain
    for settings in (Loading(), Loading(variant="fp16")):
        assert all(torch.equal(value, expected[key]) for key, value in weights(load_pipeline(str(copy), settings)).items())
    rename(copy, "fp16", "vae", "text_encoder")
    assert weights(load_pipeline(str(copy))).keys() == expected.keys()


def test_plain_weights_come_before_those_of_a_variant(copy: Path) -> None:
    file = copy / "unet" / WEIGHTS
    save_file({key: value + 1 for key, value in load_file(file).items()}, file.with_suffix(".fp16.safetensors"))
    plain, variant = (load_pipeline(str(copy), Loading(variant=v)).unet.conv_in.bias for v in (None, "fp16"))
    assert torch.equal(plain + 1, variant)


def test_which_of_several_variants_is_asked(copy: Path) -> None:
    rename(copy, "fp16", "unet")
    shutil.copy(
        copy / "unet" / "diffusion_pytorch_model.fp16.safetensors", copy / "unet" / "diffusion_pytorch_model.ema.safetensors"
    )
    refused(copy, r"has no weights in unet/ but of the variant ema and fp16: set the model's variant")
    assert load_pipeline(str(copy), Loading(variant="ema"))
    refused(copy, "has no bf16 weights in unet/ but of the variant ema and fp16", variant="bf16")


def test_a_variant_that_no_part_has_is_refused(saved: Callable[[str], Path]) -> None:
    refused(saved("sd"), "has no fp16 weights but plain ones: leave the model's variant out", variant="fp16")


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_shards_are_read(copy: Path, variant: str, saved: Callable[[str], Path]) -> None:
    for part in ("unet", "text_encoder"):
        shard(copy / part, variant)
    expected = weights(load_pipeline(str(saved("sd"))))
    assert all(torch.equal(value, expected[key]) for key, value in weights(load_pipeline(str(copy))).items())
    next((copy / "unet").glob("*2-of-00002.safetensors")).unlink()
    name = f"diffusion_pytorch_model{variant}-00002-of-00002.safetensors"
    refused(copy, rf"has no {name} in unet/, which diffusion_pytorch_model.safetensors.index.*json names: fetch the missing")
    next((copy / "unet").glob("*.index*.json")).unlink()
    refused(copy, r"has shards of weights in unet/ and no index of them")


def test_a_weight_in_two_shards_is_refused_by_its_name(copy: Path) -> None:
    shard(copy / "unet")
    one, two = sorted((copy / "unet").glob("*.safetensors"))
    save_file({**load_file(two), "conv_in.bias": load_file(one)["conv_in.bias"]}, two, {"format": "pt"})
    refused(copy, f"has the weight conv_in.bias of unet twice, in {one.name} and {two.name}: fetch it again")


@pytest.mark.parametrize("places", [[], {"x": 1}, {"x": None}, {"x": ["a"]}, None])
def test_an_index_that_says_no_file_is_refused(copy: Path, places: Any) -> None:
    shard(copy / "unet")
    next((copy / "unet").glob("*.index.json")).write_text(json.dumps({"weight_map": places}))
    refused(copy, "is damaged, its weight_map does not say the file of each weight: fetch it again")


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_an_index_that_is_left_over_is_passed_by(copy: Path, variant: str) -> None:
    for part in ("unet", "text_encoder"):
        file = next((copy / part).glob("*.safetensors"))
        index = {"metadata": {}, "weight_map": {"x": "diffusion_pytorch_model-00001-of-00002.safetensors"}}
        (copy / part / f"{file.stem}.safetensors.index.json").write_text(json.dumps(index))
        file.rename(file.with_suffix(f"{variant}.safetensors"))
    assert load_pipeline(str(copy))


def test_text_encoders_are_read_from_files_of_larger_models_and_with_a_prefix(copy: Path) -> None:
    file = copy / "text_encoder" / "model.safetensors"
    own = {f"text_model.{key}": value for key, value in load_file(file).items()}
    tower = {"vision_model.encoder.layers.0.mlp.fc1.bias": torch.ones(2), "logit_scale": torch.ones(1)}
    ids = {"text_model.embeddings.position_ids": torch.arange(16)[None]}
    save_file({**own, **tower, **ids}, file, {"format": "pt"})
    assert torch.equal(load_pipeline(str(copy)).text_encoder.final_layer_norm.bias, own["text_model.final_layer_norm.bias"])
    save_file({**own, "text_model.encoder.layers.9.mlp.fc1.bias": torch.ones(2)}, file, {"format": "pt"})
    refused(copy, "has 1 weight of text_encoder without a place in its config.json, such as .*layers.9.mlp.fc1.bias")
    save_file({**own, "final_layer_norm.bias": torch.ones(8)}, file, {"format": "pt"})
    refused(copy, "has the weight final_layer_norm.bias of text_encoder twice, also as text_model.final_layer_norm.bias")


def drop(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()

    return change


def indexed(**entries: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "model_index.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | entries))

    return change


def written(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text("[")

    return change


def pickle(folder: Path) -> None:
    file = folder / "unet" / WEIGHTS
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()


def cut(folder: Path) -> None:
    file = folder / "unet" / WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])


def thin(folder: Path) -> None:
    file = folder / "unet" / WEIGHTS
    tensors = load_file(file)
    del tensors["conv_in.bias"]
    save_file(tensors, file, {"format": "pt"})


def configured(folder: Path) -> None:
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"block_out_channels": [16, 32]}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("model_index.json"), "has no model_index.json: it must be a pipeline in diffusers' format"),
        (drop("vae"), "has no vae/, which its model_index.json names: fetch the missing files"),
        (drop("tokenizer"), "has no tokenizer/, which its model_index.json names"),
        (drop(f"unet/{WEIGHTS}"), "has no weights in unet/: panokit reads safetensors"),
        (drop("unet/config.json"), "cannot load unet of the model .*config.json"),
        (pickle, r"only pickled weights \(diffusion_pytorch_model.bin\), which can run code"),
        (cut, f"has a damaged file unet/{WEIGHTS}: .*; fetch it again"),
        (
            thin,
            "lacks 1 of the weights of unet, such as conv_in.bias: a file is missing, or its config.json and",
        ),
        (
            configured,
            r"has conv_in.bias of unet in the shape \(8,\), and its config.json asks for \(16,\): its config.json",
        ),
        (
            indexed(_class_name="FluxNinePipeline"),
            r"the pipeline FluxNinePipeline, which diffusers 0\..* does not have: update",
        ),
        (indexed(_class_name="UNet2DModel"), "names UNet2DModel as its pipeline, which is none"),
        (indexed(_class_name=["pipeline", "Mine"]), r"wants code of its own, _class_name \['pipeline', 'Mine'\]"),
        (indexed(custom_pipeline="mine"), "wants code of its own, custom_pipeline in its model_index.json"),
        (indexed(unet=["my_unet", "MyUNet"]), r"wants code of its own for unet \(my_unet.MyUNet\), and panokit never runs"),
        (indexed(unet=["diffusers", "UNet9DModel"]), "diffusers has no UNet9DModel, which is unet of the model .*: update"),
        (indexed(unet=["diffusers", "utils"]), "diffusers has no utils, which is unet of the model"),
        (written("model_index.json"), "model_index.json is damaged"),
        (
            lambda folder: (folder / "scheduler" / "scheduler_config.json").write_text("["),
            r"scheduler_config\.json is damaged: Expecting value: line 1 column 2",
        ),
    ],
)
def test_a_folder_that_cannot_be_loaded_says_why(copy: Path, change: Callable[[Path], None], message: str) -> None:
    change(copy)
    refused(copy, message)


def test_code_beside_a_model_is_never_run(copy: Path) -> None:
    for place in (copy, copy / "unet"):
        for name in ("pipeline.py", "my_unet.py"):
            (place / name).write_text("raise SystemExit('it ran')\n")
    assert load_pipeline(str(copy))
    indexed(_class_name=["pipeline", "Mine"])(copy)
    refused(copy, "never runs a model's code")


def test_the_safety_checker_is_not_read(copy: Path) -> None:
    indexed(safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])(copy)
    assert load_pipeline(str(copy)).safety_checker is None


def test_loading_shows_nothing_and_leaves_the_users_wish(
    saved: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    libraries = (diffusers.utils.logging, transformers.logging)
    before = [(library.is_progress_bar_enabled(), library.get_verbosity()) for library in libraries]
    for library in libraries:
        library.enable_progress_bar()
    load_pipeline(str(saved("sd")))
    assert all(library.is_progress_bar_enabled() for library in libraries)
    assert [library.get_verbosity() for library in libraries] == [verbosity for _, verbosity in before]
    assert capsys.readouterr() == ("", "")
    for library in libraries:
        library.disable_progress_bar()
    load_pipeline(str(saved("sd")))
    assert not any(library.is_progress_bar_enabled() for library in libraries)
    for library, (shown, _) in zip(libraries, before, strict=True):
        if shown:
            library.enable_progress_bar()


def moved(pipe: DiffusionPipeline, other: DiffusionPipeline) -> bool:
    """Whether two pipelines paint differently."""
    return not torch.equal(*(latents(one) for one in (pipe, other)))


def latents(pipe: DiffusionPipeline, **options: Any) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pipe("<moss>", num_inference_steps=1, generator=generator, output_type="latent", **options).images


@pytest.mark.parametrize(
    "family", [name for name in FAMILIES if name not in ("pixart_sigma", "sd2", "sd2_zero_snr", "schnell")]
)
def test_a_lora_is_loaded_at_its_strength(saved: Callable[[str], Path], tmp_path: Path, family: str) -> None:
    path = str(save_tiny_lora(tiny_pipeline(family), tmp_path))
    pipe = load_pipeline(str(saved(family)), Loading(loras=({"path": path, "weight": 0.25, "name": "moss"},)))
    scales = {
        layer.scaling["moss"] for layer in denoiser(pipe).modules() if hasattr(layer, "lora_A") and "moss" in layer.scaling
    }
    assert scales == {0.25}


def test_a_lora_of_another_family_is_refused(saved: Callable[[str], Path], tmp_path: Path) -> None:
    flux, sdxl = (str(save_tiny_lora(tiny_pipeline(name), tmp_path / name)) for name in ("flux", "sdxl"))
    refused(saved("sd"), "flux/.* does not fit a StableDiffusionPipeline: 0 of its 1. tensors have", loras=({"path": flux},))
    refused(saved("sd"), "sdxl/.*: .*; use a LoRA that was made for the model of this Stable", loras=({"path": sdxl},))
    refused(saved("pixart_sigma"), "a PixArtSigmaPipeline takes no LoRAs, and .*flux is set", loras=({"path": flux},))


def test_a_lora_that_fits_in_part_says_how_much_is_left_out(saved: Callable[[str], Path], tmp_path: Path) -> None:
    file = next(save_tiny_lora(tiny_pipeline("sd"), tmp_path).glob("*.safetensors"))
    more = {f"unet.mid_block.attentions.7.to_q.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}
    save_file(load_file(file) | more, tmp_path / "more.safetensors")
    with pytest.warns(FallbackWarning, match="fits a StableDiffusionPipeline in part: 4. of its .. tensors have a place in it"):
        load_pipeline(str(saved("sd")), Loading(loras=({"path": str(tmp_path / "more.safetensors")},)))
    refused(
        saved("sd"),
        r"has several files of weights, more.safetensors, pytorch_lora.*: set weight_name",
        loras=({"path": str(tmp_path)},),
    )
    chosen = {"path": str(tmp_path), "weight_name": file.name}
    assert load_pipeline(str(saved("sd")), Loading(loras=(chosen,))).get_active_adapters() == ["lora_1"]
    refused(
        saved("sd"), "has no file b.safetensors: it has more", loras=({"path": str(tmp_path), "weight_name": "b.safetensors"},)
    )


def test_files_of_addons_are_loaded_or_refused(
    saved: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(saved("sd"), "there is no file or folder /x/y, and it is no hub id", loras=({"path": "/x/y"},))
    (tmp_path / "a.bin").touch()
    refused(
        saved("sd"),
        r"a.bin is pickled, which can run code: panokit reads \*.safetensors",
        loras=({"path": str(tmp_path / "a.bin")},),
    )
    refused(saved("sd"), r"has no file \*.safetensors: it has a.bin", embeddings=({"path": str(tmp_path)},))


def test_a_learned_word_is_known(saved: Callable[[str], Path], tmp_path: Path) -> None:
    word = {"path": str(save_tiny_embedding(tiny_pipeline("sd"), tmp_path))}
    pipe = load_pipeline(str(saved("sd")), Loading(embeddings=(word,)))
    assert pipe.tokenizer.tokenize(pipe.maybe_convert_prompt("<moss>", pipe.tokenizer)) == ["<moss>", "<moss>_1"]
    assert moved(pipe, load_pipeline(str(saved("sd"))))
    refused(saved("sd"), "is for the word <moss>, which the model knows already: set another token", embeddings=(word, word))
    refused(saved("pixart_sigma"), "a PixArtSigmaPipeline takes no textual inversion", embeddings=(word,))
    for name, content, message in (
        (
            "wide",
            {"<wide>": torch.ones(2, 99)},
            "has vectors of 99 numbers, and text_encoder of a StableDiffusionPipeline reads",
        ),
        ("many", {"a": torch.ones(2), "b": torch.ones(2)}, "has 2 tensors, and one was expected"),
        ("anonymous", {"emb_params": torch.ones(2, 8)}, "does not say its word: set its token"),
    ):
        save_file(content, tmp_path / f"{name}.safetensors")
        refused(saved("sd"), message, embeddings=({"path": str(tmp_path / f"{name}.safetensors")},))


def test_a_learned_word_of_two_text_encoders(saved: Callable[[str], Path], tmp_path: Path) -> None:
    pipe = load_pipeline(str(saved("sdxl")))
    widths = {
        key: encoder.config.hidden_size for key, encoder in (("clip_l", pipe.text_encoder), ("clip_g", pipe.text_encoder_2))
    }
    file = tmp_path / "pair.safetensors"
    save_file({key: torch.ones(2, width) for key, width in widths.items()}, file)
    pipe = load_pipeline(str(saved("sdxl")), Loading(embeddings=({"path": str(file), "token": "<pair>"},)))
    assert {"<pair>", "<pair>_1"} <= pipe.tokenizer.get_vocab().keys() & pipe.tokenizer_2.get_vocab().keys()
    refused(saved("sdxl"), "does not say its word: set its token", embeddings=({"path": str(file)},))
    refused(saved("sd"), "text_encoder(_2 is not in)? a StableDiff", embeddings=({"path": str(file), "token": "<pair>"},))


@pytest.mark.filterwarnings("ignore:.*FluxPosEmbed")  # by diffusers itself, as the ControlNet is made
def test_a_controlnet_makes_the_pipeline_one_that_takes_it(saved: Callable[[str], Path], tmp_path: Path) -> None:
    for family in ("sd", "sdxl", "sd3", "flux"):
        tiny_controlnet(family).controlnet.save_pretrained(tmp_path / family)
        pipe = load_pipeline(str(saved(family)), Loading(controlnet=str(tmp_path / family)))
        assert type(pipe) is type(tiny_controlnet(family))
    refused(saved("sd"), "made for another model: its cross_attention_dim is", controlnet=str(tmp_path / "sdxl"))
    refused(
        saved("sd"),
        "ControlNet .*flux was made for another model|takes ControlNets of the class",
        controlnet=str(tmp_path / "flux"),
    )
    refused(
        saved("pixart_sigma"),
        "PixArtSigmaControlNetPipeline, which diffusers|made for another",
        controlnet=str(tmp_path / "sd"),
    )
    refused(
        saved("sd"),
        "the ControlNet .*sd3.* is of the class|takes ControlNets|made for another",
        controlnet=str(tmp_path / "sd3"),
    )
    refused(saved("sd"), "has no config.json: give a folder in diffusers' format", controlnet=str(tmp_path))


def test_a_saved_pipeline_with_a_controlnet_is_loaded_as_it_is(tmp_path: Path) -> None:
    tiny_controlnet("sd").save_pretrained(tmp_path)
    pipe = load_pipeline(str(tmp_path))
    assert isinstance(pipe.controlnet, ControlNetModel)
    pipe.controlnet.save_pretrained(tmp_path / "other")
    assert type(load_pipeline(str(tmp_path), Loading(controlnet=str(tmp_path / "other")))) is type(pipe)


def test_another_autoencoder(saved: Callable[[str], Path], tmp_path: Path) -> None:
    vae = load_pipeline(str(saved("sd"))).vae
    for weight in vae.parameters():
        weight.data.add_(1)
    vae.save_pretrained(tmp_path / "vae")
    for source in (tmp_path, tmp_path / "vae"):
        assert torch.equal(
            load_pipeline(str(saved("sd")), Loading(vae=str(source))).vae.decoder.conv_in.bias, vae.decoder.conv_in.bias
        )
    AutoencoderKL(latent_channels=7, norm_num_groups=4, block_out_channels=(8,)).save_pretrained(tmp_path / "seven")
    refused(saved("sd"), "seven has latents of 7 channels, and this model.* of 4: use one", vae=str(tmp_path / "seven"))


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_an_ip_adapter_comes_with_its_image_encoder(saved: Callable[[str], Path], tmp_path: Path, family: str) -> None:
    save_tiny_ip_adapter(tiny_pipeline(family), tmp_path / "ip")
    adapter: dict[str, Any] = {"path": str(tmp_path), "subfolder": "ip", "scale": 0.5}
    pipe = load_pipeline(str(saved(family)), Loading(ip_adapter=adapter))
    assert pipe.image_encoder is not None
    assert {tuple(p.scale) for p in pipe.unet.attn_processors.values() if hasattr(p, "scale")} == {(0.5,)}
    (tmp_path / "ip" / "image_encoder").rename(tmp_path / "eyes")
    refused(saved(family), "needs an image encoder, the pipeline has none, and .* is no folder of one", ip_adapter=adapter)
    assert load_pipeline(str(saved(family)), Loading(ip_adapter=adapter | {"image_encoder": str(tmp_path / "eyes")}))


def test_an_ip_adapter_that_does_not_fit(saved: Callable[[str], Path], tmp_path: Path) -> None:
    save_tiny_ip_adapter(tiny_pipeline("sdxl"), tmp_path)
    refused(saved("sd"), "use an IP-Adapter that was made for the model of this Stable", ip_adapter={"path": str(tmp_path)})
    refused(saved("z_image"), "a ZImagePipeline takes no IP-Adapter", ip_adapter={"path": str(tmp_path)})
    save_file({"a": torch.ones(1)}, tmp_path / "ip-adapter.safetensors")
    refused(saved("sd"), "is no IP-Adapter, it has no image_proj and ip_adapter", ip_adapter={"path": str(tmp_path)})


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_a_single_file_of_a_network_is_read_with_a_config(saved: Callable[[str], Path], tmp_path: Path, family: str) -> None:
    """The other parts come from the config."""
    file, made = tmp_path / "network.safetensors", tiny_pipeline(family)
    state = {key: value.bfloat16() + 1 for key, value in denoiser(made).state_dict().items()}
    save_file(state, file)
    pipe = load_pipeline(str(file), Loading(config=str(saved(family))))
    network = denoiser(pipe)
    assert network.dtype == torch.bfloat16
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert torch.equal(*(one.text_encoder.get_input_embeddings().weight for one in (pipe, made)))
    other = shutil.copytree(saved(family), tmp_path / "other")
    drop("vae/diffusion_pytorch_model.safetensors")(other)
    refused(file, "the config .*other has no weights in vae/", config=str(other))


def test_a_single_file_that_cannot_be_read_says_why(
    saved: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "network.safetensors"
    save_file(tiny_pipeline("sd").unet.state_dict(), file)
    refused(file, r"cannot load the model .* as a FluxPipeline: .*; set config to a folder", config=str(saved("flux")))
    refused(file, "is a single file, and a Krea2Pipeline cannot be read from one", config=str(saved("krea2")))
    refused(file, "has no model_index.json", config=str(tmp_path))
    save_file({"first_stage_model.a": torch.ones(1)}, tmp_path / "part.safetensors")
    refused(
        tmp_path / "part.safetensors",
        "Failed to load CLIPTextModel.*appear to be missing.*; set config",
        config=str(saved("sd")),
    )
    monkeypatch.setattr(huggingface_hub, "list_repo_files", fail)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lost)
    refused(file, "does not say how it is built, and neither does its config: .* no route to host; .*; set config to")
    refused(tmp_path / "a.safetensors", "there is no file or folder")
    (tmp_path / "a.ckpt").touch()
    refused(tmp_path / "a.ckpt", "is pickled, which can run code")
    other = shutil.copytree(saved("sd"), tmp_path / "other")
    pickle(other)
    refused(file, r"the config .*other has only pickled weights \(diffusion_pytorch_model.bin\)", config=str(other))


def fail(*args: Any, **kwargs: Any) -> str:
    raise ConnectionError("no route\nto host")


def lost(*args: Any, **kwargs: Any) -> str:
    raise huggingface_hub.errors.LocalEntryNotFoundError("not here")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"torch_dtype": "fp16"}, "torch_dtype is 'fp16': use float32, bfloat16, float16, or leave it out"),
        ({"loras": ["a.safetensors"]}, "must be a list"),
        ({"loras": [{"weight": 1}]}, "loras has {'weight': 1}, without path: say where its file is"),
        ({"loras": [{"path": "a", "wieght": 1}]}, "loras has the unknown entry 'wieght': it may have path, weight, name"),
        ({"loras": [{"path": "a", "weight": "much"}]}, "loras: weight came as 'much': it must be a number"),
        ({"loras": [{"path": "a", "name": "x"}, {"path": "b", "name": "x"}]}, "loras has the name 'x': give each"),
        ({"loras": [{"path": "a", "name": "x.y"}]}, "loras has the name 'x.y': give each LoRA a name of its own, without dots"),
        ({"embeddings": [{"token": "a"}]}, "embeddings has {'token': 'a'}, without path"),
        ({"ip_adapter": {"path": "a", "scale": [1]}}, "ip_adapter: scale came as .*: it must be a number"),
        ({"controlnet": 1}, "controlnet came as 1: it must be"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make(Loading, settings)


def test_settings_come_from_plain_data() -> None:
    made = make(Loading, {"loras": [{"path": "a", "weight": 1}], "controlnet": "a", "torch_dtype": "bfloat16"})
    assert made.loras == ({"path": "a", "weight": 1},)
    assert made.controlnet == "a"


def test_what_the_hub_has_is_fetched_without_pickles(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model with plain and fp16 weights, pickles and files of its whole, only what is read is fetched."""
    rename(copy, "fp16", "vae")
    for name in (
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "whole.safetensors",
        "a.py",
    ):
        (copy / name).touch()
    asked: list[str] = []

    def snapshot_download(source: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.extend(allow_patterns)
        return str(copy)

    monkeypatch.setattr(
        huggingface_hub,
        "list_repo_files",
        lambda source, revision=None: [str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()],
    )
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda source, name, revision=None: str(copy / name))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert load_pipeline("owner/model")
    assert [name for name in asked if "unet/" in name] == ["unet/config.json", f"unet/{WEIGHTS}"]
    assert "vae/diffusion_pytorch_model.fp16.safetensors" in asked
    assert not {"whole.safetensors", "a.py"} & {*asked}


def test_a_hub_that_cannot_be_reached_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "list_repo_files", fail)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lost)
    refused("owner/model", "cannot load owner/model from the hub: no route to host; check the hub id and the connection")
    refused("owner/model/more", "there is no file or folder owner/model/more, and it is no hub id")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: "/nowhere")
    refused("owner/model", "has no model_index.json")


def test_names_of_weights() -> None:
    files = [
        "model.safetensors",
        "model.fp16.safetensors",
        "model-00001-of-00002.fp8.safetensors",
        "model.safetensors.index.fp8.json",
    ]
    variants = named([*files, "whole.safetensors", "model.bin", "config.json"])
    assert variants.keys() == {None, "fp16", "fp8"}
    assert variants["fp8"].needed == set(files[2:])
    assert choice(variants, None) is None
    assert choice(variants, "bf16") is None
    with pytest.raises(LookupError):
        choice({"a": 1, "b": 2}, None)
