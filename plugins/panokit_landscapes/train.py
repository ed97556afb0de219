"""Training of the landscapes model: training set, autoencoder, denoiser with its text encoder, judge, export.

    torchrun --nproc-per-node 2 -m panokit_landscapes.train --out DIR

runs all stages one after the other and writes the finished model into the package. DIR gets the training set and the
checkpoints. Finished stages are skipped, and an interrupted stage continues where it stopped. Two processes share every step.
On two CPU cores, they are much faster than one process with two threads. With `python` instead of `torchrun --nproc-per-node 2`
there is one process. If there is a GPU, it is used.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline
from diffusers.training_utils import compute_snr
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPProcessor, CLIPTokenizer

from panokit_landscapes import JUDGE, PATH
from panokit_landscapes.captions import TELLING, WORDS
from panokit_landscapes.data import Pool, disturb, generate
from panokit_landscapes.loop import Loop, Losses, place, use_average, wait
from panokit_landscapes.models import (
    make_judge,
    make_scheduler,
    make_text_encoder,
    make_tokenizer,
    make_unet,
    make_vae,
    standardise,
    tokenize,
)

MINUTES = {"vae": 25.0, "unet": 110.0, "judge": 5.0}
"""Training time of each part in minutes, on two CPU cores."""


def difference(a: Tensor, b: Tensor) -> Tensor:
    """The difference of pictures, the mean over pixels of |d| + 4 d^2 + (|dx d| + |dy d|) / 2 with d = a - b.

    Args:
        a: pictures (n, 3, H, W) in [-1, 1].
        b: other pictures, of the same shape.
    """
    d = a - b
    edges = d.diff(dim=-1).abs().mean() + d.diff(dim=-2).abs().mean()
    return d.abs().mean() + 4 * d.square().mean() + edges / 2


def vae_losses(vae: AutoencoderKL, x: Tensor, generator: torch.Generator, kl: float = 3e-5, scale: float = 0.25) -> Losses:
    """The loss of the autoencoder, |x - decode(z)| + kl KL(z) + scale |D x - decode(D mean z)|.

    D halves the size, by the mean of 2x2 cells. Because of the last term, latents of half size decode to the picture of half
    size. The differences |.| are those of `difference`.

    Args:
        vae: the autoencoder.
        x: pictures (n, 3, H, W) in [-1, 1].
        generator: the random numbers.
        kl: weight of the second term.
        scale: weight of the third term.
    """
    posterior = vae.encode(x).latent_dist
    mean = posterior.mean
    z = mean + posterior.std * torch.randn(mean.shape, generator=generator).to(x.device)
    return {
        "picture": difference(vae.decode(z).sample, x),
        "kl": kl * 0.5 * (mean**2 + posterior.var - 1 - posterior.logvar).mean(),
        "scale": scale * difference(vae.decode(F.avg_pool2d(mean, 2)).sample, F.avg_pool2d(x, 2)),
    }


def train_vae(out: Path, minutes: float, device: torch.device) -> None:
    """Train the autoencoder on pictures of the training set and their mirror images. Then standardise its latents.

    For most of the time it is trained on quarters of pictures, so steps are cheap and many. Whole pictures follow at the end.

    Args:
        out: the folder of the training set and of checkpoints.
        minutes: running time.
        device: the device.
    """
    torch.manual_seed(0)
    vae = make_vae().to(device, memory_format=torch.channels_last)
    loop = Loop(out / "vae.pt", vae, minutes, lr=3e-3)
    pool = Pool(out / "pool")

    def losses(generator: torch.Generator) -> Losses:
        batch, side = (16, 64) if loop.progress < 0.85 else (6, 128)
        batch //= loop.world
        x = pool.pictures(torch.randint(len(pool), (batch,), generator=generator))
        top, left = torch.randint(129 - side, (2,), generator=generator).tolist()
        x = x[:, :, top : top + side, left : left + side]
        mirrored = torch.rand(batch, 1, 1, 1, generator=generator) < 0.5
        x = torch.where(mirrored, x.flip(-1), x).to(device, memory_format=torch.channels_last)
        return vae_losses(vae, x, generator)

    loop.run(losses)
    if loop.rank == 0:
        _finish(vae, pool, device, out / "vae")


def _finish(vae: AutoencoderKL, pool: Pool, device: torch.device, path: Path) -> None:
    """Standardise the latents by a sample of the training set, and save the autoencoder."""
    vae.eval()
    with torch.no_grad():
        some = pool.pictures(torch.arange(0, len(pool), max(1, len(pool) // 1000))).to(device)
        latents = torch.cat([vae.encode(part).latent_dist.mean for part in some.split(50)])
    standardise(vae, latents.mean((0, 2, 3)), latents.std((0, 2, 3)))
    vae.save_pretrained(path)
    pool.forget_latents()  # they came from another autoencoder


def unet_losses(parts: nn.ModuleDict, z: Tensor, tokens: Tensor, generator: torch.Generator, gamma: float = 5.0) -> Losses:
    """The loss of denoiser and text encoder, |eps - unet(alpha z + sigma eps, t, text)|^2 with weight min(snr, gamma) / snr.

    Here snr = (alpha / sigma)^2.

    Args:
        parts: the modules `unet` and `text_encoder`.
        z: clean latents (n, 4, h, w).
        tokens: the tokens of their captions (n, TOKENS).
        generator: the random numbers.
        gamma: the largest signal-to-noise ratio that counts in full.
    """
    scheduler = make_scheduler()
    n = len(z)
    noise = torch.randn(z.shape, generator=generator).to(z.device)
    t = torch.randint(scheduler.config.num_train_timesteps, (n,), generator=generator).to(z.device)
    text = parts["text_encoder"](tokens).last_hidden_state
    noisy = scheduler.add_noise(z, noise, t).contiguous(memory_format=torch.channels_last)
    error = (parts["unet"](noisy, t, text).sample - noise).square().mean((1, 2, 3))
    snr = compute_snr(scheduler, t)
    return {"noise": (error * snr.clamp(max=gamma) / snr).mean()}


def train_unet(out: Path, minutes: float, device: torch.device, batch: int = 32, drop: float = 0.1) -> None:
    """Train the denoiser and its text encoder on latents of the training set.

    Args:
        out: the folder of the training set, the autoencoder and checkpoints.
        minutes: running time.
        device: the device.
        batch: number of pictures in a step of one process.
        drop: share of captions that are replaced by an empty text, for classifier-free guidance.
    """
    vae = AutoencoderKL.from_pretrained(out / "vae").to(device, memory_format=torch.channels_last)
    pool = Pool(out / "pool")
    pool.encode(vae, *place())
    wait()
    mean, std = pool.latents()
    torch.manual_seed(1)
    tokenizer = make_tokenizer([*WORDS, ","])
    parts = nn.ModuleDict({"unet": make_unet(), "text_encoder": make_text_encoder(tokenizer)})
    parts = parts.to(device).to(memory_format=torch.channels_last)
    loop = Loop(out / "unet.pt", parts, minutes, lr=1.5e-3, seed=1)

    def losses(generator: torch.Generator) -> Losses:
        index = torch.randint(len(mean), (batch,), generator=generator)
        z = mean[index] + std[index] * torch.randn(mean[index].shape, generator=generator)
        rng = np.random.default_rng(int(torch.randint(1 << 62, (), generator=generator)))
        captions = ["" if rng.random() < drop else disturb(pool.captions[i], rng) for i in index.tolist()]
        return unet_losses(parts, z.to(device), tokenize(tokenizer, captions).to(device), generator)

    loop.run(losses)


def train_judge(out: Path, minutes: float, device: torch.device, batch: int = 64) -> None:
    """Train the judge on pictures of the training set, with the contrastive loss of CLIP.

    Args:
        out: the folder of the training set and of checkpoints.
        minutes: running time.
        device: the device.
        batch: number of pictures in a step of one process.
    """
    torch.manual_seed(2)
    tokenizer = make_tokenizer([*WORDS, ","])
    judge = make_judge(tokenizer).to(device)
    pool = Pool(out / "pool")
    loop = Loop(out / "judge.pt", judge, minutes, lr=1e-3, seed=2)

    def losses(generator: torch.Generator) -> Losses:
        index = torch.randint(len(pool), (batch,), generator=generator)
        x = pool.pictures(index).to(device)
        tokens = tokenize(tokenizer, [pool.captions[i] for i in index.tolist()]).to(device)
        return {"contrast": judge(input_ids=tokens, pixel_values=x, return_loss=True).loss}

    loop.run(losses)


def export(out: Path, path: Path = PATH, judge_path: Path = JUDGE) -> None:
    """Write the trained parts as a pipeline of diffusers, and the judge if there is one. Weights get half precision.

    Args:
        out: the folder of checkpoints. Training need not be finished.
        path: the folder of the pipeline.
        judge_path: the folder of the judge.
    """
    tokenizer = make_tokenizer([*WORDS, ","])
    parts = nn.ModuleDict({"unet": make_unet(), "text_encoder": make_text_encoder(tokenizer)})
    use_average(out / "unet.pt", parts)
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(out / "vae"),
        text_encoder=parts["text_encoder"],
        tokenizer=tokenizer,
        unet=parts["unet"],
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
        part.half()
    pipeline.save_pretrained(path)
    # By default, transformers takes the type from this file and diffusers loads its parts in float32. They must agree.
    config = path / "text_encoder" / "config.json"
    config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
    (path / "tokenizer" / "known_words.json").write_text(json.dumps(TELLING) + "\n")
    if (out / "judge.pt").exists():
        judge = make_judge(tokenizer)
        use_average(out / "judge.pt", judge)
        judge.half().save_pretrained(judge_path)
        _processor(tokenizer).save_pretrained(judge_path)
    for file in chain(path.rglob("*.safetensors"), judge_path.rglob("*.safetensors")):
        file.chmod(0o644)


def _processor(tokenizer: CLIPTokenizer) -> CLIPProcessor:
    """Make the processor that converts PIL pictures and texts to inputs of the judge."""
    side = {"height": 128, "width": 128}
    images = CLIPImageProcessor(size=side, crop_size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return CLIPProcessor(image_processor=images, tokenizer=tokenizer)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the training set and checkpoints")
    parser.add_argument(
        "--stage", choices=("pool", "vae", "unet", "judge", "export"), help="run only this stage (default: all)"
    )
    parser.add_argument("--minutes", type=float, help=f"training time of a stage in minutes (default: {MINUTES})")
    parser.add_argument("--pictures", type=int, default=24_000, help="size of the training set (default: %(default)s)")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")

    def train(stage: str, part: Callable[[Path, float, torch.device], None]) -> Callable[[], None]:
        return lambda: part(args.out, args.minutes or MINUTES[stage], device)

    def once(part: Callable[[], None]) -> Callable[[], None]:
        return part if place()[0] == 0 else lambda: None

    stages = {
        "pool": once(lambda: generate(args.out / "pool", args.pictures)),
        "vae": train("vae", train_vae),
        "unet": train("unet", train_unet),
        "judge": train("judge", train_judge),
        "export": once(lambda: export(args.out)),
    }
    for stage in [args.stage] if args.stage else stages:
        stages[stage]()
        wait()
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
