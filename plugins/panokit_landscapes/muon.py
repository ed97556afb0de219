"""Muon (Jordan et al. 2024), an optimizer. On two cores it trains the autoencoder several times as fast as Adam."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # see below
from torch import Tensor

# torch's optimizers import this module at their first use. Its functions keep the process group of that moment as a default
# argument, so the threads of that group never end. A thread that still works when the interpreter exits aborts the process.
# So the module is imported here, before there is any group.


class Muon(torch.optim.Optimizer):
    r"""Moves weights along the orthogonal matrix that is nearest to their momentum.

    $$ W \leftarrow W - 0.2 \sqrt{\max(m, n)}\; \eta\; U V^T, \quad U S V^T = \beta M + (1 - \beta) G, $$
    for $m \times n$ matrices. All axes of a weight but the first are flattened to one. The factor gives a step the same root
    mean square as a step of Adam. `torch.optim.Muon` does the same in bfloat16, but most CPUs cannot calculate with that, and
    it takes only weights with two axes.

    Args:
        params: weights with two or more axes.
        lr: the learning rate $\eta$.
        momentum: the share $\beta$ of the old mean in the mean of gradients, 0 to 1.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Make one step. If there are several processes, they have the same gradients and share the work.

        Args:
            closure: ignored.
        """
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
                dist.all_reduce(steps)  # each part is zero on all ranks but one
            for weight, part in zip(weights, parts, strict=True):
                weight.sub_(part.view(weight.shape), alpha=0.2 * group["lr"])


def orthogonal(matrix: Tensor, rounds: int = 5) -> Tensor:
    """Compute about U V^T for a matrix U S V^T, by a Newton-Schulz iteration of fifth order.

    Args:
        matrix: the matrix, (m, n).
        rounds: number of iterations.

    Returns:
        A matrix with singular values of about 0.7 to 1.2.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / (wide.norm() + 1e-7)
    for _ in range(rounds):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T
