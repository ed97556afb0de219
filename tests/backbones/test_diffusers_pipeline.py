"""Pipelines of diffusers as denoisers: their schedulers, adapters, pictures, gradients, ranks, and what cannot be driven."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from torch import Tensor

from panokit import Checkpoint, Grid, Model, Region, Regions, Runtime, Sampler, Scene, SettingError, Solver, load_model
from panokit.backbones.diffusers.drivable import require_drivable
from panokit.decoding import encode
from panokit.errors import ModelError
from panokit.testing.families import save_tiny_embedding, save_tiny_ip_adapter, save_tiny_lora, tiny_pipeline
from panokit.testing.ranks import VirtualRanks
from panokit_msd import MSDGuidance

SEED = 3
Literal = Callable[..., Tensor]
Made = Callable[..., Any]
Leave = Callable[[bool], None]


def begun(sampler: Sampler, prompt: str = "a lake", *, windows: tuple[int, int] = (1, 1), **settings: Any) -> Any:
    window = sampler.model.denoiser.window[-2:]  # also of a model of films, which makes pictures here
    size = [many * side * sampler.model.factor for many, side in zip(windows, window, strict=True)]
    return sampler.begin(prompt, **{"height": size[0], "width": size[1], "frames": 1, "seed": SEED, "steps": 4, **settings})


def finished(sampler: Sampler, prompt: str = "a lake", **settings: Any) -> Any:
    run = begun(sampler, prompt, **settings)
    while not run.done:
        run.step()
    return run


def solver(model: Model) -> Solver:
    """That of the pipeline's own scheduler, for four steps."""
    own = model.denoiser.training.own
    assert own is not None
    return own(4, torch.device("cpu"))


def error(x: Tensor, y: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((x - y).abs().max() / y.abs().max())


# --- schedulers -----------------------------------------------------------------------------------------------

SCHEDULERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}, {}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}, {}),
    "ddim with noise": ("DDIMScheduler", {"clip_sample": False}, {"eta": 0.5}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}, {}),
    "euler": ("EulerDiscreteScheduler", {}, {}),
    "euler trailing": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}, {}),
    "euler ancestral": ("EulerAncestralDiscreteScheduler", {}, {}),
    "heun": ("HeunDiscreteScheduler", {}, {}),
    "lms": ("LMSDiscreteScheduler", {}, {}),
    "kdpm2": ("KDPM2DiscreteScheduler", {}, {}),
    "kdpm2 ancestral": ("KDPM2AncestralDiscreteScheduler", {}, {}),
    "dpm++ karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, {}),
    "dpm++ sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {}),
    "dpm++ single": ("DPMSolverSinglestepScheduler", {"lower_order_final": True}, {}),
    "deis": ("DEISMultistepScheduler", {}, {}),
    "unipc": ("UniPCMultistepScheduler", {}, {}),
    "sa": ("SASolverScheduler", {}, {}),
    "lcm": ("LCMScheduler", {}, {}),
    "tcd": ("TCDScheduler", {}, {"eta": 0.3}),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_the_own_scheduler_is_the_one_on_the_pipeline(
    name: str, scheduler: str, literal: Literal, cpu: Runtime, leave_to_sweeps: Leave
) -> None:
    leave_to_sweeps([*SCHEDULERS].index(scheduler) % 4 != (0 if name == "sd" else 2))
    kind, config, call = SCHEDULERS[scheduler]
    pipe = tiny_pipeline(name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array", DeprecationWarning)  # diffusers
        pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config, **config)
    sampler = Sampler(load_model(pipe, window=8, **call), runtime=cpu)
    assert error(finished(sampler).canvas, literal(pipe, cells=8, num_inference_steps=4, **call)) < 1e-5


def test_a_scheduler_that_panokit_does_not_know_is_refused_by_name(cpu: Runtime) -> None:
    pipe = tiny_pipeline("sd")
    pipe.scheduler = diffusers.DDIMParallelScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(SettingError, match="is a DDIMParallelScheduler, which panokit cannot drive: name another") as caught:
        begun(Sampler(pipe, runtime=cpu))
    assert "\n" not in str(caught.value)
    assert finished(Sampler(pipe, scheduler="ddim", runtime=cpu)).canvas.isfinite().all()


