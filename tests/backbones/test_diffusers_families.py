"""Every family of diffusers, driven through its own pipeline: one window is the pipeline itself, and many go together."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from panokit import Grid, Guidance, Model, Region, Regions, Runtime, Sampler, Scene, load_model
from panokit.testing.families import FAMILIES, tiny_pipeline
from panokit_msd import HeadStart, MSDGuidance
from panokit_syncdiffusion import SyncDiffusion

SEED = 3
CITY = "Zebras in the wide streets of an old city, at night"
TEXTS = Regions((Region((0, 0, 0.4, 1), "a lake"), Region((0.6, 0, 1, 1), CITY)), "fog")
Literal = Callable[..., Tensor]
Made = Callable[..., Any]
Leave = Callable[[bool], None]

pytestmark = pytest.mark.filterwarnings(
    "ignore:the prompt has:panokit.errors.PromptWarning",  # miniatures read little
    "ignore:the negative prompt has no effect:panokit.errors.PromptWarning",
)
every_family = pytest.mark.parametrize("name", FAMILIES)


def left_out(name: str, first: int) -> bool:
    """Whether a family is one of the three of four that are left to sweeps; the first that stays is the one at a place."""
    return [*FAMILIES].index(name) % 4 != first


def cells(name: str) -> int:
    """The side of a small window. Sana's pipeline makes no picture below 32 pixels."""
    return 16 if name == "sana" else 8


def finished(sampler: Sampler, prompt: Any = "a lake", *, windows: tuple[float, float] = (1, 1), **settings: Any) -> Any:
    """A run at its end, on a canvas of so many windows along each axis."""
    window = sampler.model.denoiser.window[-2:]  # also of a model of films, which makes pictures here
    size = (int(many * side) * sampler.model.factor for many, side in zip(windows, window, strict=True))
    settings = {**dict(zip(("height", "width"), size, strict=True)), "frames": 1, "seed": SEED, "steps": 2, **settings}
    run = sampler.begin(prompt, **settings)
    while not run.done:
        run.step()
    return run


