"""MultiDiffusion against a literal loop written from the paper, and against diffusers' own pipeline for panoramas."""

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Literal

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, LMSDiscreteScheduler, StableDiffusionPanoramaPipeline
from diffusers.utils import logging
from torch import Tensor

from panokit import DiffusersScheduler, Model, Runtime, Sampler
from panokit.backbones.diffusers.codec import VAECodec
from panokit.backbones.diffusers.model import UNetDenoiser
from panokit.testing.tiny import tiny_model
from panokit_multidiffusion import MultiDiffusion

PROMPT, NEGATIVE = "a lake", "fog"
WINDOW = 8  # cells of the tiny model's windows
FACTOR = 2  # pixels a cell of it is wide
SEED = 5


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
SCHEDULERS = {
    "ddim": partial(DDIMScheduler, **BETAS, **LEADING, clip_sample=False, set_alpha_to_one=False),
    "lms": partial(LMSDiscreteScheduler, **BETAS, **LEADING),
    "dpm++_2m": partial(DPMSolverMultistepScheduler, **BETAS),
}
"""Stable Diffusion's schedulers, made with diffusers alone."""


def parts(model: Model) -> tuple[UNetDenoiser, VAECodec]:
    assert isinstance(model.denoiser, UNetDenoiser)
    assert isinstance(model.codec, VAECodec)
    return model.denoiser, model.codec


