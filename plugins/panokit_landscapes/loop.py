"""One training loop for all parts: it ends after a given time, can be resumed, has a seed, and averages the weights."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from panokit_landscapes.muon import Muon

Losses = dict[str, Tensor]
"""The terms of a loss, by name."""


def place() -> tuple[int, int]:
    """The rank of this process, and the number of processes."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def wait() -> None:
    """Wait until all processes have called this."""
    if dist.is_initialized():
        dist.barrier()


@dataclass
class Loop:
    """Trains a model for a given running time, however often it is interrupted.

    The learning rate rises linearly at first, and falls by a cosine of the used share of the time, to zero at the end. The
    random numbers of a step depend only on the seed, the number of the step and the rank of the process. Processes of one
    torch.distributed group share every step.

    Attributes:
        checkpoint: the file that keeps the state. If it exists, training continues from it.
        model: the model.
        minutes: running time in minutes, without interruptions.
        lr: the highest learning rate.
        warmup: number of steps in which the learning rate rises.
        seed: of the random numbers of all steps.
        step: number of steps so far.
        seconds: running time so far.
    """

    checkpoint: Path
    model: nn.Module
    minutes: float
    lr: float
    warmup: int = 50
    seed: int = 0
    step: int = field(default=0, init=False)
    seconds: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.rank, self.world = place()
        self.optimizers = _optimizers(self.model, self.lr)
        self.average = EMAModel(self.model.parameters(), decay=0.999, foreach=True)
        if self.checkpoint.exists():
            device = next(self.model.parameters()).device
            state = torch.load(self.checkpoint, map_location=device, weights_only=True)
            self.model.load_state_dict(state["model"])
            for optimizer, optimizer_state in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(optimizer_state)
            self.average.load_state_dict(state["average"])
            self.step, self.seconds = state["step"], state["seconds"]

    @property
    def progress(self) -> float:
        """The used share of the time, 0 to 1."""
        return min(1.0, self.seconds / (60 * self.minutes))

    def generator(self) -> torch.Generator:
        """The random numbers of the current step, on the CPU."""
        return torch.Generator().manual_seed(hash((self.seed, self.step, self.rank)) % (1 << 63))

    def save(self) -> None:
        """Write the checkpoint, on rank 0. The file is whole at any time."""
        if self.rank != 0:
            return
        part = self.checkpoint.with_suffix(".part")
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "average": self.average.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(state, part)
        os.replace(part, self.checkpoint)

    def run(self, losses: Callable[[torch.Generator], Losses], save_every: float = 150, log_every: int = 100) -> None:
        """Minimise a loss until the time is used up. Then give the model its averaged weights.

        Args:
            losses: computes the terms of the loss, from the random numbers of a step. Their sum is minimised.
            save_every: seconds of running time between checkpoints.
            log_every: number of steps between printed lines.
        """
        self.model.train()
        recent: list[Losses] = []
        saved = logged = self.seconds
        self._clock = time.monotonic()
        while self.progress < 1:
            recent.append(self._advance(losses))
            if self.step % log_every == 0:
                means = "  ".join(f"{key} {sum(float(terms[key]) for terms in recent) / len(recent):.4f}" for key in recent[0])
                pace = (self.seconds - logged) / len(recent)
                if self.rank == 0:
                    name = self.checkpoint.stem
                    print(f"{name} {self.progress:4.0%}  step {self.step}  {pace:.2f} s/step  {means}", flush=True)
                recent.clear()
                logged = self.seconds
            if self.seconds - saved > save_every:
                self.save()
                saved = self.seconds
        self.save()
        self.average.copy_to(self.model.parameters())

    def _advance(self, losses: Callable[[torch.Generator], Losses]) -> Losses:
        """Make one step, and return the terms of its loss."""
        lr = self.lr * min(1.0, (self.step + 1) / self.warmup) * 0.5 * (1 + math.cos(math.pi * self.progress))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
        terms = losses(self.generator())
        torch.stack(list(terms.values())).sum().backward()
        self.seconds += self._share(time.monotonic() - self._clock)
        self._clock = time.monotonic()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.model.zero_grad()
        self.average.step(self.model.parameters())
        self.step += 1
        return {name: value.detach() for name, value in terms.items()}

    def _share(self, seconds: float) -> float:
        """Average the gradients and `seconds` over the processes, so that all make the same step and stop at the same time."""
        if self.world == 1:
            return seconds
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([*(g.flatten() for g in gradients), gradients[0].new_tensor([seconds])])
        dist.all_reduce(flat)
        flat /= self.world
        for gradient, mean in zip(gradients, flat[:-1].split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))
        return float(flat[-1])


def use_average(checkpoint: Path, model: nn.Module) -> None:
    """Give a model the averaged weights of a checkpoint."""
    average = EMAModel(model.parameters())
    average.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["average"])
    average.copy_to(model.parameters())


def _optimizers(model: nn.Module, lr: float) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the weights of layers; Adam for biases, norms and embeddings, which are no matrices between activations."""
    tables = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    matrices = [p for p in model.parameters() if p.ndim > 1 and id(p) not in tables]
    chosen = set(map(id, matrices))
    others = [p for p in model.parameters() if id(p) not in chosen]
    return Muon(matrices, lr), torch.optim.Adam(others, lr, betas=(0.9, 0.99))
