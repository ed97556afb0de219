r"""Solvers tried on small canvases before a run: is there as much noise as the levels say, and what does an option change?

In a world of one image every canvas is $\alpha x_0 + \sigma \epsilon$ with the same $x_0$, and the perfect model knows it. What
is left of a canvas without $\alpha x_0$ is its noise. It must be as much as the level says. Otherwise guidances and the network
are told another level than that of the canvas.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from panokit.scheduler import Level, Solver

SHAPE = 4, 32, 32
"""So many cells that the noise of a solver with randomness is known to about 1 %."""


@final
class Measured(NamedTuple):
    """The noise of a canvas in the world of one image."""

    level: Level
    noise: float
    """The standard deviation of what is left of the canvas without the image: the level's sigma, if the solver is right."""
    off: float
    """The root mean square of the difference to the noise that the level says. Where noise was drawn, no cell's noise is known
    beforehand, so it is the difference of the standard deviations."""
    allowed: float
    """How much `off` may be: the errors of float32, and of the measure where noise was drawn."""

    @property
    def right(self) -> bool:
        """Whether the canvas has the noise that the level says."""
        return self.off <= self.allowed  # NaN is not


def measure(solver: Solver) -> Iterator[Measured]:
    """Run a new solver in the world of one image, from a canvas at its first level.

    Args:
        solver: a solver at its first level. It is at its last one after.

    Yields:
        The noise of the canvas at each level but the first.
    """
    image = 1.6 * torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) - 0.8  # nothing that a solver may clip
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    random = torch.Generator().manual_seed(2)
    before, first = random.get_state(), solver.levels[0]
    x = first.alpha * image + first.sigma * noise
    for level, below in pairwise(solver.levels):
        x = solver.step(solver.pred(image, x, level), x, level, random)
        rest = x - below.alpha * image
        has = _rms(rest)
        if torch.equal(random.get_state(), before):
            yield Measured(below, has, _rms(rest - below.sigma * noise), 1e-3 + 0.01 * below.sigma)
        else:
            yield Measured(below, has, abs(has - below.sigma), 1e-3 + 0.06 * below.sigma)


def alike(one: Solver, other: Solver) -> bool:
    """Whether two new solvers have the same levels, and make the same canvases of the same predictions, to the bit.

    The predictions differ from level to level, and reach far beyond what a solver may clip.
    """
    if list(one.levels) != list(other.levels):
        return False
    randoms = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    x = y = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    cells = torch.arange(x.numel()).view(SHAPE)
    for level in one.levels[:-1]:
        x0 = 4 * torch.cos(cells + 3.0 * level.index)
        x = one.step(one.pred(x0, x, level), x, level, randoms[0])
        y = other.step(other.pred(x0, y, level), y, level, randoms[1])
        if not torch.equal(x, y):
            return False
    return True


def _rms(x: Float[Tensor, "*shape"]) -> float:
    return float(x.square().mean().sqrt())