def noise(size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """A seed's first draw, as documented."""
    return torch.randn((4, *size), generator=torch.Generator().manual_seed(SEED)).to(dtype)


def sampled(
    model: Model,
    scheduler: str,
    runtime: Runtime,
    size: tuple[int, int],
    stride: int,
    steps: int,
    scale: float,
    wrap: bool | Literal["x", "xy"],
) -> Tensor:
    """panokit's canvas, from the call that a user writes."""
    sampler = Sampler(model, scheduler=DiffusersScheduler(scheduler), fuser=MultiDiffusion("uniform"), runtime=runtime)
    run = sampler.begin(
        PROMPT,
        negative_prompt=NEGATIVE,
        height=FACTOR * size[0],
        width=FACTOR * size[1],
        stride=FACTOR * stride,
        wrap=wrap,
        steps=steps,
        guidance_scale=scale,
        seed=SEED,
    )
    while not run.done:
        run.step()
    return run.canvas


def relative(canvas: Tensor, expected: Tensor) -> float:
    return float((canvas - expected).abs().max() / expected.abs().max())


def embedding(model: Model, text: str) -> Tensor:
    denoiser, _ = parts(model)
    tokens = denoiser.tokenizer(text, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    return denoiser.text_encoder(tokens.input_ids)[0]


@torch.no_grad()
def literal_multidiffusion(
    model: Model, canvas: Tensor, rows: list[int], columns: list[int], steps: int, scale: float
) -> Tensor:
    """Bar-Tal et al. 2023, algorithm 1 and eq. 5 with W = 1: step every window; a cell is the mean of its windows."""
    unet = parts(model)[0].unet
    positive, negative = embedding(model, PROMPT), embedding(model, NEGATIVE)
    scheduler = SCHEDULERS["ddim"]()
    scheduler.set_timesteps(steps)
    height, width = canvas.shape[1:]
    for t in scheduler.timesteps:
        value, count = torch.zeros_like(canvas), torch.zeros_like(canvas)
        for top, left in product(rows, columns):
            y = [[(top + k) % height] for k in range(WINDOW)]
            x = [(left + k) % width for k in range(WINDOW)]
            window = canvas[:, y, x][None]
            prediction = unet(window, t, positive).sample
            if scale > 1:
                unconditional = unet(window, t, negative).sample
                prediction = unconditional + scale * (prediction - unconditional)
            value[:, y, x] += scheduler.step(prediction, t, window).prev_sample[0]
            count[:, y, x] += 1
        canvas = value / count
    return canvas


@pytest.mark.parametrize(
    ("size", "stride", "wrap", "scale", "rows", "columns"),
    [
        ((8, 20), 4, False, 1.0, [0], [0, 4, 8, 12]),  # a strip, without classifier-free guidance
        ((8, 20), 4, False, 7.5, [0], [0, 4, 8, 12]),
        ((8, 21), 4, False, 7.5, [0], [0, 4, 8, 12, 13]),  # the stride does not divide: the last window is clamped
        ((12, 16), 4, False, 7.5, [0, 4], [0, 4, 8]),
        ((13, 11), 3, False, 7.5, [0, 3, 5], [0, 3]),  # odd sizes, an odd stride
        ((9, 17), 8, False, 7.5, [0, 1], [0, 8, 9]),  # a stride of one window
        ((8, 16), 4, "x", 7.5, [0], [0, 4, 8, 12]),  # a ring
        ((8, 13), 5, "x", 7.5, [0], [0, 5, 10]),  # a ring that the stride does not divide
        ((8, 8), 4, "x", 7.5, [0], [0, 4]),  # a ring as long as a window
        ((11, 13), 5, "xy", 7.5, [0, 5, 10], [0, 5, 10]),  # both ways round
    ],
)
def test_multidiffusion_is_the_papers_loop(
    size: tuple[int, int],
    stride: int,
    wrap: Literal[False, "x", "xy"],
    scale: float,
    rows: list[int],
    columns: list[int],
) -> None:
    model, steps = tiny_model(dtype=torch.float64), 3
    runtime = Runtime(accelerator="cpu", precision="64-true", micro_batch=3)
    canvas = sampled(model, "ddim", runtime, size, stride, steps, scale, wrap)
    start = noise(size, torch.float64)
    expected = literal_multidiffusion(model, start, rows, columns, steps, scale)
    assert canvas.dtype == torch.float64
    assert relative(start, expected) > 0.1  # something happened
    assert relative(canvas, expected) <= 1e-9


class TinyWindows(StableDiffusionPanoramaPipeline):
    """Its stride and window are no arguments of a call."""

    def get_views(self, height: int, width: int, circular_padding: bool) -> list[tuple[int, int, int, int]]:
        return super().get_views(height, width, window_size=WINDOW, stride=4, circular_padding=circular_padding)


@pytest.fixture
def _deprecated() -> Iterator[None]:
    """The log is silent about the pipeline's age, which is known."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(verbosity)


@pytest.mark.usefixtures("_deprecated")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers, in set_timesteps
@pytest.mark.parametrize(
    ("name", "size", "circular", "scale"),
    [
        ("ddim", (8, 24), False, 1.0),
        ("ddim", (8, 24), False, 7.5),
        ("ddim", (16, 20), False, 7.5),
        ("ddim", (8, 24), True, 1.0),
        ("ddim", (8, 24), True, 7.5),
        ("dpm++_2m", (8, 16), True, 7.5),
        ("lms", (8, 16), False, 7.5),
    ],
)
def test_multidiffusion_is_diffusers_own_panorama(name: str, size: tuple[int, int], circular: bool, scale: float) -> None:
    """Within what that pipeline can do: one prompt, a stride that divides, a ring along a strip alone."""
    model, steps = tiny_model(), 4
    canvas = sampled(model, name, Runtime(accelerator="cpu", micro_batch=1), size, 4, steps, scale, circular)
    denoiser, codec = parts(model)
    pipeline = TinyWindows(
        vae=codec.vae,
        text_encoder=denoiser.text_encoder,
        tokenizer=denoiser.tokenizer,
        unet=denoiser.unet,
        scheduler=SCHEDULERS[name](),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.vae_scale_factor = 8  # its views are in cells of 8 pixels, whatever the codec
    pipeline.set_progress_bar_config(disable=True)
    (expected,) = pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        height=8 * size[0],
        width=8 * size[1],
        num_inference_steps=steps,
        guidance_scale=scale,
        circular_padding=circular,
        latents=noise(size, torch.float32)[None],
        output_type="latent",
    ).images
    assert relative(noise(size, torch.float32), expected) > 0.1  # something happened
    assert relative(canvas, expected) <= 1e-5