def error(x: Tensor, y: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((x - y).abs().max() / y.abs().max())


@pytest.fixture(scope="module")
def model(pipeline: Made) -> Made:
    """A family's model, with windows of 16 x 16 cells unless other ones are asked for."""
    return lambda name, window=16: load_model(pipeline(name), window=window)


# --- one window -----------------------------------------------------------------------------------------------


def calls(model: Model, name: str, sweeps: bool) -> list[tuple[int, dict[str, Any]]]:
    """Steps and arguments: with guidance and without, with a negative prompt where the pipeline takes one."""
    denoiser: Any = model.denoiser
    off = {denoiser._arguments.guidance: 0.0 if name in ("z_image", "krea2") else 1.0}
    against = {"negative_prompt": "fog, rain"} if "negative_prompt" in denoiser._arguments._takes else {}
    every = [(steps, options) for steps in (4, 8) for options in ({}, off, against, {**against, **off})]
    return every if sweeps else [(3, against), (2, off)]


@every_family
def test_one_window_is_the_pipelines_own(
    name: str, pipeline: Made, model: Made, literal: Literal, cpu: Runtime, sweeps: bool
) -> None:
    sampler = Sampler(model(name), runtime=cpu)
    for steps, options in calls(sampler.model, name, sweeps):
        ours = {"guidance_scale" if "scale" in key else key: value for key, value in options.items()}
        run = finished(sampler, steps=steps, **ours)
        assert error(run.canvas, literal(pipeline(name), num_inference_steps=steps, **options)) < 1e-5
        if sweeps or steps == 2:
            picture = literal(pipeline(name), num_inference_steps=steps, pixels=True, **options)
            torch.testing.assert_close(sampler.decode(run).clamp(0, 1), picture, rtol=0, atol=1e-5)


@every_family
def test_without_settings_a_sampler_paints_what_the_pipeline_paints(
    name: str, pipeline: Made, literal: Literal, sweeps: bool, leave_to_sweeps: Leave
) -> None:
    """A window is as large as the pipeline's own picture; those that are large in the miniature too are left to sweeps."""
    leave_to_sweeps(left_out(name, 0))
    sampler = Sampler(pipeline(name), runtime=Runtime(accelerator="cpu"))
    if max(sampler.model.denoiser.window) > (128 if sweeps else 16):
        sampler = Sampler(load_model(pipeline(name), window=cells(name)), runtime=sampler.runtime)
        own: dict[str, Any] = {"cells": cells(name)}
    else:
        own = {"height": None, "width": None, "cells": sampler.model.denoiser.window[-1]}
    if name == "sana":
        own |= {"height": 32, "width": 32}
    picture = literal(pipeline(name), num_inference_steps=2, pixels=True, **own)
    torch.testing.assert_close(sampler.decode(finished(sampler)).clamp(0, 1), picture, rtol=0, atol=1e-5)


# --- many windows ---------------------------------------------------------------------------------------------


@every_family
def test_windows_are_denoised_alike_in_any_company(name: str, model: Made, sweeps: bool) -> None:
    denoiser = model(name).denoiser
    grid = Grid((16, 48), (16, 16), (8, 8), (False, False))
    against = "rain" if "negative_prompt" in denoiser._arguments._takes else ""
    x = torch.randn(5, denoiser.channels, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        embeddings = denoiser.encode(Scene(TEXTS, against, denoiser.guidance_scale))
        level = denoiser.training.own(4, torch.device("cpu")).levels[1]
        together = denoiser(x, level, denoiser.condition(embeddings, grid, range(5)))
        for i in range(5) if sweeps else (2,):
            alone = denoiser(x[i : i + 1], level, denoiser.condition(embeddings, grid, [i]))
            assert error(together[i : i + 1], alone) < 1e-5
        for i, text, other in ((0, "a lake", CITY), (4, CITY, "a lake")):
            for prompt in (text, other):
                alone = denoiser.encode(Scene(prompt, against, denoiser.guidance_scale))
                pred = denoiser(x[i : i + 1], level, denoiser.condition(alone, grid, [i]))
                off = float((together[i] - pred[0]).abs().max() / pred.abs().max())
                assert off < 1e-5 if prompt is text else off > 1e-4


COMPOSITIONS: dict[str, Callable[[], list[Guidance]]] = {
    "none": list,
    "msd": lambda: [MSDGuidance(levels=2, head_start=0.5)],
    "sync": lambda: [SyncDiffusion(weight=0.1)],
    "both": lambda: [SyncDiffusion(weight=0.1), MSDGuidance(levels=2)],
}
CASES = list(product(COMPOSITIONS, [(False, "a lake"), (True, TEXTS)]))


@every_family
def test_compositions_are_the_same_in_any_batches(name: str, model: Made, sweeps: bool, leave_to_sweeps: Leave) -> None:
    """Tests make one composition for a family, and sweeps all of them.

    Rounding differs between batches. SyncDiffusion normalises gradients, which magnifies it where they are small.
    """
    leave_to_sweeps(left_out(name, 1))
    place = 3 * [*FAMILIES].index(name) % len(CASES)
    for composition, (wrap, prompt) in CASES if sweeps else CASES[place : place + 1]:
        made = []
        for batch in (1, 5):
            runtime = Runtime(accelerator="cpu", micro_batch=batch, guided_micro_batch=batch)
            sampler = Sampler(model(name, cells(name)), guidances=COMPOSITIONS[composition](), runtime=runtime)
            made.append(finished(sampler, prompt, windows=(2, 2), wrap=wrap).canvas)
        assert made[0].isfinite().all()
        assert error(*made) < (1e-2 if composition == "sync" else 2e-5), composition


@pytest.mark.parametrize("guidance", [HeadStart(0.9), MSDGuidance(head_start=0.9)], ids=str)
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_a_head_start_leaves_a_few_step_model_its_last_step(steps: int, guidance: Guidance, model: Made, cpu: Runtime) -> None:
    sampler = Sampler(model("schnell", 8), guidances=[guidance], runtime=cpu)
    run = sampler.begin("a lake", height=32, width=64, steps=steps, seed=SEED)
    while not run.done:
        known = run.known()
        run.step()
    assert known is None
    assert run.canvas.isfinite().all()


# --- pictures to start from -----------------------------------------------------------------------------------


def photo(height: int, width: int) -> Image.Image:
    small = torch.rand(1, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    pixels = nn.functional.interpolate(small, size=(height, width), mode="bilinear")[0]
    return Image.fromarray((pixels * 255).byte().permute(1, 2, 0).numpy())


@every_family
def test_a_picture_is_varied_and_what_is_known_stays(name: str, model: Made, cpu: Runtime, leave_to_sweeps: Leave) -> None:
    leave_to_sweeps(left_out(name, 0))
    sampler = Sampler(model(name, cells(name)), runtime=cpu)
    side = cells(name) * sampler.model.factor
    picture, mask = photo(side, 2 * side), Image.new("L", (2 * side, side), 0)
    mask.paste(255, (side, 0, 2 * side, side))
    varied = finished(sampler, windows=(1, 2), image=picture, strength=0.5)
    assert varied.canvas.isfinite().all()
    assert not torch.isclose(varied.canvas, varied.start.x0).any(0).all()
    for windows, options in (((1, 2), {"mask": mask}), ((2, 2), {"at": (0, side // 2)})):
        run = finished(sampler, windows=windows, image=picture, **options)
        stays = run.start.stays
        assert 0 < stays.sum() < stays.numel()
        assert torch.equal(run.canvas[:, stays], run.start.x0[:, stays])
        assert not torch.isclose(run.canvas[:, ~stays], run.start.x0[:, ~stays]).all(0).any()
        assert run.canvas.isfinite().all()


# --- the caller's pipeline ------------------------------------------------------------------------------------


def networks(pipe: Any) -> dict[str, nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


def weights(pipe: Any) -> dict[str, Tensor]:
    return {f"{part}.{key}": w.clone() for part, net in networks(pipe).items() for key, w in net.state_dict().items()}


def marks(pipe: Any) -> dict[str, Any]:
    """All of a pipeline that somebody else could have changed, besides the values of its weights."""
    parts = [part for network in networks(pipe).values() for part in network.modules()]
    kept = [weight for network in networks(pipe).values() for weight in network.parameters()]
    return {
        "class": type(pipe),
        "attributes": {key: (id(value), repr(value)) for key, value in vars(pipe).items() if not isinstance(value, nn.Module)},
        "scheduler": repr((type(pipe.scheduler), vars(pipe.scheduler))),
        "training": [part.training for part in parts],
        "hooks": [sum(len(hooks) for name, hooks in vars(part).items() if name.endswith("_hooks")) for part in parts],
        "processors": [type(getattr(part, "processor", None)) for part in parts],
        "checkpointing": [getattr(part, "gradient_checkpointing", None) for part in parts],
        "weights": [(id(weight), weight.requires_grad, weight.dtype, weight.data_ptr(), weight.grad) for weight in kept],
    }


@every_family
def test_the_callers_pipeline_stays_as_it_is(name: str, literal: Literal, sweeps: bool, leave_to_sweeps: Leave) -> None:
    leave_to_sweeps(left_out(name, 2))
    pipe = tiny_pipeline(name)
    pipe.vae.requires_grad_(True)
    pipe.vae.encoder.train()
    paint = {"num_inference_steps": 2, "cells": cells(name)}
    picture, before, values = literal(pipe, **paint), marks(pipe), weights(pipe)
    for precision in ("32-true", "bf16-true") if sweeps else ("bf16-true",):
        runtime = Runtime(accelerator="cpu", precision=precision, checkpointing=True)
        sampler = Sampler(load_model(pipe, window=cells(name)), guidances=[MSDGuidance()], runtime=runtime)
        sampler.decode(finished(sampler, windows=(2, 2)))
        after = marks(pipe)
        assert [key for key in before if before[key] != after[key]] == []
        assert all(torch.equal(value, values[key]) for key, value in weights(pipe).items())
    assert torch.equal(literal(pipe, **paint), picture)


@every_family
def test_in_bfloat16_a_run_is_as_exact_as_the_pipeline(
    name: str, model: Made, literal: Literal, leave_to_sweeps: Leave
) -> None:
    """The pipeline itself may come in bfloat16, and then stays so; and it may have painted before."""
    leave_to_sweeps(name not in ("sdxl", "sana"))  # whose times are no whole numbers, and whole numbers
    half, options = tiny_pipeline(name).to(torch.bfloat16), {"num_inference_steps": 2, "cells": cells(name)}
    exact = literal(tiny_pipeline(name), **options)
    allowed = 1.5 * float((literal(half, **options).float() - exact).norm()) + 0.01 * float(exact.norm())
    literal(made := tiny_pipeline(name), **options)
    pipe: Any
    precision: Any
    for pipe, precision in ((half, "32-true"), (made, "bf16-mixed"), (made, "bf16-true")):
        sampler = Sampler(load_model(pipe, window=cells(name)), runtime=Runtime(accelerator="cpu", precision=precision))
        kept = {weight.dtype for network in sampler.model.networks for weight in network.parameters()}
        assert (torch.bfloat16 in kept) == (precision != "bf16-mixed")
        assert float((finished(sampler).canvas - exact).norm()) < allowed, precision
        guided = Sampler(sampler.model, guidances=[MSDGuidance()], runtime=sampler.runtime)
        assert guided.decode(finished(guided, windows=(2, 2))).isfinite().all()