@pytest.mark.parametrize("name", ["sd3", "flux", "z_image", "qwen_image", "sana", "wan"])
def test_noise_levels_of_a_flow_are_the_pipelines_own(
    name: str, pipeline: Made, literal: Literal, cpu: Runtime, sweeps: bool, leave_to_sweeps: Leave
) -> None:
    leave_to_sweeps(name in ("z_image", "qwen_image", "sana"))
    pipe, model = pipeline(name), load_model(pipeline(name), window=16)
    expected = literal(pipe, num_inference_steps=4)
    sigmas, times = pipe.scheduler.sigmas.tolist(), pipe.scheduler.timesteps.tolist()
    levels = solver(model).levels
    assert [level.sigma for level in levels] == sigmas
    assert [level.t for level in levels[:-1]] == times
    for scheduler in ("flow_euler", "dpm++_2m", "unipc"):
        run = begun(Sampler(model, scheduler=scheduler, runtime=cpu))
        named = torch.tensor([level.sigma for level in run.solver.levels])
        torch.testing.assert_close(named, torch.tensor(sigmas), rtol=0, atol=2e-6)
        if scheduler == "flow_euler" and "Euler" in type(pipe.scheduler).__name__:
            assert error(finished(Sampler(model, scheduler=scheduler, runtime=cpu)).canvas, expected) < 1e-5
        elif sweeps:
            assert finished(Sampler(model, scheduler=scheduler, runtime=cpu)).canvas.isfinite().all()


