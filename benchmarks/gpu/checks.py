"""Whether panokit computes on a device what it promises."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from gpu import models
from gpu.bench import PROMPT, ROW, SQUARE, Bench, finished, relative, warnings_kept
from gpu.card import deterministic, exact
from gpu.peer import Peer
from gpu.report import Outcome, Skipped
from panokit import Runtime, Sampler, SettingError

ROUNDING = {"32-true": 1e-3, "half": 0.1}
"""How far latents may move, relative to their norm, where kernels add in another order: in float32, and in half precision."""

PAPER_GUIDANCE: dict[str, Any] = {"plugin": "msd_paper", "weight": 0.1}
"""A guidance with a gradient through the network, at a weight at which random networks stay finite."""


def parameters_are_those_of_the_published_models(bench: Bench) -> Outcome:
    counts = {name: models.parameters(name) for name in models.NAMES}
    wrong = [name for name in models.NAMES if counts[name] != models.PARAMETERS[name]]
    numbers = {f"{name} M": sum(parts.values()) / 1e6 for name, parts in counts.items()}
    return Outcome(not wrong, numbers, f"these differ: {', '.join(wrong)}" if wrong else "counted without weights")


def two_runs_make_the_same_bits(bench: Bench) -> Outcome:
    first, second = (bench.latents(bench.half) for _ in range(2))
    return Outcome(torch.equal(first, second), {"apart": relative(second, first)})


def a_restored_run_makes_the_same_bits(bench: Bench) -> Outcome:
    """A run that goes on from what another one kept, as after an interruption."""
    sampler = bench.sampler(bench.half, scheduler="dpm++_2m")
    run, other = (bench.begin(sampler, SQUARE, 3) for _ in range(2))
    run.step()
    state = copy.deepcopy(run.state())
    other.restore(state)
    first, second = finished(run), finished(other)
    return Outcome(torch.equal(first, second), {"apart": relative(second, first)})


def micro_batches_move_a_picture_by_rounding(bench: Bench) -> Outcome:
    """The bits depend on the size of a batch, and panokit promises them for one size alone."""
    made = {size: bench.latents(bench.half, micro_batch=size) for size in (9, 3, 1)}
    apart = {f"{size} of 9": relative(made[size], made[9]) for size in (3, 1)}
    return Outcome(max(apart.values()) <= ROUNDING["half"], apart)


def gradients_in_two_runs(bench: Bench) -> Outcome:
    """Backward passes may add in another order at each run. panokit says nothing of that yet, so this is noted."""
    return _gradients_twice(bench)


def gradients_in_two_runs_of_deterministic_kernels(bench: Bench) -> Outcome:
    with warnings_kept() as warned, deterministic():
        outcome = _gradients_twice(bench)
    return outcome._replace(note="; ".join(dict.fromkeys(text[:120] for text in warned() if "determinis" in text)))


def _gradients_twice(bench: Bench) -> Outcome:
    first, second = (bench.latents(bench.half, guidances=[PAPER_GUIDANCE], steps=1) for _ in range(2))
    return Outcome(None, {"the same bits": torch.equal(first, second), "apart": relative(second, first)})


def half_precisions_are_close_to_float32(bench: Bench) -> Outcome:
    with exact():
        expected = bench.latents(bench.full, precision="32-true")
    names = ["16-true", "16-mixed"] + ["bf16-true", "bf16-mixed"] * (bench.card.half == "bf16-true")
    apart = {name: relative(bench.latents(bench.full, precision=name), expected) for name in names}
    return Outcome(max(apart.values()) <= ROUNDING["half"], apart)


def tf32_is_close_to_float32(bench: Bench) -> Outcome:
    """By torch's own choice, `32-true` computes convolutions in TF32."""
    _require_cuda(bench)
    made = bench.latents(bench.full, precision="32-true")
    with exact():
        expected = bench.latents(bench.full, precision="32-true")
    return Outcome(relative(made, expected) <= 0.02, {"apart": relative(made, expected)})


