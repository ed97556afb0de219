"""How fast panokit is, and how much memory it takes: the MSD paper's geometry, beside diffusers' pipeline for panoramas."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import torch

from gpu import models
from gpu.bench import SQUARE, Bench, warnings_kept
from gpu.peer import Peer
from gpu.report import Numbers, Outcome
from panokit import Model, Run
from panokit.backbones.diffusers.codec import VAECodec
from panokit.backbones.diffusers.model import UNetDenoiser
from panokit.scheduler import Training

HIGH, LOW = 45, 7
"""The windows of the MSD paper's canvas, and of the smaller one that guides them."""
STEPS = 50
"""Steps of the picture whose first ones are measured: the number decides how many of them are guided."""
ROUNDS, TIMED = 3, 2
"""Each side takes turns so often, and each time makes one step that is not timed and so many that are."""


def multidiffusion(bench: Bench, micro_batch: int) -> Outcome:
    """Steps of MultiDiffusion on 45 windows: a pipeline in hand, a UNet called directly, and diffusers, in turns.

    panokit drives a pipeline in hand through its own call. Stable Diffusion by name has its UNet called directly.
    """
    pipe = bench.half_pipeline
    driven = bench.loaded("sd2", pipe)
    direct = Model(UNetDenoiser(pipe.unet, pipe.text_encoder, pipe.tokenizer, Training()), VAECodec(pipe.vae), "direct")
    timed: dict[str, list[float]] = {"driven": [], "direct": [], "diffusers": []}
    most: dict[str, float | None] = {}
    with warnings_kept() as warned:
        runs = {
            name: bench.begin(bench.sampler(model, micro_batch=micro_batch), bench.paper, STEPS)
            for name, model in (("driven", driven), ("direct", direct))
        }
        peer = Peer(pipe, runs["driven"].windows, driven.factor)
        for _ in range(1 if bench.tiny else ROUNDS):
            for name in timed:
                bench.card.clear()
                timed[name] += _peers(bench, peer, micro_batch) if name == "diffusers" else _steps(bench, runs[name], TIMED)
                most[name] = bench.card.most()
            if bench.left < 0:
                break
    seconds = {name: median(many) for name, many in timed.items()}
    windows = len(runs["driven"].windows)
    numbers: dict[str, Any] = {f"windows/s, {name}": windows / each for name, each in seconds.items()}
    numbers |= {"of diffusers' speed": seconds["diffusers"] / seconds["driven"]}
    numbers |= {"of diffusers' speed, direct": seconds["diffusers"] / seconds["direct"]}
    numbers |= _rates(bench, "sd2", 2 * windows * _flops(bench, "sd2", "forward"), seconds["driven"])
    numbers |= {"GB": most["driven"], "GB, diffusers": most["diffusers"], "steps": len(timed["driven"])}
    return Outcome(None, numbers, _notes(warned()))


def guided(bench: Bench, guidance: Any, flops: Callable[[Bench], float], *, count: int = 3) -> Outcome:
    """Guided steps of a method on 45 windows."""
    model = bench.loaded("sd2", bench.half_pipeline)
    with warnings_kept() as warned:
        sampler = bench.sampler(model, guidances=[guidance], micro_batch=8, guided_micro_batch=4)
        run = bench.begin(sampler, bench.paper, STEPS)
        bench.card.clear()
        timed = _steps(bench, run, 1 if bench.tiny else count)
    numbers = {"windows/s": len(run.windows) / median(timed), "s/step": median(timed)}
    return Outcome(
        None,
        {**numbers, **_rates(bench, "sd2", flops(bench), median(timed)), "GB": bench.card.most(), "steps": len(timed)},
        _notes(warned()),
    )


def msd_flops(bench: Bench) -> float:
    """Operations of a step of `msd`: a guided pass forward for each window, and one for each of the smaller canvas."""
    return 2 * (HIGH + LOW) * _flops(bench, "sd2", "forward")


def msd_paper_flops(bench: Bench) -> float:
    """Operations of a step of `msd_paper`: two passes forward and one backward a window, and the smaller canvas."""
    forward, backward = (_flops(bench, "sd2", way) for way in ("forward", "backward"))
    return 2 * (2 * HIGH + LOW) * forward + 2 * HIGH * backward