# --- adapters -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd", "sdxl", "flux"])
def test_a_lora_changes_the_window_as_it_changes_the_picture(
    name: str, pipeline: Made, literal: Literal, cpu: Runtime, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    pipe = tiny_pipeline(name)
    pipe.load_lora_weights(save_tiny_lora(pipe, tmp_path))
    canvas = finished(Sampler(load_model(pipe, window=16), runtime=cpu)).canvas
    expected = literal(pipe, num_inference_steps=4)
    assert error(canvas, expected) < 1e-5
    assert error(expected, literal(pipeline(name), num_inference_steps=4)) > 1e-2


def test_a_word_learned_by_textual_inversion_is_known(literal: Literal, cpu: Runtime, tmp_path: Path) -> None:
    pipe = tiny_pipeline("sd")
    before = literal(pipe, "a lake of <moss>", num_inference_steps=4)
    pipe.load_textual_inversion(save_tiny_embedding(pipe, tmp_path))
    canvas = finished(Sampler(load_model(pipe, window=16), runtime=cpu), "a lake of <moss>").canvas
    expected = literal(pipe, "a lake of <moss>", num_inference_steps=4)
    assert error(canvas, expected) < 1e-5
    assert error(expected, before) > 1e-3


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_an_ip_adapter_shows_its_picture_to_each_window(name: str, literal: Literal, cpu: Runtime, tmp_path: Path) -> None:
    pipe, picture = tiny_pipeline(name), Image.new("RGB", (16, 16), (200, 30, 60))
    before = literal(pipe, num_inference_steps=4)
    save_tiny_ip_adapter(pipe, tmp_path)
    pipe.load_ip_adapter(tmp_path, subfolder="", weight_name="ip-adapter.safetensors")
    sampler = Sampler(load_model(pipe, window=16), runtime=cpu)
    expected = literal(pipe, num_inference_steps=4, ip_adapter_image=picture)
    assert error(finished(sampler, ip_adapter_image=picture).canvas, expected) < 1e-5
    assert error(expected, before) > 1e-3
    assert finished(sampler, windows=(1, 2), ip_adapter_image=picture).canvas.isfinite().all()


def test_a_region_may_have_an_ip_adapter_picture_of_its_own(cpu: Runtime, tmp_path: Path) -> None:
    """Each half is the one that its text and its picture make alone, for the windows of the halves do not overlap."""
    pipe = tiny_pipeline("sdxl")
    save_tiny_ip_adapter(pipe, tmp_path)
    pipe.load_ip_adapter(tmp_path, subfolder="", weight_name="ip-adapter.safetensors")
    sampler = Sampler(load_model(pipe, window=16), runtime=cpu)
    red, blue = (Image.new("RGB", (16, 16), colour) for colour in ((200, 30, 60), (20, 40, 220)))
    blue.save(tmp_path / "blue.png")
    halves = Regions((Region((0.5, 0, 1, 1), "a lake", ip_adapter_image=str(tmp_path / "blue.png")),), "a lake")
    both = finished(sampler, halves, windows=(1, 2), stride=32, ip_adapter_image=red)
    left, right = (finished(sampler, "a lake", windows=(1, 2), stride=32, ip_adapter_image=picture) for picture in (red, blue))
    assert error(both.canvas[..., :16], left.canvas[..., :16]) < 1e-5
    assert error(both.canvas[..., 16:], right.canvas[..., 16:]) < 1e-5
    assert error(both.canvas[..., 16:], left.canvas[..., 16:]) > 1e-3
    assert both.recipe["prompt"]["regions"][0]["ip_adapter_image"] == str(tmp_path / "blue.png")
    assert both.recipe["hashes"].keys() == {"ip_adapter_image", "prompt.regions.0.ip_adapter_image"}
    with pytest.raises(SettingError, match="has an IP-Adapter: give ip_adapter_image=FILE"):
        sampler.plan(halves, height=32, width=64)
    with pytest.raises(SettingError, match="reads no ip_adapter_image: leave it out, or load an IP-Adapter"):
        Sampler(load_model(tiny_pipeline("sdxl"), window=16), runtime=cpu).plan("a lake", ip_adapter_image=red)


# --- gradients, ranks and checkpoints -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_gradients_are_those_of_finite_differences(name: str, pipeline: Made) -> None:
    """The steps are long, because FLUX turns its queries in float32, whatever the precision."""
    sampler = Sampler(load_model(pipeline(name), window=8), runtime=Runtime(accelerator="cpu", precision="64-true"))
    denoiser, runtime = sampler.model.denoiser, sampler.runtime
    grid, generator = Grid((8, 12), (8, 8), (4, 4), (False, False)), torch.Generator().manual_seed(0)
    x, toward, weight = torch.randn(3, 2, denoiser.channels, 8, 8, generator=generator, dtype=torch.float64)
    with torch.no_grad(), runtime.autocast():
        embeddings = denoiser.encode(Scene("a lake", "", denoiser.guidance_scale))
        level = solver(sampler.model).levels[1]
    condition = denoiser.condition(embeddings, grid, [0, 1])

    def energy(x: Tensor) -> Tensor:
        with runtime.autocast():
            return (weight * denoiser(x, level, condition)).sum()

    x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(energy(x), x)
    with torch.no_grad():
        near, far = ((energy(x + step * toward) - energy(x - step * toward)) / (2 * step) for step in (0.01, 0.02))
    torch.testing.assert_close((gradient * toward).sum(), (4 * near - far) / 3, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["sdxl", "flux", "wan"])
def test_ranks_make_the_same_bits(name: str, pipeline: Made, leave_to_sweeps: Leave) -> None:
    leave_to_sweeps(name == "sdxl")

    def canvas(runtime: Runtime) -> Tensor:
        sampler = Sampler(load_model(pipeline(name), window=8), guidances=[MSDGuidance()], runtime=runtime)
        return finished(sampler, windows=(2, 2), steps=2).canvas

    (one,) = VirtualRanks(1, 2).run(canvas)
    for other in VirtualRanks(2, 2).run(canvas):
        assert torch.equal(other, one)


@pytest.mark.parametrize("name", ["sd", "sana", "wan"])
def test_a_resumed_run_makes_the_same_bits(name: str, pipeline: Made, tmp_path: Path) -> None:
    """PNDM, DPM++ and UniPC remember earlier steps."""
    runtime, model = Runtime(accelerator="cpu"), load_model(pipeline(name), window=16)
    size = {"height": 16 * model.factor, "width": 24 * model.factor, "frames": 1}
    settings: dict[str, Any] = {**size, "steps": 5, "seed": SEED}
    for run in Sampler(model, runtime=runtime, callbacks=[Checkpoint(tmp_path / "a", 1)]).stream("a lake", **settings):
        if run.level.step == 3:
            break
    kept = Checkpoint(tmp_path / "a", resume=tmp_path / "a")
    steps = list(Sampler(model, runtime=runtime, callbacks=[kept]).stream("a lake", **settings))
    assert len(steps) < 4
    assert torch.equal(steps[-1].canvas, finished(Sampler(model, runtime=runtime), **settings).canvas)


# --- pictures -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sdxl", "StableDiffusionXLImg2ImgPipeline"),
        ("sd3", "StableDiffusion3Img2ImgPipeline"),
        ("flux", "FluxImg2ImgPipeline"),
    ],
)
def test_img2img_is_diffusers_own_at_one_window(name: str, kind: str, literal: Literal, cpu: Runtime) -> None:
    pipe = tiny_pipeline(name)
    model = load_model(pipe, window=16)
    picture = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    picture = torch.nn.functional.interpolate(picture[None], size=(32, 32), mode="bilinear")[0]
    settings: dict[str, Any] = {"strength": 0.6, "guidance_scale": 4.0}
    ours = finished(Sampler(model, runtime=cpu), image=picture, steps=10, **settings).canvas
    assert model.codec is not None
    latents = encode(model.codec, picture, (False, False))  # diffusers would draw noise to encode it
    other = getattr(diffusers, kind).from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    assert error(ours, literal(other, image=latents[None], num_inference_steps=10, **settings)) < 1e-5