def micro_batches_in_float32_move_a_picture_by_rounding(bench: Bench) -> Outcome:
    with exact():
        made = {size: bench.latents(bench.full, precision="32-true", micro_batch=size) for size in (9, 1)}
    apart = relative(made[1], made[9])
    return Outcome(apart <= ROUNDING["32-true"], {"1 of 9": apart})


def multidiffusion_is_diffusers_own_panorama(bench: Bench) -> Outcome:
    """In float32, with the same windows and the same noise."""
    with exact():
        sampler = bench.sampler(bench.full, precision="32-true")
        run = bench.begin(sampler, SQUARE, 2)
        expected = Peer(bench.full_pipeline, run.windows, sampler.model.factor).latents(2, 3, latents=run.canvas[None].clone())
        made = finished(run)
    return Outcome(relative(made, expected[0]) <= ROUNDING["32-true"], {"apart": relative(made, expected[0])})


def a_canvas_of_one_window_is_the_pipelines_own_picture(bench: Bench) -> Outcome:
    """In float32, through the model's own scheduler."""
    with exact():
        sampler = bench.sampler(bench.full, scheduler="own", precision="32-true")
        run = bench.begin(sampler, (1.0, 1.0), 3)
        side = run.windows.size[0] * sampler.model.factor
        options: dict[str, Any] = {"height": side, "width": side, "num_inference_steps": 3, "output_type": "latent"}
        expected = bench.full_pipeline(PROMPT, latents=run.canvas[None].clone(), **options).images[0]
        made = finished(run)
    return Outcome(relative(made, expected) <= ROUNDING["32-true"], {"apart": relative(made, expected)})


def guided_steps_are_finite(bench: Bench) -> Outcome:
    guidances: dict[str, Any] = {
        "msd": {"plugin": "msd", "head_start": 0},
        "msd with a head start": "msd",
        "msd_paper": PAPER_GUIDANCE,
        "syncdiffusion": {"plugin": "syncdiffusion", "until": 1.0},
    }
    spread = {name: float(bench.latents(bench.half, guidances=[way], steps=3).std()) for name, way in guidances.items()}
    return Outcome(all(map(torch.isfinite, map(torch.tensor, spread.values()))), spread, "deviations of the latents")


def checkpointing_takes_less_memory_and_makes_the_same_gradients(bench: Bench) -> Outcome:
    made, most = {}, {}
    for on in (False, True):
        sampler = bench.sampler(bench.half, guidances=[PAPER_GUIDANCE], checkpointing=on)
        run = bench.begin(sampler, SQUARE, 2)
        bench.card.clear()
        before = bench.card.used() or 0.0
        made[on] = finished(run)
        most[on] = (bench.card.most() or 0.0) - before
    apart = relative(made[True], made[False])
    numbers: dict[str, Any] = {"the same bits": torch.equal(made[True], made[False]), "apart": apart}
    if not bench.card.cuda:
        return Outcome(apart <= ROUNDING["half"], numbers, "memory is not counted on a CPU")
    share = most[True] / most[False]
    return Outcome(apart <= ROUNDING["half"] and share <= 0.6, {**numbers, "memory, share": share})


def other_kernels_move_a_picture_by_rounding(bench: Bench) -> Outcome:
    expected = bench.latents(bench.half)
    ways: dict[str, dict[str, Any]] = {"channels last": {"channels_last": True}, "sliced attention": {"attention": "sliced"}}
    apart = {name: relative(bench.latents(bench.half, **options), expected) for name, options in ways.items()}
    return Outcome(max(apart.values()) <= ROUNDING["half"], apart)


def xformers_moves_a_picture_by_rounding(bench: Bench) -> Outcome:
    with warnings_kept() as warned:
        sampler = bench.sampler(bench.half, attention="xformers")
    if fallback := [text for text in warned() if "xformers" in text]:
        raise Skipped(fallback[0])
    made, expected = finished(bench.begin(sampler, SQUARE, 2)), bench.latents(bench.half, attention="sdpa")
    return Outcome(relative(made, expected) <= ROUNDING["half"], {"apart": relative(made, expected)})


