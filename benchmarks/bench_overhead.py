"""The cost of the framework without the network: CPU time for each window and step, compared with diffusers' panorama pipeline.

The network returns its input at no cost. So the time goes to cropping, batching, fusion and the solver. Both sides run in turns
in one process, on one thread, with the same 25 windows: 64 x 256 latents, window 64, stride 8, which diffusers' pipeline
requires. A UNet that is called directly must cost a fraction. A pipeline that is driven one noise level at a time repeats what
it does at the start of each call, and must not cost more than diffusers' panorama pipeline. The first step of each run is not
measured, because it sets things up.
"""

import time
from typing import Any

import pytest
from diffusers import StableDiffusionPanoramaPipeline, StableDiffusionPipeline

from measuring import Bench, in_turns
from panokit import DiffusersScheduler, Model, Runtime, Sampler, load_model
from panokit_multidiffusion import MultiDiffusion
from sides import CELL, null_model, panorama

HEIGHT, WIDTH, WINDOWS = 64, 256, 25


@pytest.fixture(scope="module")
def null() -> Model:
    return null_model()


@pytest.fixture(scope="module")
def pipeline(null: Model) -> StableDiffusionPanoramaPipeline:
    pipeline = panorama(null)
    assert len(pipeline.get_views(HEIGHT * CELL, WIDTH * CELL)) == WINDOWS
    return pipeline


@pytest.fixture(scope="module")
def driven(pipeline: StableDiffusionPanoramaPipeline) -> Model:
    """The same network through Stable Diffusion's own pipeline, one noise level at a time."""
    parts = {**pipeline.components, "image_encoder": None}
    return load_model(StableDiffusionPipeline(**parts, requires_safety_checker=False), window=64)


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
        height=HEIGHT * CELL,
        width=WIDTH * CELL,
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
    bench: Bench,
    request: pytest.FixtureRequest,
    pipeline: StableDiffusionPanoramaPipeline,
    model: str,
    batch: int,
    bar: float,
    scale: float,
) -> None:
    null = request.getfixturevalue(model)
    pairs, steps = (15, 21) if bench.enabled else (27, 5)  # many: a busy machine disturbs a median of few
    turns = in_turns(
        pairs,
        lambda: ours(null, batch, scale, steps),
        lambda: theirs(pipeline, batch, scale, steps),
        enough=lambda turns, pairs: not bench.enabled and pairs >= 5 and turns.ratio <= 0.9 * bar,
    )
    how = "a UNet" if model == "null" else "a pipeline of diffusers, driven"
    bench.record(
        "P2",
        f"the framework's time for a window and step: {how}, {batch} at once, {'with' if scale > 1 else 'without'} CFG",
        turns.ratio,
        f"of diffusers' time ({1e6 * turns.ours:.0f} µs)",
        most=bar,
        peer=f"{1e6 * turns.theirs:.0f} µs",
        always=True,
    )
