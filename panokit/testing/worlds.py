"""Worlds that are known exactly, so that what a part does in them can be said beforehand."""

from dataclasses import dataclass
from typing import final

from jaxtyping import Float
from torch import Tensor

from panokit.scheduler import Level, Solver


@final
@dataclass(frozen=True, eq=False)
class OneImage:
    r"""A world of one image: it lies under every noisy canvas, and the perfect model knows.

    The noise of a canvas is then $\epsilon = (x - \alpha x_0) / \sigma$, a solver without randomness keeps it, and every
    solver lands on $\alpha x_0$, but for noise of the terminal level's $\sigma$.

    Attributes:
        image: the only one, of the canvas's shape.
    """

    image: Float[Tensor, "*shape"]

    def predict(self, solver: Solver, x: Float[Tensor, "*shape"], level: Level) -> Float[Tensor, "*shape"]:
        """The perfect model's prediction, of the type that the solver was begun for."""
        return solver.pred(self.image, x, level)