def offload_takes_less_memory_and_makes_the_same_bits(bench: Bench) -> Outcome:
    _require_cuda(bench, "networks take turns on a device, and a CPU is where they wait")
    bench.forget()
    pipe = bench.pipeline("sd2", bench.dtype).to("cpu")
    latents, most = {}, {}
    for on in (False, True):
        bench.card.clear()
        sampler = bench.sampler(bench.loaded("sd2", pipe), offload=on)
        run = bench.begin(sampler, SQUARE, 2)
        latents[on] = finished(run)
        sampler.decode(run)
        most[on] = bench.card.most() or 0.0
        del sampler, run
    same = torch.equal(latents[True], latents[False])
    return Outcome(same and most[True] < most[False], {"the same bits": same, "GB": most[True], "GB without": most[False]})


def memory_that_ends_halves_the_micro_batch(bench: Bench) -> Outcome:
    """16 windows in a row, of which the memory holds 8."""
    expected = bench.latents(bench.half, ROW, steps=1, micro_batch=8)
    sampler = bench.sampler(bench.half, micro_batch=16)
    held = None
    if bench.card.cuda:
        peaks = {}
        for size in (8, 16):
            bench.card.clear()
            bench.latents(bench.half, ROW, steps=1, micro_batch=size)
            peaks[size] = bench.card.reserved()
        held = (peaks[8] + peaks[16]) / 2
        bench.card.clear()
    run = bench.begin(sampler, ROW, 1)
    with warnings_kept() as warned, bench.card.limited(held) if held else _refusing(sampler, 8):
        made = finished(run)
    halved = [text for text in warned() if "windows at once do not fit the memory" in text]
    apart = relative(made, expected)
    numbers = {"halved, times": len(halved), "the same bits as 8": torch.equal(made, expected), "apart": apart}
    if held:
        numbers |= {"limit GB": held / 1e9, "8 windows GB": peaks[8] / 1e9, "16 windows GB": peaks[16] / 1e9}
    note = "" if held else "simulated: the network raises torch.OutOfMemoryError for more than 8 windows"
    return Outcome(bool(halved) and apart <= ROUNDING["half"], numbers, note)


@contextmanager
def _refusing(sampler: Sampler, most: int) -> Iterator[None]:
    """Inside, the network raises what torch raises when memory ends, for more windows than `most`, each guided and not."""
    (unet,) = (network for network in sampler.model.networks if isinstance(network, UNet2DConditionModel))

    def refuse(module: nn.Module, args: Any, kwargs: Any) -> None:
        if len(args[0] if args else kwargs["sample"]) > 2 * most:
            raise torch.OutOfMemoryError("out of memory (simulated)")

    handle = unet.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def more_devices_than_there_are_are_refused_in_words(bench: Bench) -> Outcome:
    _require_cuda(bench, "on a CPU devices are processes")
    count = torch.cuda.device_count() + 1
    try:
        Runtime(accelerator="cuda", devices=count)
    except SettingError as error:
        return Outcome(True, {"devices": count}, str(error))
    return Outcome(False, {"devices": count}, "they were not refused")


def _require_cuda(bench: Bench, why: str = "a CPU has no such precision") -> None:
    if not bench.card.cuda:
        raise Skipped(f"needs a CUDA device: {why}")


CHECKS: tuple[Callable[[Bench], Outcome], ...] = (
    parameters_are_those_of_the_published_models,
    two_runs_make_the_same_bits,
    a_restored_run_makes_the_same_bits,
    micro_batches_move_a_picture_by_rounding,
    memory_that_ends_halves_the_micro_batch,
    guided_steps_are_finite,
    checkpointing_takes_less_memory_and_makes_the_same_gradients,
    half_precisions_are_close_to_float32,
    micro_batches_in_float32_move_a_picture_by_rounding,
    tf32_is_close_to_float32,
    multidiffusion_is_diffusers_own_panorama,
    a_canvas_of_one_window_is_the_pipelines_own_picture,
    other_kernels_move_a_picture_by_rounding,
    xformers_moves_a_picture_by_rounding,
    gradients_in_two_runs,
    gradients_in_two_runs_of_deterministic_kernels,
    more_devices_than_there_are_are_refused_in_words,
    offload_takes_less_memory_and_makes_the_same_bits,
)
"""All checks, in the order in which they are made: the last one empties the device first."""
