"""Both sides of a comparison: models, runs of panokit, and diffusers' panorama pipeline around the same networks."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPanoramaPipeline, UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor

from panokit import DiffusersScheduler, Guidance, Model, Run, Runtime, Sampler, Training, load_model
from panokit.backbones.diffusers.codec import VAECodec
from panokit.backbones.diffusers.model import UNetDenoiser
from panokit.testing.tiny import tiny_model
from panokit_multidiffusion import MultiDiffusion

CELL = 8
"""Pixels of a cell: diffusers' panorama pipeline takes no other number, whatever its decoder does."""


class NullUNet(UNet2DConditionModel):
    """A network that returns its input."""

    def forward(
        self, sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, return_dict: bool = True, **_: Any
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        return UNet2DConditionOutput(sample) if return_dict else (sample,)


def null_model() -> Model:
    """Windows of 64 x 64 latents, and a network that costs nothing."""
    tiny = tiny_model(window=64)
    return with_unet(tiny, NullUNet.from_config(tiny.denoiser.unet.config), "null")


def small_model(window: int, widths: tuple[int, int, int, int]) -> Model:
    """Stable Diffusion 2's UNet with fewer channels and random weights, and the text encoder of `landscapes`.

    Args:
        window: cells of a window along each axis.
        widths: channels of the four blocks, multiples of 32; in Stable Diffusion 2 they are 320, 640, 1280 and 1280.
    """
    landscapes = load_model("landscapes")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=window,
            block_out_channels=widths,
            attention_head_dim=tuple(-(-width // 64) for width in widths),  # this many heads, despite its name
            cross_attention_dim=landscapes.denoiser.unet.config.cross_attention_dim,
            use_linear_projection=True,
        )
    return with_unet(landscapes, unet.eval().requires_grad_(False), "small")


def with_unet(model: Model, unet: UNet2DConditionModel, name: str) -> Model:
    """The model with another UNet, trained with Stable Diffusion's noise."""
    parts: UNetDenoiser = model.denoiser
    return Model(UNetDenoiser(unet, parts.text_encoder, parts.tokenizer, Training()), model.codec, name)


def begun(
    model: Model, guidances: Sequence[Guidance], height: int, width: int, stride: int | None = None, **runtime: Any
) -> Run:
    """Begin a run of 50 steps of DDIM. Unless `runtime` says otherwise, it denoises one window at a time.

    Args:
        model: what denoises.
        guidances: what moves the windows.
        height: pixels.
        width: pixels.
        stride: pixels from one window to the next; None for half of one.
        runtime: settings of `Runtime`.
    """
    sampler = Sampler(
        model,
        scheduler=DiffusersScheduler("ddim"),
        fuser=MultiDiffusion(),
        guidances=guidances,
        runtime=Runtime(accelerator="cpu", **{"micro_batch": 1, **runtime}),
    )
    return sampler.begin("a lake", height=height, width=width, stride=stride, steps=50, seed=0)


def first_pass(run: Run) -> Callable[[], Tensor]:
    """A function that makes the pass of the run's first step, guided and fused. It can be called many times."""

    def work() -> Tensor:
        with torch.no_grad():
            return run.pass_over(run.canvas, run.windows, run.guided, run.level).pred

    return work


def panorama(model: Model) -> StableDiffusionPanoramaPipeline:
    """diffusers' panorama pipeline around the networks of a model."""
    denoiser, codec = model.denoiser, model.codec
    assert isinstance(denoiser, UNetDenoiser)
    assert isinstance(codec, VAECodec)
    training = denoiser.training
    betas = {key: getattr(training, key) for key in ("beta_start", "beta_end", "beta_schedule")}
    pipeline = StableDiffusionPanoramaPipeline(
        vae=codec.vae,
        text_encoder=denoiser.text_encoder,
        tokenizer=denoiser.tokenizer,
        unet=denoiser.unet,
        scheduler=DDIMScheduler(
            **betas, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type=training.prediction
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.vae_scale_factor = CELL
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
