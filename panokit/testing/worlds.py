"""Worlds that are known exactly, so that what a part does in them can be said beforehand."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from jaxtyping import Float
from torch import Tensor, nn

from panokit.denoiser import Denoiser, Prompt
from panokit.grid import Grid
from panokit.scheduler import Level, Solver, Training, pred_from


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


@final
@dataclass(frozen=True)
class Gaussian(Denoiser):
    r"""A world of normal noise: every cell is $x_0 \sim N(\mu, v)$, whatever the others are, and the perfect model knows.

    Its estimate is the posterior mean (the conditional mean of jointly normal variables),
    $$ E[x_0 | x] = \mu + \frac{\alpha v}{\alpha^2 v + \sigma^2} (x - \alpha \mu). $$
    Cells are independent, so windows agree wherever they overlap, and a canvas of windows is as exact as one window. A
    deterministic solver with many steps takes $x = \alpha \mu + \sqrt{\alpha^2 v + \sigma^2}\, z$ down with $z$ unchanged.

    Attributes:
        mean: $\mu$.
        variance: $v$, > 0.
        window: cells of a window.
        channels: of the canvas.
        training: what the model is taken to have been trained with, the type of its prediction above all.
    """

    mean: float = 0.0
    variance: float = 1.0
    window: tuple[int, ...] = (8, 8)
    channels: int = 4
    training: Training = field(default_factory=Training)

    def modules(self) -> Iterable[nn.Module]:
        return ()

    def encode(self, prompt: Prompt, negative_prompt: str, guidance_scale: float) -> Any:
        return None

    def condition(self, embeddings: Any, grid: Grid, index: Sequence[int]) -> Any:
        return None

    def x0(self, x: Float[Tensor, "*shape"], level: Level) -> Float[Tensor, "*shape"]:
        """The posterior mean."""
        gain = level.alpha * self.variance / (level.alpha**2 * self.variance + level.sigma**2)
        return self.mean + gain * (x - level.alpha * self.mean)

    def __call__(self, x: Float[Tensor, "n *c_window"], level: Level, condition: Any) -> Float[Tensor, "n *c_window"]:
        return pred_from(self.training.prediction, self.x0(x, level), x, level)