def syncdiffusion_flops(bench: Bench) -> float:
    """Operations of a step of `syncdiffusion`, without those of its metric, which are a thousandth."""
    forward, backward = (_flops(bench, "sd2", way) for way in ("forward", "backward"))
    decode, undecode = (_flops(bench, "sd2", way) for way in ("decode", "decode_backward"))
    return 2 * (2 * HIGH + 1) * forward + 2 * HIGH * backward + HIGH * decode + (HIGH - 1) * undecode


def decoding(bench: Bench) -> Outcome:
    """The picture of the whole canvas, 1024 x 4096 pixels, decoded in tiles."""
    sampler = bench.sampler(bench.loaded("sd2", bench.half_pipeline))
    run = bench.begin(sampler, bench.paper, STEPS)
    sampler.decode(run)
    bench.card.clear()
    seconds = bench.card.seconds(lambda: sampler.decode(run))
    return Outcome(None, {"s": seconds, "GB": bench.card.most()})


def other_family(bench: Bench, name: str, samples: int) -> Outcome:
    """Steps of another family on 9 windows, with its own scheduler.

    Args:
        bench: makes models and runs.
        name: of the model.
        samples: passes of the network for each window: two with classifier-free guidance.
    """
    bench.forget()
    model = bench.loaded(name, bench.pipeline(name, bench.dtype))
    numbers: dict[str, Any] = {}
    for micro_batch in (3,) if bench.tiny else (1, 3):
        sampler = bench.sampler(model, scheduler="own", micro_batch=micro_batch)
        run = bench.begin(sampler, SQUARE, 4)
        bench.card.clear()
        timed = _steps(bench, run, 1 if bench.tiny else 2)
        work = samples * len(run.windows) * _flops(bench, name, "forward")
        rates = {"windows/s": len(run.windows) / median(timed), **_rates(bench, name, work, median(timed))}
        numbers |= {f"{key}, micro-batch {micro_batch}": value for key, value in rates.items()}
    finite = bool(torch.isfinite(run.canvas).all())
    numbers |= {"GB": bench.card.most()}
    seen = bool(torch.isfinite(sampler.decode(run)).all())
    return Outcome(finite and seen, numbers, "latents and picture must be finite")


def _steps(bench: Bench, run: Run, count: int) -> list[float]:
    """The seconds of each of some steps, after one that is not counted."""
    run.step()
    timed: list[float] = []
    while len(timed) < count and (not timed or bench.left > 0):
        timed.append(bench.card.seconds(run.step))
    return timed


def _peers(bench: Bench, peer: Peer, micro_batch: int) -> list[float]:
    """The same, of diffusers' pipeline."""
    ends: list[float] = []

    def note() -> None:
        bench.card.synchronize()
        ends.append(time.perf_counter())

    peer.after_steps(TIMED + 1, STEPS, micro_batch, note)
    return [end - begin for begin, end in pairwise(ends)]


def _flops(bench: Bench, name: str, way: str) -> float:
    """Operations of one sample; NaN in miniature, where nobody counts them."""
    return float("nan") if bench.tiny else float(getattr(models.flops(name), way))


def _rates(bench: Bench, name: str, work: float, seconds: float) -> Numbers:
    if bench.tiny:
        return {}
    rate = work / seconds / 1e12
    return {"TFLOP/s": rate, "of the card's peak": rate / bench.card.peak if bench.card.peak else None}


def _notes(warned: list[str]) -> str:
    return "; ".join(dict.fromkeys(text for text in warned if "windows at once" in text))


MEASUREMENTS: Mapping[str, Callable[[Bench], Outcome]] = {
    "MultiDiffusion, micro-batch 8": partial(multidiffusion, micro_batch=8),
    "MSD (msd)": partial(guided, guidance={"plugin": "msd", "head_start": 0}, flops=msd_flops),
    "MSD as in the paper (msd_paper)": partial(guided, guidance={"plugin": "msd_paper", "weight": 0.1}, flops=msd_paper_flops),
    "SyncDiffusion (syncdiffusion)": partial(guided, guidance="syncdiffusion", flops=syncdiffusion_flops),
    **{f"MultiDiffusion, micro-batch {size}": partial(multidiffusion, micro_batch=size) for size in (16, 4, 2, 1)},
    "decoding 1024 x 4096 pixels": decoding,
}
FAMILIES: Mapping[str, Callable[[Bench], Outcome]] = {
    "Stable Diffusion XL": partial(other_family, name="sdxl", samples=2),
    "FLUX.1 [dev], 2 + 2 of its 19 + 38 layers": partial(other_family, name="flux", samples=1),
}
