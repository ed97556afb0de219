"""A run on as many ranks as the command line says; rank 0 writes the latents. Started by `test_runtime.py`."""

import sys

import torch

from panokit import DiffusersScheduler, Runtime, Sampler
from panokit.testing.tiny import tiny_model
from panokit_multidiffusion import MultiDiffusion


def main(devices: int, path: str) -> None:
    runtime = Runtime(devices=devices, accelerator="cpu", micro_batch=2)
    sampler = Sampler(tiny_model(), scheduler=DiffusersScheduler("ddpm"), fuser=MultiDiffusion(), runtime=runtime)
    for run in sampler.stream("a lake", height=26, width=58, steps=3, seed=3, wrap="x"):  # noqa: B007 - only the last counts
        pass
    if runtime.rank == 0:
        torch.save(run.canvas, path)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
