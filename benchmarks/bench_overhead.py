"""The cost of the framework without the network: CPU time for each window and step, compared with diffusers' panorama pipeline.

The network returns its input at no cost. So the time goes to cropping, batching, fusion and the solver. Both sides run in turns
in one process, on one thread, with the same 25 windows: 64 x 256 latents, window 64, stride 8, which diffusers' pipeline
requires. A UNet that is called directly must cost a fraction. A pipeline that is driven one noise level at a time repeats what
it does at the start of each call, and must not cost more than diffusers' panorama pipeline. The first step of each run is not
measured, because it sets things up. `pytest benchmarks --benchmark-enable -s` prints the table.
"""

import gc
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import jaxtyping
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPanoramaPipeline, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from diffusers.utils import logging
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from panokit import DiffusersScheduler, Model, Runtime, Sampler, load_model
from panokit.backbones.diffusers.codec import VAECodec
from panokit.backbones.diffusers.model import UNetDenoiser
from panokit.testing.tiny import tiny_model
from panokit_multidiffusion import MultiDiffusion

HEIGHT, WIDTH, WINDOWS = 64, 256, 25


class NullUNet(UNet2DConditionModel):
    """A network that returns its input."""

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


@pytest.fixture(scope="module")
def driven(pipeline: StableDiffusionPanoramaPipeline) -> Model:
    """The same network through Stable Diffusion's own pipeline, one noise level at a time."""
    parts = {**pipeline.components, "image_encoder": None}
    return load_model(StableDiffusionPipeline(**parts, requires_safety_checker=False), window=64)


@pytest.fixture(autouse=True)
def _as_a_user_runs_it() -> Iterator[None]:
    """Run on one thread, with a silent log, and without the checks of annotations that tests add."""
    threads, verbosity = torch.get_num_threads(), logging.get_verbosity()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    checks = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", checks)
    logging.set_verbosity(verbosity)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pipeline(null: Model) -> StableDiffusionPanoramaPipeline:
    denoiser, codec = null.denoiser, null.codec
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
    pipeline.vae_scale_factor = 8  # its views are measured in cells of 8 pixels for any codec
    pipeline.set_progress_bar_config(disable=True)
    assert len(pipeline.get_views(HEIGHT * 8, WIDTH * 8)) == WINDOWS
    return pipeline


def ours(model: Model, batch: int, scale: float, steps: int) -> float:
    """Seconds for each window and step in panokit."""
    runtime = Runtime(accelerator="cpu", micro_batch=batch)
    sampler = Sampler(model, scheduler=DiffusersScheduler("ddim"), fuser=MultiDiffusion(), runtime=runtime)
    run = sampler.begin("", height=HEIGHT * 2, width=WIDTH * 2, stride=16, steps=steps, guidance_scale=scale)
    assert len(run.windows) == WINDOWS
    run.step()
    start = time.process_time()
    while not run.done:
        run.step()
    return (time.process_time() - start) / ((steps - 1) * WINDOWS)


def theirs(pipeline: StableDiffusionPanoramaPipeline, batch: int, scale: float, steps: int) -> float:
    """Seconds for each window and step in diffusers' pipeline."""
    ends: list[float] = []

    def note(pipeline: Any, step: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        ends.append(time.process_time())
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


@pytest.mark.parametrize(
    ("model", "batch", "bar"),
    [("null", 1, 1 / 3), ("null", 8, 1 / 2), ("driven", 1, 1), ("driven", 8, 1)],
    ids=["UNet, batch 1", "UNet, batch 8", "pipeline, batch 1", "pipeline, batch 8"],
)
@pytest.mark.parametrize("scale", [1.0, 7.5], ids=["plain", "cfg"])
def test_overhead_is_a_fraction_of_diffusers(
    benchmark: BenchmarkFixture,
    request: pytest.FixtureRequest,
    pipeline: StableDiffusionPanoramaPipeline,
    model: str,
    batch: int,
    bar: float,
    scale: float,
) -> None:
    null = request.getfixturevalue(model)
    pairs, steps = (27, 5) if benchmark.disabled else (15, 21)  # many: a busy machine disturbs a median of few
    timed: list[tuple[float, float]] = []

    def ratio() -> float:
        return median(own / other for own, other in timed)

    def clear() -> bool:
        """Whether the ratio is clearly below its bar, so that a test needs no more pairs."""
        return benchmark.disabled and len(timed) >= 5 and ratio() <= 0.9 * bar

    gc.collect()
    gc.disable()  # as timeit does: a collection also visits what earlier tests have left, and would count for one side
    try:
        while len(timed) < pairs and not clear():
            timed.append((ours(null, batch, scale, steps), theirs(pipeline, batch, scale, steps)))
    finally:
        gc.enable()
    own, other = (1e6 * median(side) for side in zip(*timed, strict=True))
    benchmark.extra_info |= {"panokit us": own, "diffusers us": other, "ratio": ratio()}
    print(
        f"\n{model}, batch {batch}, scale {scale}: {own:.0f} us, diffusers {other:.0f} us, ratio {ratio():.2f}, bar {bar:.2f}"
    )
    benchmark.pedantic(ours, (null, batch, scale, steps))
    assert ratio() <= bar
