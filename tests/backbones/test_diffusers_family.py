"""Models of diffusers by name and in hand: folders, recipes, positions, networks that move themselves."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from panokit import Model, Runtime, Sampler, load_model, recipe
from panokit.backbones.diffusers.codec import VAECodec
from panokit.backbones.diffusers.model import UNetDenoiser
from panokit.backbones.diffusers.networks import moves_itself
from panokit.backbones.diffusers.pipeline import PipelineDenoiser
from panokit.cli import main
from panokit.errors import ModelError, SettingError
from panokit.jobs import Worker
from panokit.testing.families import FAMILIES, save_tiny_lora, tiny_controlnet, tiny_pipeline
from panokit.testing.tiny import tiny_model
from panokit_msd import MSDPaper

Leave = Callable[[bool], None]

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__:DeprecationWarning",  # diffusers, in set_timesteps
    "ignore:the negative prompt has no effect:panokit.errors.PromptWarning",
)


def painted(sampler: Sampler, many: int = 2, **settings: Any) -> Tensor:
    """The latents of a canvas that is many windows wide."""
    high, wide = (cells * sampler.model.factor for cells in sampler.model.denoiser.window[-2:])
    return sampler("a lake", **{"height": high, "width": many * wide, "frames": 1, "steps": 2, "seed": 3, **settings}).latents


# --- by name ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_pipeline_is_made_again_from_its_recipe(
    name: str, tmp_path: Path, cpu: Runtime, leave_to_sweeps: Leave
) -> None:
    leave_to_sweeps(name not in ("sdxl", "flux", "sana"))
    pipe = tiny_pipeline(name)
    pipe.save_pretrained(tmp_path / "model")
    settings = {"plugin": str(tmp_path / "model"), "window": 16, **({"true_cfg_scale": 2.0} if name == "flux" else {})}
    made = Sampler(settings, runtime=cpu)
    panorama = made("a lake", height=16 * made.model.factor, width=32 * made.model.factor, frames=1, steps=2, seed=3)
    own = painted(Sampler(load_model(pipe, **{key: value for key, value in settings.items() if key != "plugin"}), runtime=cpu))
    if name not in ("sd", "sd2", "sd2_zero_snr"):  # these have another scheduler by name
        assert float((panorama.latents - own).abs().max() / own.abs().max()) < 1e-5  # a saved model rounds
    assert panorama.recipe["model"] == settings
    assert panorama.recipe["scheduler"]["plugin"] == ("ddim" if name in ("sd", "sd2", "sd2_zero_snr") else "own")
    names = ("prompt", "model", "scheduler", "seed", "height", "width", "frames", "steps")
    kept = {name: panorama.recipe[name] for name in names if name in panorama.recipe}
    again = Worker({"accelerator": "cpu"}).make(json.loads(json.dumps(kept)))
    assert torch.equal(again.latents, panorama.latents)


def test_the_command_line_loads_runs_and_runs_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = tiny_pipeline("sdxl")
    pipe.save_pretrained(tmp_path / "model")
    lora = save_tiny_lora(pipe, tmp_path)
    words = ["generate", "a lake", "--model", str(tmp_path / "model"), "--model.window=16", "--height=32", "--width=64"]
    words += [f"--model.loras=[{{path: {lora}, weight: 0.5}}]", "--model.guidance_rescale=0.5", "--steps=2", "--quiet"]
    assert main([*words, "--out", str(tmp_path / "a.png")]) == 0
    kept = recipe.read(tmp_path / "a.png")["model"]
    assert (kept["loras"], kept["guidance_rescale"]) == ([{"path": str(lora), "weight": 0.5}], 0.5)
    assert main(["rerun", str(tmp_path / "a.png"), "--trust", "--out", str(tmp_path / "b.png")]) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert main(["rerun", str(tmp_path / "a.png")]) == 2
    capsys.readouterr()
    assert main(["plugins", "diffusers"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {setting}: " in shown for setting in ("variant", "loras", "controlnet", "positions", "call"))


def test_a_strangers_recipe_adds_no_files_to_a_model() -> None:
    stranger = Worker({"accelerator": "cpu"}, trusted=False)
    for setting, value in (("loras", [{"path": "a.safetensors"}]), ("vae", "owner/vae"), ("controlnet", "owner/net")):
        with pytest.raises(SettingError, match=f"sets {setting} of its model, which reads files: trust it"):
            stranger.plan({"prompt": "a lake", "model": {"plugin": "landscapes", setting: value}})


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_stable_diffusion_by_name_is_its_pipeline(
    prediction: Any, scale: float, cpu: Runtime, pipeline: Callable[[str], Any]
) -> None:
    """The UNet that is called directly and the pipeline that is driven make the same latents."""
    direct = tiny_model(prediction)
    denoiser, codec = direct.denoiser, direct.codec
    assert isinstance(denoiser, UNetDenoiser)
    assert isinstance(codec, VAECodec)
    parts = {"unet": denoiser.unet, "text_encoder": denoiser.text_encoder, "tokenizer": denoiser.tokenizer}
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction,
        steps_offset=1,
        clip_sample=False,
    )
    none: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    driven = load_model(StableDiffusionPipeline(vae=codec.vae, scheduler=scheduler, **parts, **none))
    one, other = (
        painted(Sampler(model, scheduler="ddim", runtime=cpu), 3, guidance_scale=scale, negative_prompt="rain")
        for model in (direct, driven)
    )
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


# --- in hand ---------------------------------------------------------------------------------------------------


def test_the_recipe_of_a_pipeline_in_hand_says_what_it_was(
    tmp_path: Path, cpu: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = tiny_pipeline("sdxl")
    pipe.load_lora_weights(save_tiny_lora(pipe, tmp_path), adapter_name="moss")
    picture = torch.zeros(1, 3)
    model = load_model(pipe, window=16, guidance_rescale=0.5, cross_attention_kwargs={"scale": 0.5, "weird": picture})
    part = model.part
    assert isinstance(part, dict)
    assert part["in_hand"] == "StableDiffusionXLPipeline with moss"
    assert (part["window"], part["guidance_rescale"]) == (16, 0.5)
    assert part["cross_attention_kwargs"]["weird"].startswith("sha256:")
    json.dumps(part)
    sampler = Sampler(load_model(tiny_pipeline("sd"), window=16), runtime=cpu)
    sampler("a lake", height=32, width=32, steps=2).save(tmp_path / "a.png")
    assert main(["rerun", str(tmp_path / "a.png"), "--trust"]) == 2
    assert "was a StableDiffusionPipeline in Python: make it again there" in capsys.readouterr().err


def test_what_belongs_to_files_is_not_for_a_pipeline_in_hand(pipeline: Callable[[str], Any]) -> None:
    with pytest.raises(SettingError, match="variant is a setting of models by name"):
        load_model(pipeline("sdxl"), variant="fp16")
    with pytest.raises(SettingError, match="a list came as a model: give a name, a folder, a hub id, a pipeline of diffusers"):
        load_model([pipeline("sdxl")])


@pytest.mark.parametrize("name", ["sdxl", "flux"])
@pytest.mark.parametrize("kind", ["leaf_level", "model"])
def test_offloaded_networks_stay_so_and_take_gradients(name: str, kind: str, cpu: Runtime) -> None:
    """They move by hooks of their own, which here move them from the CPU to the CPU."""
    device = torch.device("cpu")
    own = painted(Sampler(load_model(tiny_pipeline(name), window=16), guidances=[MSDPaper()], runtime=cpu), height=64)
    pipe = tiny_pipeline(name)
    network = pipe.components["unet" if name == "sdxl" else "transformer"]
    if kind == "model":
        pipe.enable_model_cpu_offload(device=device)
    else:
        network.enable_group_offload(onload_device=device, offload_device=device, offload_type=kind)
    model = load_model(pipe, window=16)
    if kind != "model":  # accelerate leaves no hook where both devices are one
        assert moves_itself(network)
        assert isinstance(model.denoiser, PipelineDenoiser)
        assert len([*model.denoiser.modules()]) == len(model.denoiser._networks) - 1
    assert torch.equal(painted(Sampler(model, guidances=[MSDPaper()], runtime=cpu), height=64), own)


def test_a_network_that_caches_steps_is_refused() -> None:
    from diffusers import FirstBlockCacheConfig

    pipe = tiny_pipeline("flux")
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ModelError, match=r"the transformer of FluxPipeline has the hook fbc_\w+, which .*disable_cache\(\)"):
        load_model(pipe)


def test_a_cache_that_diffusers_functions_apply_is_refused_too() -> None:
    from diffusers import FirstBlockCacheConfig
    from diffusers.hooks import apply_first_block_cache

    pipe = tiny_pipeline("flux")
    apply_first_block_cache(pipe.transformer, FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ModelError, match="would mix windows"):
        load_model(pipe)


def test_an_autoencoder_that_overflows_in_half_precision_computes_in_float32(cpu: Runtime) -> None:
    model = load_model(tiny_pipeline("sdxl").to(torch.float16), window=16)
    assert isinstance(model.denoiser, PipelineDenoiser)
    assert isinstance(model.codec, VAECodec)
    assert {parameter.dtype for parameter in model.codec.vae.parameters()} == {torch.float32}
    assert {parameter.dtype for network in model.denoiser.modules() for parameter in network.parameters()} == {torch.float16}
    assert painted(Sampler(model, runtime=cpu)).isfinite().all()


# --- places ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sdxl", "flux", "chroma", "flux2", "klein", "krea2"])
def test_a_window_is_told_its_place_where_there_are_places(name: str, pipeline: Callable[[str], Any], cpu: Runtime) -> None:
    local, offset = (load_model(pipeline(name), window=16, positions=positions) for positions in ("local", "offset"))
    one, other = (painted(Sampler(model, runtime=cpu), 1) for model in (local, offset))
    assert torch.equal(one, other)
    one, other = (painted(Sampler(model, runtime=cpu)) for model in (local, offset))
    assert float((one - other).abs().max() / one.abs().max()) > 1e-3
    torch.testing.assert_close(*(painted(Sampler(offset, runtime=Runtime(accelerator="cpu", micro_batch=k))) for k in (1, 5)))


@pytest.mark.parametrize("name", ["sd", "sd3", "z_image", "qwen_image", "sana", "lumina2", "wan"])
def test_a_model_that_is_told_no_place_says_so(name: str, pipeline: Callable[[str], Any]) -> None:
    with pytest.raises(SettingError, match="cannot be told where a window lies: set positions to local"):
        load_model(pipeline(name), window=16, positions="offset")


def test_the_place_of_a_window_is_its_first_cell(pipeline: Callable[[str], Any], cpu: Runtime) -> None:
    """A window at the right half of a canvas sees columns of patches that begin where it begins."""
    model = load_model(pipeline("flux"), window=16, positions="offset")
    denoiser = model.denoiser
    assert isinstance(denoiser, PipelineDenoiser)
    img_ids: list[Tensor] = []
    network = denoiser._driven.pipe.transformer
    hook = network.register_forward_pre_hook(lambda module, args, kwargs: img_ids.append(kwargs["img_ids"]), with_kwargs=True)
    painted(Sampler(model, runtime=Runtime(accelerator="cpu")), 2, steps=1)
    hook.remove()
    columns = [(int(ids[:, 2].min()), int(ids[:, 2].max())) for ids in img_ids]
    assert columns == [(0, 7), (4, 11), (8, 15)]
    assert {int(ids[:, 1].max()) for ids in img_ids} == {7}


@pytest.mark.parametrize(("name", "most"), [("sd3", 48), ("lumina2", 128), ("wan", 256)])
def test_a_window_beyond_the_table_of_positions_is_refused(name: str, most: int, pipeline: Callable[[str], Any]) -> None:
    with pytest.raises(SettingError, match=f"window is {most + 2}, and the model's table of positions ends at {most} cells"):
        load_model(pipeline(name), window=most + 2)


def test_sizes_are_multiples_of_patches_and_the_nearest_is_offered(pipeline: Callable[[str], Any], cpu: Runtime) -> None:
    sampler = Sampler(load_model(pipeline("flux2"), window=16), runtime=cpu)
    with pytest.raises(SettingError, match="width 70 is no multiple of 4, which this model needs: the nearest are 68 or 72"):
        sampler.plan("a lake", height=32, width=70)
    with pytest.raises(SettingError, match=r"a stride of 6 pixels .* must be a multiple of 4 .* the nearest is 8"):
        sampler.plan("a lake", height=32, width=72, stride=6)
    plan = sampler.plan("a lake", height=32, width=72, stride=12)
    assert all(int(cell) % 2 == 0 for cell in plan.windows.cells()[:, :, 0, 0].flatten())


def test_a_model_is_no_other_after_it_was_copied(pipeline: Callable[[str], Any]) -> None:
    """A sampler in another precision copies a model. The copy's scheduler is its own, too."""
    model = load_model(pipeline("flux"), window=16)
    first = painted(Sampler(model, runtime=Runtime(accelerator="cpu")))
    painted(Sampler(model, runtime=Runtime(accelerator="cpu", precision="64-true")))
    assert isinstance(model, Model)
    assert torch.equal(painted(Sampler(model, runtime=Runtime(accelerator="cpu"))), first)


