"""MSD, a head start and SyncDiffusion against literal loops written from the papers: one window at a time, all by hand."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import Tensor, nn

from panokit import DiffusersScheduler, Guidance, Model, Runtime, Sampler, load_model
from panokit.backbones.diffusers.codec import VAECodec
from panokit.backbones.diffusers.model import UNetDenoiser
from panokit.testing.tiny import tiny_model
from panokit_msd import HeadStart, MSDPaper
from panokit_multidiffusion import MultiDiffusion
from panokit_syncdiffusion import SyncDiffusion

PROMPT, NEGATIVE, SCALE = "a lake", "fog", 2.5
STEPS, SEED = 3, 5


class ByHand:
    """A model with diffusers' DDIM, from its parts: one window, `1 4 8 8` in the tiny one, at a time."""

    def __init__(self, model: Model, steps: int = STEPS) -> None:
        assert isinstance(model.denoiser, UNetDenoiser)
        assert isinstance(model.codec, VAECodec)
        self.unet, self.vae, self.codec = model.denoiser.unet, model.codec.vae, model.codec
        self.dtype, self.window, self.steps = self.unet.dtype, model.denoiser.window[0], steps
        encode, tokenizer = model.denoiser.text_encoder, model.denoiser.tokenizer
        length = tokenizer.model_max_length
        texts = [
            tokenizer(text, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
            for text in (PROMPT, NEGATIVE)
        ]
        self.positive, self.negative = (encode(tokens)[0] for tokens in texts)
        self.scheduler = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
            clip_sample=False,
            set_alpha_to_one=False,
        )
        self.scheduler.set_timesteps(steps)
        self.timesteps: Sequence[Tensor] = self.scheduler.timesteps

    def level(self, t: int) -> tuple[float, float]:
        """sqrt(a_t) and sqrt(1 - a_t), in float32 as diffusers has them; below the last timestep the final ones."""
        a = self.scheduler.alphas_cumprod[t] if t >= 0 else self.scheduler.final_alpha_cumprod
        return float(a.sqrt()), float((1 - a).sqrt())

    def eps(self, x: Tensor, t: Tensor) -> Tensor:
        unconditional = self.unet(x, t, self.negative).sample
        return unconditional + SCALE * (self.unet(x, t, self.positive).sample - unconditional)

    def x0(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.level(int(t))
        return (x - sigma * self.eps(x, t)) / alpha

    def phi(self, x: Tensor, t: Tensor) -> Tensor:
        """One deterministic step of denoising."""
        (alpha, sigma), (alpha_below, sigma_below) = self.level(int(t)), self.level(int(t) - 1000 // self.steps)
        eps = self.eps(x, t)
        return alpha_below * (x - sigma * eps) / alpha + sigma_below * eps

    def windows(self, canvas: Tensor) -> Iterator[tuple[int, int]]:
        """The corners of windows that lie half a window apart."""
        return product(*(range(0, size - self.window + 1, self.window // 2) for size in canvas.shape[-2:]))

    def picture(self, x0: Tensor) -> Tensor:
        return (self.vae.decode(x0 / self.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model(dtype=torch.float64)


@pytest.fixture(scope="module")
def by_hand(model: Model) -> ByHand:
    return ByHand(model)


def noise(size: tuple[int, int], seed: int = SEED) -> Tensor:
    return torch.randn((4, *size), generator=torch.Generator().manual_seed(seed)).double()


def sampled(
    model: Model, guidances: Sequence[Guidance], size: tuple[int, int], *, precision: str = "64-true", steps: int = STEPS
) -> Tensor:
    sampler = Sampler(
        model,
        scheduler=DiffusersScheduler("ddim"),
        fuser=MultiDiffusion("uniform"),
        guidances=guidances,
        runtime=Runtime(accelerator="cpu", precision=precision, micro_batch=3),
    )
    height, width = (model.factor * cells for cells in size)
    run = sampler.begin(
        PROMPT,
        negative_prompt=NEGATIVE,
        height=height,
        width=width,
        steps=steps,
        guidance_scale=SCALE,
        seed=SEED,
    )
    while not run.done:
        run.step()
    return run.canvas


def relative(canvas: Tensor, expected: Tensor) -> float:
    return float((canvas - expected).abs().max() / expected.abs().max())


def half(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=0.5, mode="bilinear")


def literal_msd(hand: ByHand, canvas: Tensor, t: Tensor, level: int, weight: float) -> Tensor:
    """Algorithm 1: the canvas of a level one step down, by way of the coarser levels."""
    low = literal_msd(hand, half(canvas), t, level - 1, weight) if level > 0 and weight > 0 else None
    value, count = torch.zeros_like(canvas), torch.zeros_like(canvas)
    for top, left in hand.windows(canvas):
        here = (..., slice(top, top + hand.window), slice(left, left + hand.window))
        x = canvas[here].detach()
        if low is not None:
            x.requires_grad_()
            there = (..., slice(top // 2, (top + hand.window) // 2), slice(left // 2, (left + hand.window) // 2))
            loss = ((half(hand.phi(x, t)) - low[there]) ** 2).sum()
            (gradient,) = torch.autograd.grad(loss, x)
            x = x.detach() - weight * gradient
        with torch.no_grad():
            value[here] += hand.phi(x, t)
        count[here] += 1
    return value / count


@pytest.mark.parametrize(("size", "levels", "steps"), [((16, 24), 2, STEPS), ((24, 16), 2, STEPS), ((32, 32), 3, 2)])
def test_msd_is_the_papers_algorithm(model: Model, size: tuple[int, int], levels: int, steps: int) -> None:
    """Two guided steps, and where there are three one that is not."""
    weight, decay, until = 0.5, 1.5, 0.6
    by_hand = ByHand(model, steps)
    canvas = start = noise(size)[None]
    for i, t in enumerate(by_hand.timesteps):
        cosine = 0.5 * (1 + math.cos(math.pi * i / steps))
        canvas = literal_msd(by_hand, canvas, t, levels - 1, weight * cosine**decay if i / steps < until else 0.0)
    found = sampled(model, [MSDPaper(weight, decay=decay, until=until, levels=levels)], size, steps=steps)
    unguided = sampled(model, [], size, steps=steps)
    assert relative(found, unguided) > 1e-3  # it was guided
    assert relative(start[0], found) > 0.1
    assert relative(found, canvas[0]) <= 1e-9


def literal_head_start(hand: ByHand, size: tuple[int, int], levels: int, share: float, seed: int) -> Tensor:
    """MultiDiffusion from noise, or from a finished canvas of half the size, enlarged, under noise of a later timestep."""
    canvas = noise(size, seed)[None]
    spared = math.ceil(share * STEPS) if levels > 1 else 0
    if spared:
        half_size = (size[0] // 2, size[1] // 2)
        keys = f"{seed}/0/HeadStart/0/{half_size}"  # the seed, the level, the guidance, and the size of its canvas
        painted = literal_head_start(
            hand, half_size, levels - 1, share, int.from_bytes(hashlib.sha256(keys.encode()).digest()[3:7])
        )
        alpha, sigma = hand.level(int(hand.timesteps[spared]))
        larger = F.interpolate(hand.codec.decode(painted), scale_factor=2, mode="bicubic").clamp(0, 1)
        canvas = alpha * hand.codec.encode(larger) + sigma * canvas
    for t in hand.timesteps[spared:]:
        canvas = literal_msd(hand, canvas, t, level=0, weight=0.0)
    return canvas


@pytest.mark.parametrize(("size", "levels"), [((16, 16), 2), ((16, 24), 2), ((32, 32), 2), ((32, 32), 3)])
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_a_head_start_is_a_canvas_noised_from_a_finished_smaller_one(
    model: Model, by_hand: ByHand, size: tuple[int, int], levels: int, share: float
) -> None:
    """The smaller canvas is one window at 16 x 16 cells, and several elsewhere."""
    begun = sampled(model, [HeadStart(share, levels=levels)], size)
    assert relative(begun, sampled(model, [], size)) > 0.1
    assert relative(begun, literal_head_start(by_hand, size, levels, share, SEED)[0]) <= 1e-9


def test_on_landscapes_in_float32_nothing_but_rounding_tells_them_apart() -> None:
    """The distance to a literal loop in float64 is about that of the same loop in float32."""
    size, steps, levels = (32, 32), 2, 2
    model = load_model("landscapes")
    assert isinstance(model.denoiser, UNetDenoiser)
    latents = sampled(model, [MSDPaper()], size, precision="32-true", steps=steps).double()
    loops = []
    for dtype in (torch.float32, torch.float64):
        for part in (model.denoiser.unet, model.denoiser.text_encoder):
            nn.Module.to(part, dtype)
        hand = ByHand(model, steps)
        canvas = noise(size)[None].to(dtype)
        for i, t in enumerate(hand.timesteps):
            cosine = 0.5 * (1 + math.cos(math.pi * i / steps))
            canvas = literal_msd(hand, canvas, t, levels - 1, 10 * cosine if i / steps < 0.5 else 0.0)
        loops.append(canvas[0].double())
    rounding = relative(loops[0], loops[1])
    assert 1e-8 < rounding < 1e-3
    assert relative(latents, loops[1]) <= 4 * rounding


def squares(images: Tensor, other: Tensor) -> Tensor:
    """A plain metric: mean squared difference of neighbouring pixels' differences and of pixels."""
    return sum(((a - b) ** 2).mean((1, 2, 3)) for a, b in ((images, other), (images.diff(dim=-1), other.diff(dim=-1))))


def literal_syncdiffusion(hand: ByHand, canvas: Tensor, weight: float, decay: float, guided: int) -> Tensor:
    """Lee et al. 2023, algorithm 1. The anchor is the window nearest to the middle of the canvas, the last of several."""
    for i, t in enumerate(hand.timesteps):
        views = list(hand.windows(canvas))
        value, count = torch.zeros_like(canvas), torch.zeros_like(canvas)
        cut = [(..., slice(top, top + hand.window), slice(left, left + hand.window)) for top, left in views]
        off = [
            sum((at + hand.window / 2 - n / 2) ** 2 for at, n in zip(view, canvas.shape[-2:], strict=True)) for view in views
        ]
        anchor = max(k for k in range(len(views)) if off[k] == min(off))
        with torch.no_grad():
            reference = hand.picture(hand.x0(canvas[cut[anchor]], t))
        for k, here in enumerate(cut):
            x = canvas[here].detach()
            if i < guided and k != anchor:
                x.requires_grad_()
                loss = squares(hand.picture(hand.x0(x, t)), reference).sum()
                (gradient,) = torch.autograd.grad(loss, x)
                x = x.detach() - weight * decay**i * gradient
            with torch.no_grad():
                value[here] += hand.phi(x, t)
            count[here] += 1
        canvas = value / count
    return canvas


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("size", [(8, 24), (12, 16)])
def test_syncdiffusion_is_the_papers_algorithm(
    model: Model, by_hand: ByHand, size: tuple[int, int], checkpointing: bool
) -> None:
    weight, decay = 4.0, 0.8
    expected = literal_syncdiffusion(by_hand, noise(size)[None], weight, decay, guided=2)
    guidance = SyncDiffusion(weight, decay, until=0.4, metric=squares, checkpointing=checkpointing)
    found = sampled(model, [guidance], size)
    assert relative(found, sampled(model, [], size)) > 1e-3  # it was guided
    assert relative(found, expected[0]) <= 1e-9


def test_both_together_are_one_step_down_the_sum_of_both_gradients(model: Model) -> None:
    size = (16, 24)
    msd, sync = MSDPaper(0.5), SyncDiffusion(4.0, metric=squares)
    both, turned, first, second = (
        sampled(model, guidances, size, steps=2) for guidances in ([msd, sync], [sync, msd], [msd], [sync])
    )
    assert relative(both, turned) <= 1e-12
    assert relative(both, first) > 1e-4
    assert relative(both, second) > 1e-4


def test_shrinking_and_denoising_commute_up_to_the_noise_they_predict(by_hand: ByHand) -> None:
    """D(Phi(x)) - Phi(D x) = b_t (D eps(x) - eps(D x)): what the paper's loss compares, and how it fades."""
    x = noise((16, 16))[None]
    with torch.no_grad():
        for t in by_hand.timesteps:
            (alpha, sigma), (alpha_below, sigma_below) = by_hand.level(int(t)), by_hand.level(int(t) - 1000 // STEPS)
            b = sigma_below - alpha_below * sigma / alpha
            apart = half(by_hand.phi(x, t)) - by_hand.phi(half(x), t)
            expected = b * (half(by_hand.eps(x, t)) - by_hand.eps(half(x), t))
            assert relative(apart, expected) <= 1e-9
