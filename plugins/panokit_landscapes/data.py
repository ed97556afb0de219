"""The training set: pictures of the procedural world with captions, generated once, in chunks on disk."""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

from panokit_landscapes.world import FAMILIES, training_picture

CHUNK = 500
"""Number of pictures in a chunk."""


def to_tensor(pictures: NDArray[np.uint8]) -> Tensor:
    """Convert pictures, uint8 (n, H, W, 3), to the input of the autoencoder, float (n, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))).float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Convert images (n, 3, H, W) in [-1, 1] to uint8."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def save_array(path: Path, array: NDArray[np.generic]) -> None:
    """Write an .npy file whole, or not at all."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.save(file, array)
    os.replace(part, path)


def _generate(folder: Path, seed: int, number: int) -> None:
    """Write chunk `number`. The seed alone decides it, whichever process writes it."""
    rng = np.random.default_rng((seed, number))
    pictures, captions, scenes = zip(*(training_picture(rng) for _ in range(CHUNK)), strict=True)
    families = [FAMILIES.index(scene.family) for scene in scenes]
    (folder / f"captions-{number:04}.json").write_text(json.dumps([captions, families]))
    save_array(folder / f"pictures-{number:04}.npy", np.stack(pictures))


def generate(folder: Path, count: int, seed: int = 0, workers: int | None = None) -> None:
    """Fill a folder with training pictures. Chunks that exist are kept.

    Args:
        folder: the folder.
        count: the least number of pictures; it is rounded up to whole chunks.
        seed: of the random numbers.
        workers: number of processes; None for one on each core.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [n for n in range(-(-count // CHUNK)) if not (folder / f"pictures-{n:04}.npy").exists()]
    with ProcessPoolExecutor(workers or os.cpu_count(), mp_context=get_context("spawn")) as pool:
        list(pool.map(partial(_generate, folder, seed), missing))


class Pool:
    """The training set in a folder.

    Args:
        folder: the folder, filled by `generate`.

    Attributes:
        chunks: the pictures, uint8 (CHUNK, 128, 128, 3) in each chunk, mapped from the disk.
        captions: the caption of each picture.
        families: the family of each picture, as a position in `FAMILIES`.

    Raises:
        FileNotFoundError: the folder has no pictures.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.chunks = [np.load(path, mmap_mode="r") for path in sorted(folder.glob("pictures-*.npy"))]
        if not self.chunks:
            raise FileNotFoundError(f"no pictures-*.npy in {folder}: expected a training set; run the stage `pool` first")
        self.captions: list[str] = []
        self.families: list[int] = []
        for number in range(len(self.chunks)):
            captions, families = json.loads((folder / f"captions-{number:04}.json").read_text())
            self.captions += captions
            self.families += families

    def __len__(self) -> int:
        return len(self.captions)

    def pictures(self, index: Tensor) -> Tensor:
        """The pictures with the numbers `index`, float (len(index), 3, 128, 128) in [-1, 1]."""
        return to_tensor(np.stack([self.chunks[i // CHUNK][i % CHUNK] for i in index.tolist()]))

    @torch.no_grad()
    def encode(self, vae: AutoencoderKL, rank: int = 0, world: int = 1, batch: int = 50) -> None:
        """Write the latents of this rank's share of the chunks. Latents that exist are kept.

        Args:
            vae: the autoencoder.
            rank: the rank of this process.
            world: the number of processes.
            batch: number of pictures that are encoded at once.
        """
        for number in range(rank, len(self.chunks), world):
            path = self._latents(number)
            if not path.exists():
                pictures = to_tensor(np.array(self.chunks[number])).to(vae.device, memory_format=torch.channels_last)
                posteriors = [vae.encode(part).latent_dist for part in pictures.split(batch)]
                both = torch.stack([torch.cat([p.mean for p in posteriors]), torch.cat([p.std for p in posteriors])])
                save_array(path, both.cpu().numpy().astype(np.float16))

    def forget_latents(self) -> None:
        """Remove the latents that `encode` wrote."""
        for path in self.folder.glob("latents-*.npy"):
            path.unlink()

    def latents(self) -> tuple[Tensor, Tensor]:
        """Read the latents that `encode` wrote: their means and standard deviations, both float (n, 4, 16, 16)."""
        both = [torch.from_numpy(np.load(self._latents(number))).float() for number in range(len(self.chunks))]
        mean, std = torch.cat(both, dim=1)
        return mean, std

    def _latents(self, number: int) -> Path:
        return self.folder / f"latents-{number:04}.npy"


def disturb(caption: str, rng: np.random.Generator) -> str:
    """Insert a random word into one caption in five, so that the model learns to ignore unknown words."""
    if rng.random() < 0.8:
        return caption
    letters = rng.choice(list("abcdefghijklmnopqrstuvwxyz0123456789"), rng.integers(1, 9))
    words = caption.split()
    words.insert(int(rng.integers(len(words) + 1)), "".join(letters))
    return " ".join(words)
