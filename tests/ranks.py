"""What ranks do in the tests of sharding: each function runs in every process, started by `panokit.testing.processes`."""

from typing import Any

import torch
from torch import Tensor

from panokit import DiffusersScheduler, Guidance, Runtime, Sampler
from panokit.testing.tiny import tiny_model
from panokit_msd import MSDGuidance
from panokit_multidiffusion import MultiDiffusion
from panokit_syncdiffusion import SyncDiffusion


def runtime(**options: Any) -> Runtime:
    return Runtime(accelerator="cpu", micro_batch=2, **options)


def guidances(name: str) -> list[Guidance]:
    sync = SyncDiffusion(metric=lambda a, b: (a - b).square().flatten(1).sum(1), weight=1.0)
    return {
        "none": [],
        "sync": [sync],
        "msd": [MSDGuidance(levels=2)],
        "msd3": [MSDGuidance(levels=3)],
        "paper": [MSDGuidance.paper(levels=2)],
        "both": [sync, MSDGuidance(levels=2)],
    }[name]


def latents(path: str, cases: list[tuple[str, str, str]]) -> None:
    """The latents of all cases, (guidance, scheduler, wrap), as each rank has them, in PATH.RANK."""
    shared = runtime()
    made: list[Tensor] = []
    for name, scheduler, wrap in cases:
        sampler = Sampler(
            tiny_model(),
            scheduler=DiffusersScheduler(scheduler),
            fuser=MultiDiffusion(),
            guidances=guidances(name),
            runtime=shared,
        )
        size = {"height": 64, "width": 64} if name == "msd3" else {"height": 32, "width": 64}
        for run in sampler.stream("a lake", **size, steps=3, seed=3, wrap=wrap or False):  # noqa: B007 - only the last counts
            pass
        made.append(run.canvas)
    torch.save(made, f"{path}.{shared.rank}")
