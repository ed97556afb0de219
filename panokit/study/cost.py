"""Measures what methods cost: passes through the denoiser, and seconds."""

import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from panokit.denoiser import Denoiser, WrappedDenoiser
from panokit.jobs import Worker
from panokit.sampler import Sampler
from panokit.scheduler import Level
from panokit.study.plan import Job


class Cost(NamedTuple):
    """The cost of one panorama.

    Attributes:
        forward: number of windows that went forward through the denoiser.
        backward: number of windows whose gradient went back through the denoiser.
        seconds: elapsed time on a CUDA device; elsewhere CPU time of the process, which other programs do not lengthen.
    """

    forward: int
    backward: int
    seconds: float


def costs(jobs: Sequence[Job], worker: Worker, rounds: int) -> list[Cost]:
    """Measure the cost of each job. The jobs run in turns, so a change in the machine's speed affects all of them.

    Args:
        jobs: the jobs, one for each method.
        worker: makes the panoramas.
        rounds: how often each job runs. It is raised to the number of ranks, so that every rank has work.

    Returns:
        The cost of each job, in order. The seconds are the median over all rounds.
    """
    rows = worker.runtime.replicas(lambda _: [_cost(job, worker) for job in jobs], max(rounds, worker.runtime.world_size))
    return [costs[0]._replace(seconds=median(cost.seconds for cost in costs)) for costs in zip(*rows, strict=True)]


def _cost(job: Job, worker: Worker) -> Cost:
    plan = worker.plan(job)
    sampler = plan.sampler
    denoiser = _Counted(sampler.model.denoiser)
    counted = Sampler(
        replace(sampler.model, denoiser=denoiser),
        scheduler=sampler.scheduler,
        layout=sampler.layout,
        fuser=sampler.fuser,
        guidances=sampler.guidances,
        runtime=sampler.runtime,
    )
    start = _seconds(sampler.runtime.device)
    counted(plan.prompt, **plan.settings.as_data(), progress=False)
    return Cost(denoiser.forward, denoiser.backward, _seconds(sampler.runtime.device) - start)


def _seconds(device: torch.device) -> float:
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


@final
class _Counted(WrappedDenoiser):
    """A denoiser that counts the windows that go through it."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        self.forward = self.backward = 0

    def __call__(self, x: Float[Tensor, "n *c_window"], level: Level, condition: Any) -> Float[Tensor, "n *c_window"]:
        self.forward += len(x)
        pred = self.inner(x, level, condition)
        if pred.requires_grad:
            pred.register_hook(self._count_backward)
        return pred

    def _count_backward(self, gradient: Tensor) -> None:
        self.backward += len(gradient)
