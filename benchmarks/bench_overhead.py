"""What the framework costs beside the network: CPU time a window and step, against diffusers' pipeline for panoramas.

The network returns its input at no cost, so all that is left is cropping, batching, guidance-free bookkeeping, fusion and the
solver. Both sides run in one process in turns, on one thread, over the same 25 windows (64 x 256 latents, window 64, stride 8,
which is what diffusers' pipeline is fixed to); the first step of each run is left out, and with it everything that is set up.
`pytest benchmarks --benchmark-enable -s` prints the table.
"""

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPanoramaPipeline, UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from diffusers.utils import logging
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from panokit import DiffusersScheduler, Model, Runtime, Sampler
from panokit.backbones.diffusers.model import UNetDenoiser, VAECodec
from panokit.testing.tiny import tiny_model
from panokit_multidiffusion import MultiDiffusion

HEIGHT, WIDTH, WINDOWS = 64, 256, 25
Clock = Callable[[], float]


class NullUNet(UNet2DConditionModel):
    """Returns its input."""

    def forward(
        self, sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, return_dict: bool = True, **_: Any
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        return UNet2DConditionOutput(sample) if return_dict else (sample,)


@pytest.fixture(scope="module")
def null() -> Model:
    tiny = tiny_model(window=64)
    assert isinstance(tiny.denoiser, UNetDenoiser)
    parts = tiny.denoiser
    unet = NullUNet.from_config(parts.unet.config)
    return Model(UNetDenoiser(unet, parts.text_encoder, parts.tokenizer, parts.training), tiny.codec, "null")


@pytest.fixture(autouse=True)
def _one_quiet_thread() -> Iterator[None]:
    threads, verbosity = torch.get_num_threads(), logging.get_verbosity()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    yield
    torch.set_num_threads(threads)
    logging.set_verbosity(verbosity)


def ours(model: Model, batch: int, scale: float, steps: int, clock: Clock) -> float:
    """Seconds a window and step in panokit."""
    sampler = Sampler(
        model,
        scheduler=DiffusersScheduler("ddim"),
        fuser=MultiDiffusion(),
        runtime=Runtime(accelerator="cpu", micro_batch=batch),
    )
    run = sampler.begin("", height=HEIGHT * 2, width=WIDTH * 2, stride=16, steps=steps, guidance_scale=scale)
    assert len(run.grid) == WINDOWS
    run.step()
    start = clock()
    while not run.done:
        run.step()
    return (clock() - start) / ((steps - 1) * WINDOWS)


def theirs(model: Model, batch: int, scale: float, steps: int, clock: Clock) -> float:
    """Seconds a window and step in diffusers' pipeline."""
    denoiser, codec = model.denoiser, model.codec
    assert isinstance(denoiser, UNetDenoiser)
    assert isinstance(codec, VAECodec)
    pipeline = StableDiffusionPanoramaPipeline(
        vae=codec.vae,
        text_encoder=denoiser.text_encoder,
        tokenizer=denoiser.tokenizer,
        unet=denoiser.unet,
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.vae_scale_factor = 8
    pipeline.set_progress_bar_config(disable=True)
    assert len(pipeline.get_views(HEIGHT * 8, WIDTH * 8)) == WINDOWS
    ends: list[float] = []

    def note(pipeline: Any, step: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        ends.append(clock())
        return kwargs

    pipeline(
        "",
        height=HEIGHT * 8,
        width=WIDTH * 8,
        num_inference_steps=steps,
        guidance_scale=scale,
        view_batch_size=batch,
        output_type="latent",
        callback_on_step_end=note,
    )
    return (ends[-1] - ends[0]) / ((steps - 1) * WINDOWS)


@pytest.mark.parametrize(("batch", "bar"), [(1, 1 / 3), (8, 1 / 2)])
@pytest.mark.parametrize("scale", [1.0, 7.5], ids=["plain", "cfg"])
def test_overhead_is_a_fraction_of_diffusers(
    benchmark: BenchmarkFixture, null: Model, batch: int, bar: float, scale: float
) -> None:
    pairs, steps = (3, 4) if benchmark.disabled else (9, 11)
    timed = [
        (ours(null, batch, scale, steps, time.process_time), theirs(null, batch, scale, steps, time.process_time))
        for _ in range(pairs)
    ]
    ratio = median(one / other for one, other in timed)
    mine, other = (1e6 * median(side) for side in zip(*timed, strict=True))
    benchmark.extra_info |= {"panokit us": mine, "diffusers us": other, "ratio": ratio}
    print(f"\nbatch {batch}, scale {scale}: panokit {mine:.0f} us, diffusers {other:.0f} us, ratio {ratio:.3f}")
    benchmark.pedantic(ours, (null, batch, scale, 2, time.process_time), rounds=1)
    assert ratio <= bar
