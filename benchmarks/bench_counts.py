"""How much a panorama costs, in passes of the network: counted, and in closed form.

A canvas of 128 x 512 cells with windows of 64 cells and a stride of 32 has N = 45 windows, and its half has M = 7. There are T
steps, and G of them are guided. A window takes two samples through the network, with the prompt and without it. In samples:

| method | forward | backward | decoded windows |
|---|---|---|---|
| MultiDiffusion | 2 T N | 0 | 0 |
| MSD as in the paper | 2 (G (2 N + M) + (T - G) N) | 2 G N | 0 |
| MSD, with a head start of H steps | 2 (T M + (G - H) (N + M) + (T - G) N) | 0 | 0 |
| SyncDiffusion | 2 (2 G N + (T - G) N) | 2 G (N - 1) | G N |

The energy of the anchor of SyncDiffusion has no gradient. So where it goes through the network alone, it takes one pass there,
and one in which it is looked at before.

Two models stand in for Stable Diffusion: a network that returns its input, and a decoder that returns colours. Both count.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from measuring import Bench
from panokit import Codec, DiffusersScheduler, Guidance, Model, Runtime, Sampler
from panokit_msd import MSDGuidance, MSDPaper
from panokit_multidiffusion import MultiDiffusion
from panokit_syncdiffusion import SyncDiffusion
from sides import NullUNet, null_model, panorama, with_unet

N, M = 45, 7
HEIGHT, WIDTH, STRIDE = 128, 512, 32


class CountingUNet(NullUNet):
    """Counts samples, forward and backward."""

    counts: Counter[str]

    def forward(self, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.counts["forward"] += len(sample)
        made = 0.5 * sample
        if made.requires_grad:
            made.register_hook(lambda gradient: self.counts.update(backward=len(gradient)))
        return super().forward(made, *args, **kwargs)


class Colours(Codec):
    """Decodes a cell to one pixel. Counts windows; the whole canvas is larger than one, and does not count."""

    factor = 1

    def __init__(self, counts: Counter[str]) -> None:
        self.counts = counts

    def modules(self) -> Iterable[nn.Module]:
        return ()

    def encode(self, images: Tensor) -> Tensor:
        return torch.cat([images, images[:, :1]], dim=1)

    def decode(self, latents: Tensor) -> Tensor:
        if latents.shape[-2:] == (64, 64):
            self.counts["decoded"] += len(latents)
        return torch.sigmoid(latents[:, :3])


def counted(guidances: list[Guidance], steps: int) -> Counter[str]:
    """What a panorama takes."""
    counts = Counter[str]()
    null = null_model()
    unet = CountingUNet.from_config(null.denoiser.unet.config)
    unet.counts = counts
    model = Model(with_unet(null, unet, "counting").denoiser, Colours(counts), "counting")
    sampler = Sampler(
        model,
        scheduler=DiffusersScheduler("ddim"),
        fuser=MultiDiffusion(),
        guidances=guidances,
        runtime=Runtime(accelerator="cpu", micro_batch=1),
    )
    run = sampler.begin("a lake", height=HEIGHT, width=WIDTH, stride=STRIDE, steps=steps, guidance_scale=7.5, seed=0)
    assert len(run.windows) == N
    while not run.done:
        run.step()
    return counts


def colours_apart(a: Tensor, b: Tensor) -> Tensor:
    return (a.mean((2, 3)) - b.mean((2, 3))).square().sum(1)


def test_multidiffusion_computes_each_window_once_a_step(bench: Bench) -> None:
    steps = 50 if bench.enabled else 2
    counts = counted([], steps)
    what = f"MultiDiffusion, 1024 x 4096 pixels, {steps} steps:"
    bench.record("P1", f"{what} forward", counts["forward"], "samples, 2 T N", exactly=2 * steps * N, always=True)
    bench.record("P1", f"{what} backward", counts["backward"], "samples", exactly=0, always=True)


def test_diffusers_computes_eleven_times_as_many_windows_for_the_same_picture(bench: Bench) -> None:
    """Its stride is 8 cells, and a call cannot change it."""
    views = len(panorama(null_model()).get_views(1024, 4096))
    assert views == ((128 - 64) // 8 + 1) * ((512 - 64) // 8 + 1) == 513
    assert N == ((HEIGHT - 64) // STRIDE + 1) * ((WIDTH - 64) // STRIDE + 1)
    bench.record("P1", "windows a step at 1024 x 4096 pixels", N, "windows", exactly=N, peer=f"diffusers {views}", always=True)


@pytest.mark.parametrize("share", [0.2, 0.3, 0.5, 1.0])
def test_msd_as_in_the_paper_computes_nothing_below_when_no_guidance_is_awake(bench: Bench, share: float) -> None:
    steps = 50 if bench.enabled else 2
    guided = sum(step / steps < share for step in range(steps))
    counts = counted([MSDPaper(0.01, until=share)], steps)
    what = f"MSD as in the paper, {guided} of {steps} steps guided:"
    forward = 2 * (guided * (2 * N + M) + (steps - guided) * N)
    literal = 2 * (guided * 2 * N + steps * M + (steps - guided) * N)
    bench.record(
        "P1",
        f"{what} forward",
        counts["forward"],
        "samples, 2 (G (2 N + M) + (T - G) N)",
        exactly=forward,
        peer=f"literal loop {literal:,}",
        always=True,
    )
    bench.record("P1", f"{what} backward", counts["backward"], "samples, 2 G N", exactly=2 * guided * N, always=True)


def test_msd_costs_less_than_multidiffusion(bench: Bench) -> None:
    steps, guidance = 50 if bench.enabled else 10, MSDGuidance()
    counts = counted([guidance], steps)
    head, guided = (sum(step / steps < share for step in range(steps)) for share in (guidance.head_start, guidance.until))
    forward = 2 * (steps * M + (guided - head) * (N + M) + (steps - guided) * N)
    assert forward < 2 * steps * N
    bench.record(
        "P1",
        f"MSD, {steps} steps, {head} of them a head start, guided to step {guided}: forward",
        counts["forward"],
        "samples, 2 (T M + (G - H) (N + M) + (T - G) N)",
        exactly=forward,
        peer=f"MultiDiffusion {2 * steps * N:,}",
        always=True,
    )
    bench.record("P1", "MSD: backward", counts["backward"], "samples", exactly=0, always=True)


def test_syncdiffusion_decodes_each_window_once(bench: Bench) -> None:
    """The anchor, which has no gradient, is not denoised again. What is left to save is 1 of 90 forward passes."""
    steps = 50 if bench.enabled else 2
    counts = counted([SyncDiffusion(0.01, until=1.0, metric=colours_apart)], steps)
    what = f"SyncDiffusion, all of {steps} steps guided:"
    for name, formula, value, peer in (
        ("forward", "samples, 4 T N", 4 * steps * N, 2 * steps * (2 * N + 1)),
        ("backward", "samples, 2 T (N - 1)", 2 * steps * (N - 1), 2 * steps * N),
        ("decoded", "windows, T N", steps * N, steps * (N + 1)),
    ):
        bench.record("P1", f"{what} {name}", counts[name], formula, exactly=value, peer=f"authors' loop {peer:,}", always=True)
