"""Worlds with a perfect model, so that tests know the exact result; and the noise that a model was trained with, exactly."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, final

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from panokit.denoiser import Denoiser
from panokit.scene import Scene
from panokit.scheduler import Level, Solver, Training, pred_from
from panokit.windows import Windows


def times_of(training: Training, alpha: float, sigma: float) -> tuple[float, float]:
    r"""The time at which training had the noise of $\alpha$ and $\sigma$, or the nearest time that training had.

    Between two timesteps $\sigma / \alpha$ may be taken for linear or for exponential. Solvers do both.

    Args:
        training: the noise of the training, with betas that are linear or scaled linear (Ho et al. 2020, Rombach et al. 2022),
            with or without any signal at the end (Lin et al. 2024, algorithm 1); or that of a flow.
        alpha: the factor of the clean canvas, > 0 unless for a flow.
        sigma: the factor of the noise, > 0.

    Returns:
        The times of both readings, in the units of training.
    """
    if training.prediction == "flow_prediction":
        return sigma * training.timesteps, sigma * training.timesteps
    noise, times = _trained(training.timesteps, _betas(training), training.zero_snr), np.arange(training.timesteps)
    here = sigma / alpha if alpha else math.inf
    return float(np.interp(here, noise, times)), float(np.interp(math.log(here), np.log(noise), times))


def _betas(training: Training) -> tuple[float, float, float]:
    """The first and the last beta, and the power that is linear in time."""
    return training.beta_start, training.beta_end, {"linear": 1.0, "scaled_linear": 0.5}[training.beta_schedule]


@lru_cache
def _trained(timesteps: int, betas: tuple[float, float, float], zero_snr: bool) -> Any:
    r"""$\sigma / \alpha$ at each timestep, which rises."""
    first, last, power = betas
    alphas = np.sqrt(np.cumprod(1 - np.linspace(first**power, last**power, timesteps) ** (1 / power)))
    if zero_snr:
        alphas = (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])
        alphas[-1] = 2**-12  # diffusers' least signal in the place of none, so that the last of the quotients is a number
    return np.sqrt(1 - alphas**2) / alphas


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
