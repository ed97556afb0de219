"""Control pictures: each window is shown its part, and one window is the pipeline's own picture."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from panokit import Grid, Model, Runtime, Sampler, Scene, load_model
from panokit.backbones.diffusers.codec import VAECodec
from panokit.backbones.diffusers.pipeline import PipelineDenoiser
from panokit.errors import SettingError
from panokit.testing.families import CONTROLNETS, tiny_controlnet, tiny_pipeline
from panokit_msd import MSDGuidance
from panokit_syncdiffusion import SyncDiffusion

WINDOW = 16
ARGUMENTS = {"sd": "image", "sd2": "image", "sdxl": "image", "sd3": "control_image", "flux": "control_image"}


@pytest.fixture(autouse=True)
def _without_noise(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The pipelines of SD3 and FLUX encode their control picture with noise of torch's global generator. Here they do not."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mean)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array", DeprecationWarning)  # diffusers, in set_timesteps
        yield


def noise_picture(height: int, width: int) -> Image.Image:
    pixels = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def made(name: str) -> tuple[Any, Model]:
    pipe = tiny_controlnet(name)
    return pipe, load_model(pipe, window=WINDOW)


@pytest.mark.parametrize("name", CONTROLNETS)
def test_one_window_is_the_pipelines_own_picture(name: str, cpu: Runtime, literal: Callable[..., Tensor]) -> None:
    pipe, model = made(name)
    side = WINDOW * model.factor
    picture = noise_picture(side, side)
    own = literal(pipe, cells=WINDOW, num_inference_steps=4, **{ARGUMENTS[name]: picture})
    latents = Sampler(model, runtime=cpu)("a lake", height=side, width=side, steps=4, seed=3, control_image=picture).latents
    assert float((latents - own).abs().max() / own.abs().max()) < 1e-5


@pytest.mark.parametrize("name", CONTROLNETS)
def test_the_picture_steers_and_comes_as_a_file_or_a_tensor(name: str, cpu: Runtime, tmp_path: Any) -> None:
    _, model = made(name)
    side, sampler = WINDOW * model.factor, Sampler(model, runtime=cpu)
    picture = noise_picture(side, 2 * side)
    picture.save(tmp_path / "edges.png")
    pixels = pil_to_tensor(picture) / 255
    settings = {"height": side, "width": 2 * side, "steps": 2}
    one, file, tensor, other = (
        sampler("a lake", **settings, control_image=source)
        for source in (picture, str(tmp_path / "edges.png"), pixels, 1 - pixels)
    )
    assert torch.equal(one.latents, file.latents)
    assert torch.equal(one.latents, tensor.latents)
    assert not torch.allclose(one.latents, other.latents, rtol=1e-3)
    assert file.recipe["control_image"] == str(tmp_path / "edges.png")
    assert tensor.recipe["control_image"].startswith("sha256:")
    assert file.recipe["hashes"].keys() == {"control_image"}


def handed(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """A list that will hold the pictures that the pipeline is handed, call by call."""
    denoiser, pictures = model.denoiser, []
    assert isinstance(denoiser, PipelineDenoiser)
    predict = denoiser._driven.predict

    def noting(*args: Any, **options: Any) -> Tensor:
        pictures.append(options[str(denoiser._control)])
        return predict(*args, **options)

    monkeypatch.setattr(denoiser._driven, "predict", noting)
    return pictures


@pytest.mark.parametrize(("name", "signed"), [("sdxl", False), ("flux", True)])
def test_each_window_is_handed_its_crop_also_over_the_join_of_a_ring(
    name: str, signed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model = made(name)
    denoiser, factor = model.denoiser, model.factor
    picture = torch.rand(3, WINDOW * factor, 2 * WINDOW * factor, generator=torch.Generator().manual_seed(0))
    grid = Grid((WINDOW, 2 * WINDOW), (WINDOW, WINDOW), (WINDOW, WINDOW // 2), (False, True))
    level = denoiser.training.own(4, torch.device("cpu")).levels[0] if denoiser.training.own else None
    assert level is not None
    embeddings = denoiser.encode(Scene("a lake", "", denoiser.guidance_scale, {"control_image": picture}))
    pictures = handed(model, monkeypatch)
    with torch.no_grad():
        denoiser(torch.zeros(4, denoiser.channels, WINDOW, WINDOW), level, denoiser.condition(embeddings, grid, range(4)))
    ring = torch.cat([picture, picture], dim=2)
    starts = [k * WINDOW // 2 * factor for k in range(4)]
    crops = torch.stack([ring[..., start : start + WINDOW * factor] for start in starts])
    torch.testing.assert_close(pictures[0], crops * 2 - 1 if signed else crops)


def test_windows_of_a_smaller_canvas_are_handed_more_of_the_picture(cpu: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = made("sdxl")
    side = WINDOW * model.factor
    shades = torch.linspace(0, 1, 2 * side).expand(3, 2 * side, 2 * side)  # darker to the left
    sampler = Sampler(model, guidances=[MSDGuidance(head_start=0.0)], runtime=cpu)
    pictures = handed(sampler.model, monkeypatch)
    sampler("a lake", height=2 * side, width=2 * side, steps=2, control_image=shades)
    whole = [picture for picture in pictures if len(picture) == 1]
    assert whole
    assert whole[0].shape[-2:] == (side, side)
    assert float(whole[0].amax() - whole[0].amin()) > 0.95
    assert all(float(picture[0].amax() - picture[0].amin()) < 0.6 for picture in pictures if len(picture) > 1)


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_a_picture_is_encoded_once_for_each_window(name: str, cpu: Runtime) -> None:
    _, model = made(name)
    side = WINDOW * model.factor
    sampler = Sampler(model, runtime=cpu)
    encoded: list[int] = []
    codec = sampler.model.codec
    assert isinstance(codec, VAECodec)
    vae = codec.vae
    encode = vae.encode
    vae.encode = lambda pixels, **options: (encoded.append(len(pixels)), encode(pixels, **options))[1]
    sampler("a lake", height=side, width=3 * side, steps=4, control_image=noise_picture(side, 3 * side))
    rehearsals, run = encoded[:2], encoded[2:]  # one window each, to encode the text and to set the scheduler
    assert rehearsals == [1, 1]
    assert sum(run) in (5, 2 * 5)  # twice for a pipeline that doubles the batch for its guidance before it encodes


@pytest.mark.parametrize("name", CONTROLNETS)
def test_it_goes_with_guidances_on_a_ring(name: str, cpu: Runtime) -> None:
    _, model = made(name)
    side = WINDOW * model.factor
    sampler = Sampler(model, guidances=[MSDGuidance(), SyncDiffusion(weight=0.1)], runtime=cpu)
    picture = noise_picture(2 * side, 4 * side)
    made_of = sampler("a lake", height=2 * side, width=4 * side, steps=2, wrap=True, control_image=picture)
    assert made_of.latents.isfinite().all()


def test_a_picture_that_cannot_be_used_says_why(cpu: Runtime) -> None:
    _, model = made("sd")
    side, sampler = WINDOW * model.factor, Sampler(model, runtime=cpu)
    with pytest.raises(SettingError, match="needs a control_image: give control_image=FILE"):
        sampler("a lake", height=side, width=side, steps=2)
    with pytest.raises(SettingError, match="the control_image of 32 x 96 pixels has another shape than the canvas of 32 x 32"):
        sampler("a lake", height=side, width=side, steps=2, control_image=noise_picture(96, 32))
    plain = Sampler(load_model(tiny_pipeline("sd"), window=WINDOW), runtime=cpu)
    with pytest.raises(SettingError, match="reads no control_image: leave it out, or use a model with a ControlNet"):
        plain("a lake", height=side, width=side, steps=2, control_image=noise_picture(side, side))