# --- runs that share a model -----------------------------------------------------------------------------------


def test_runs_of_one_model_never_touch(pipeline: Callable[[str], Any], cpu: Runtime) -> None:
    """Two runs with other texts and guidance, step by step in turns, and in two threads, make what each makes alone."""
    sampler = Sampler(load_model(pipeline("sdxl"), window=16), runtime=cpu)
    settings = [{"guidance_scale": 5.0, "seed": 1}, {"guidance_scale": 1.0, "seed": 2, "negative_prompt": ""}]
    texts = ["a lake", "a red city"]

    def alone(k: int) -> Tensor:
        return sampler(texts[k], height=32, width=64, steps=3, progress=False, **settings[k]).latents

    expected = [alone(0), alone(1)]
    runs = [sampler.begin(text, height=32, width=64, steps=3, **more) for text, more in zip(texts, settings, strict=True)]
    for _ in range(3):
        for run in runs:
            run.step()
    assert all(torch.equal(run.canvas, canvas) for run, canvas in zip(runs, expected, strict=True))
    with ThreadPoolExecutor(2) as pool:
        threads = [*pool.map(alone, [0, 1, 0, 1])]
    assert all(torch.equal(threads[k], expected[k % 2]) for k in range(4))


def test_a_second_sampler_takes_the_model_of_the_first_as_it_is(pipeline: Callable[[str], Any]) -> None:
    model, runtime = load_model(pipeline("sdxl"), window=16), Runtime(accelerator="cpu", precision="bf16-true")
    first = Sampler(model, runtime=runtime)
    assert first.model.denoiser is not model.denoiser
    assert Sampler(first.model, runtime=runtime).model.denoiser is first.model.denoiser


