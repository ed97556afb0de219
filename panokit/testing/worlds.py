"""Worlds with a perfect model, so that tests know the exact result."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from jaxtyping import Float
from torch import Tensor, nn

from panokit.denoiser import Denoiser
from panokit.scene import Scene
from panokit.scheduler import Level, Solver, Training, pred_from
from panokit.windows import Windows


@final
@dataclass(frozen=True, eq=False)
class OneImage:
    r"""A world with one image. Every noisy canvas contains this image, and the perfect model knows it.

    So the noise of a canvas is $\epsilon = (x - \alpha x_0) / \sigma$, and a deterministic solver keeps it. Every solver ends
    at $\alpha x_0$, up to noise of the terminal level's $\sigma$.

    Attributes:
        image: the image, in the shape of the canvas.
    """

    image: Float[Tensor, "*shape"]

    def predict(self, solver: Solver, x: Float[Tensor, "*shape"], level: Level) -> Float[Tensor, "*shape"]:
        """The prediction of the perfect model, of the type that the solver expects."""
        return solver.pred(self.image, x, level)


@final
@dataclass(frozen=True)
class Gaussian(Denoiser):
    r"""A world of normal noise: all cells are independent, $x_0 \sim N(\mu, v)$, and the perfect model knows it.

    Its estimate is the posterior mean (the conditional mean of jointly normal variables),
    $$ E[x_0 | x] = \mu + \frac{\alpha v}{\alpha^2 v + \sigma^2} (x - \alpha \mu). $$
    Cells are independent, so windows agree wherever they overlap, and a canvas of windows is as exact as one window. A
    deterministic solver with many steps takes $x = \alpha \mu + \sqrt{\alpha^2 v + \sigma^2}\, z$ down with $z$ unchanged.

    Attributes:
        mean: $\mu$.
        variance: $v$, > 0.
        window: cells of a window.
        channels: number of channels of the canvas.
        training: the training noise that solvers assume, and the type of the prediction.
    """

    mean: float = 0.0
    variance: float = 1.0
    window: tuple[int, ...] = (8, 8)
    channels: int = 4
    training: Training = field(default_factory=Training)

    def modules(self) -> Iterable[nn.Module]:
        return ()

    def encode(self, scene: Scene) -> Any:
        return None

    def condition(self, embeddings: Any, windows: Windows, index: Sequence[int]) -> Any:
        return None

    def x0(self, x: Float[Tensor, "*shape"], level: Level) -> Float[Tensor, "*shape"]:
        """The posterior mean."""
        gain = level.alpha * self.variance / (level.alpha**2 * self.variance + level.sigma**2)
        return self.mean + gain * (x - level.alpha * self.mean)

    def __call__(self, x: Float[Tensor, "n *c_window"], level: Level, condition: Any) -> Float[Tensor, "n *c_window"]:
        return pred_from(self.training.prediction, self.x0(x, level), x, level)
