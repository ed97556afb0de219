"""Classifier-free guidance that ends before the run does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from panokit import Model, Region, Regions, Run, Runtime, Sampler, SettingError, load_model
from panokit.backbones.diffusers.model import UNetDenoiser
from panokit.errors import PromptWarning
from panokit.testing.families import save_tiny_ip_adapter, tiny_controlnet, tiny_pipeline


def finished(run: Run) -> Tensor:
    while not run.done:
        run.step()
    return run.canvas


def test_it_is_off_from_that_share_of_the_steps_on_and_spares_half_of_the_work(tiny: Model, cpu: Runtime) -> None:
    sampler = Sampler(tiny, runtime=cpu)
    assert isinstance(sampler.model.denoiser, UNetDenoiser)
    size = {"height": 16, "width": 32, "steps": 4, "seed": 1}
    rows: list[int] = []
    hook = sampler.model.denoiser.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))

    def latents(**settings: Any) -> list[Tensor]:
        run, canvases = sampler.begin("a lake", **size, **settings), []
        while not run.done:
            run.step()
            canvases.append(run.canvas)
        return canvases

    whole, half, none = latents(), latents(guidance_end=0.5), latents(guidance_end=0)
    hook.remove()
    assert rows == [6] * 4 + [6, 6, 3, 3] + [3] * 4
    assert all(torch.equal(one, other) for one, other in zip(whole[:2], half[:2], strict=True))
    torch.testing.assert_close(none[-1], latents(guidance_scale=1.0)[-1], rtol=0, atol=1e-5)
    assert not torch.allclose(half[-1], whole[-1], atol=1e-3)
    assert not torch.allclose(half[-1], none[-1], atol=1e-3)


@pytest.mark.parametrize("name", ["sdxl", "sd3", "z_image", "qwen_image"])
def test_a_pipeline_is_called_without_guidance(cpu: Runtime, name: str) -> None:
    """At 0 it is the picture of the strength that turns guidance off, also where that is 0."""
    sampler = Sampler(load_model(tiny_pipeline(name), window=16), runtime=cpu)
    off = 0.0 if name == "z_image" else 1.0
    canvases = [
        finished(sampler.begin("a lake", steps=2, guidance_scale=scale, guidance_end=end, negative_prompt=negative))
        for scale, end, negative in ((3.0, 0.0, "fog"), (off, 1.0, ""), (3.0, 1.0, "fog"))
    ]
    torch.testing.assert_close(canvases[0], canvases[1], rtol=0, atol=1e-5)
    assert not torch.allclose(canvases[0], canvases[2], atol=1e-4)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_a_picture_for_an_ip_adapter_still_counts(cpu: Runtime, tmp_path: Path, name: str) -> None:
    pipe = tiny_pipeline(name)
    save_tiny_ip_adapter(pipe, tmp_path)
    pipe.load_ip_adapter(tmp_path, subfolder="", weight_name="ip-adapter.safetensors")
    sampler = Sampler(load_model(pipe, window=16), runtime=cpu)
    red, blue = (Image.new("RGB", (16, 16), colour) for colour in ((200, 30, 60), (20, 40, 220)))

    def canvas(picture: Image.Image, prompt: Any = "a lake", width: int = 32, **settings: Any) -> Tensor:
        size = {"height": 32, "width": width, "stride": 32, "steps": 2}
        return finished(sampler.begin(prompt, **size, ip_adapter_image=picture, **settings))

    off = canvas(red, guidance_scale=1.0)
    torch.testing.assert_close(canvas(red, guidance_end=0, guidance_scale=3.0), off, rtol=0, atol=1e-5)
    assert not torch.allclose(canvas(blue, guidance_end=0, guidance_scale=3.0), off, atol=1e-3)
    halves = Regions(
        (Region((0, 0, 0.5, 1), "a lake", guidance_scale=3.0), Region((0.5, 0, 1, 1), "a lake", guidance_scale=1.0))
    )
    both, guided = canvas(red, halves, 64), canvas(red, "a lake", 64, guidance_scale=3.0)
    torch.testing.assert_close(both[..., :16], guided[..., :16], rtol=0, atol=1e-5)
    torch.testing.assert_close(both[..., 16:], canvas(red, "a lake", 64, guidance_scale=1.0)[..., 16:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_a_control_picture_still_counts(cpu: Runtime, name: str) -> None:
    sampler = Sampler(load_model(tiny_controlnet(name), window=16), runtime=cpu)
    picture = torch.rand(3, 32, 64, generator=torch.Generator().manual_seed(0))

    def canvas(**settings: Any) -> Tensor:
        side = 16 * sampler.model.factor
        size = {"height": side, "width": 2 * side, "stride": side, "steps": 2}
        return finished(sampler.begin(settings.pop("prompt", "a lake"), **size, control_image=picture, **settings))

    ended, off = canvas(guidance_end=0, guidance_scale=3.0), canvas(guidance_scale=1.0)
    torch.testing.assert_close(ended, off, rtol=0, atol=1e-5)
    assert canvas(guidance_end=0.5, guidance_scale=3.0).isfinite().all()
    halves = Regions(
        (Region((0, 0, 0.5, 1), "a lake", guidance_scale=3.0), Region((0.5, 0, 1, 1), "a lake", guidance_scale=1.0))
    )
    torch.testing.assert_close(canvas(prompt=halves)[..., 16:], off[..., 16:], rtol=0, atol=1e-5)


def test_where_guidance_is_an_input_of_the_network_it_has_no_effect_and_says_so(cpu: Runtime) -> None:
    sampler = Sampler(load_model(tiny_pipeline("flux"), window=16), runtime=cpu)
    whole = finished(sampler.begin("a lake", steps=2))
    with pytest.warns(PromptWarning, match="guidance_end has no effect"):
        ended = finished(sampler.begin("a lake", steps=2, guidance_end=0.5))
    assert torch.equal(whole, ended)


def test_regions_end_together(tiny: Model, cpu: Runtime) -> None:
    regions = Regions((Region((0, 0, 0.5, 1), "a lake", guidance_scale=3.0),), "fog")
    size: dict[str, Any] = {"height": 16, "width": 64, "steps": 2}
    ended = finished(Sampler(tiny, runtime=cpu).begin(regions, **size, guidance_end=0))
    plain = Regions((Region((0, 0, 0.5, 1), "a lake", guidance_scale=1.0),), "fog")
    off = finished(Sampler(tiny, runtime=cpu).begin(plain, **size, guidance_scale=1.0))
    torch.testing.assert_close(ended, off, rtol=0, atol=1e-5)


@pytest.mark.parametrize("end", [-0.1, 1.5, float("nan")])
def test_what_is_no_share_is_refused(tiny: Model, cpu: Runtime, end: float) -> None:
    with pytest.raises(SettingError, match=r"guidance_end is .*: it is a share of the steps, from 0 to 1"):
        Sampler(tiny, runtime=cpu).plan("a lake", guidance_end=end)