def test_a_copy_keeps_networks_that_move_themselves() -> None:
    pipe = tiny_pipeline("flux")
    device = torch.device("cpu")
    pipe.transformer.enable_group_offload(onload_device=device, offload_device=device, offload_type="leaf_level")
    model = load_model(pipe, window=16)
    copied = Sampler(model, runtime=Runtime(accelerator="cpu", precision="64-true")).model
    assert copied.denoiser is not model.denoiser
    assert isinstance(model.denoiser, PipelineDenoiser)
    assert isinstance(copied.denoiser, PipelineDenoiser)
    networks, copies = model.denoiser._networks, copied.denoiser._networks
    assert copies["transformer"] is networks["transformer"]
    assert copies["text_encoder"] is not networks["text_encoder"]


# --- settings --------------------------------------------------------------------------------------------------


def test_true_guidance_of_the_model_is_its_default(pipeline: Callable[[str], Any], cpu: Runtime) -> None:
    pipe = pipeline("qwen_image")
    strong, weak = (load_model(pipe, window=16, true_cfg_scale=scale) for scale in (6.0, 2.0))
    assert (strong.denoiser.guidance_scale, weak.denoiser.guidance_scale) == (6.0, 2.0)
    one, other = (painted(Sampler(model, runtime=cpu), negative_prompt="rain") for model in (strong, weak))
    assert float((one - other).abs().max()) > 1e-3
    same = painted(Sampler(strong, runtime=cpu), negative_prompt="rain", guidance_scale=2.0)
    assert torch.equal(same, other)


