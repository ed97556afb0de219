"""Muon (Jordan et al. 2024): momentum, orthogonalised. On two cores it trains an autoencoder several times as fast as Adam."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # see below
from torch import Tensor

# An optimizer imports the line above on first use. Its functions keep the group of that moment as a default, and a group that
# is kept never ends its threads: one that is still at work when the interpreter goes aborts the process. So: before any group.


class Muon(torch.optim.Optimizer):
    r"""Steps along the orthogonal matrix nearest to the momentum, for weights of two or more axes.

    $$ W \leftarrow W - 0.2 \sqrt{\max(m, n)}\; \eta\; U V^T, \quad U S V^T = \beta M + (1 - \beta) G, $$
    for $m \times n$ matrices, with all axes of a weight but the first as one. The factor gives a step the root mean square of
    one of Adam's. `torch.optim.Muon` does the same in bfloat16, which most CPUs cannot calculate with, and for two axes alone.

    Args:
        params: weights of two or more axes.
        lr: the learning rate, $\eta$.
        momentum: $\beta$.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step, from the gradients as they are; the processes of a group, who have the same, share the work."""
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            steps = torch.zeros(sum(map(torch.numel, weights)), device=weights[0].device)
            parts = steps.split([weight.numel() for weight in weights])
            for number, (weight, part) in enumerate(zip(weights, parts, strict=True)):
                gradient = weight.grad.flatten(1)
                mean = self.state[weight].setdefault("mean", torch.zeros_like(gradient))
                mean.lerp_(gradient, 1 - group["momentum"])
                if number % world == rank:
                    step = orthogonal(gradient.lerp(mean, group["momentum"]))
                    part.copy_(step.flatten() * max(step.shape) ** 0.5)
            if world > 1:
                dist.all_reduce(steps)  # of every part, all addends but one are zero
            for weight, part in zip(weights, parts, strict=True):
                weight.sub_(part.view(weight.shape), alpha=0.2 * group["lr"])


def orthogonal(matrix: Tensor, rounds: int = 5) -> Tensor:
    """About U V^T of a matrix U S V^T, with singular values between 0.7 and 1.2: a Newton-Schulz iteration of fifth order."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / (wide.norm() + 1e-7)
    for _ in range(rounds):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T