# --- what cannot be -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "lacks"),
    [
        ("KandinskyV22CombinedPipeline", "a call of encode_prompt"),
        ("WuerstchenCombinedPipeline", "a call of encode_prompt"),
        ("DDPMPipeline", "an argument prompt"),
        ("IFPipeline", "an argument latents"),
    ],
)
def test_a_pipeline_that_cannot_be_driven_is_refused_with_what_it_lacks(kind: str, lacks: str) -> None:
    with pytest.raises(ModelError, match=rf"{kind} cannot be driven .* lacks .*{lacks}.*: use a pipeline that") as caught:
        require_drivable(getattr(diffusers, kind))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "sd",
            {"clip_skp": 1},
            r"no setting 'clip_skp', and the call of StableDiffusionPipeline has none: did you mean 'clip_skip'\?",
        ),
        ("sd", {"qqqqq": 1}, r"has none: see its documentation"),
        ("sd", {"num_inference_steps": 4}, "num_inference_steps .* is a setting of the sampler's call, steps: leave it out"),
        ("flux", {"guidance_scale": 2}, "guidance_scale of a pipeline's call is a setting of the sampler's call: leave it out"),
        ("flux", {"window": 9}, "window is 9: it must be a multiple of 2 cells; the nearest is 8"),
    ],
)
@pytest.mark.usefixtures("unannotated")
def test_settings_that_cannot_be_say_what_would(name: str, settings: dict[str, Any], message: str, pipeline: Made) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        load_model(pipeline(name), **settings)
    assert "\n" not in str(caught.value)


def test_what_the_pipeline_itself_refuses_is_a_line(pipeline: Made, cpu: Runtime) -> None:
    with pytest.raises(SettingError, match=r"SanaPipeline refuses what it is called with: .* divisible by 32") as caught:
        begun(Sampler(load_model(pipeline("sana"), window=8), runtime=cpu))
    assert "\n" not in str(caught.value)


def test_something_else_is_no_model() -> None:
    with pytest.raises(SettingError, match="the class StableDiffusionPipeline came as a model: give a name"):
        load_model(diffusers.StableDiffusionPipeline)