def test_arguments_that_would_not_do_what_they_say_are_refused() -> None:
    from diffusers import MultiControlNetModel

    with pytest.raises(SettingError, match=r"guidance_rescale of the model came as 'abc': it must be a number, such as 0.0"):
        load_model(tiny_pipeline("sdxl"), guidance_rescale="abc")
    with pytest.raises(SettingError, match="call of diffusers came as 3: it must be"):
        load_model(tiny_pipeline("sdxl"), call=3)
    for name in ("prompt_2", "denoising_end", "ip_adapter_image"):
        with pytest.raises(SettingError, match=f"{name} of a pipeline's call is"):
            load_model(tiny_pipeline("sdxl"), **{name: "x"})
    pipe = tiny_controlnet("sd")
    with pytest.raises(SettingError, match=r"image of StableDiffusionControlNetPipeline is a setting .* control_image"):
        load_model(pipe, image="edges.png")
    pipe.controlnet = MultiControlNetModel([pipe.controlnet, pipe.controlnet])
    with pytest.raises(ModelError, match="has several ControlNets, and panokit shows windows one picture"):
        load_model(pipe)


def test_embeddings_are_noted_by_their_hash_for_models_by_name_too(tmp_path: Path, cpu: Runtime) -> None:
    pipe = tiny_pipeline("flux")
    pipe.save_pretrained(tmp_path)
    with torch.no_grad():
        embeds, pooled, _ = pipe.encode_prompt("a castle", None)
    model = load_model(str(tmp_path), window=16, prompt_embeds=embeds, pooled_prompt_embeds=pooled)
    made = Sampler(model, runtime=cpu)("", height=32, width=32, steps=2)
    assert made.recipe["model"]["prompt_embeds"].startswith("sha256:")
    json.dumps(made.recipe)
