r"""Noise levels, and the solver that takes a canvas from one to the next.

Everywhere in panokit a noisy canvas is $x = \alpha x_0 + \sigma \epsilon$ in the model's own coordinates: $\alpha^2 +
\sigma^2 = 1$, or $\alpha = 1 - \sigma$ for flow matching. A solver that computes in others (the variance-exploding Euler,
Heun, LMS, ...) rescales inside `start` and `step`, so that one energy means the same under every scheduler.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

Prediction = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]


@final
@dataclass(frozen=True)
class Level:
    r"""A noise level on the way down: $x = \alpha x_0 + \sigma \epsilon$.

    The numbers are Python's, so that asking costs no device synchronisation.
    """

    index: int
    """Position in the solver's list. A level is known by it, never by `t`, which PNDM repeats."""
    t: int | float
    """What the model is told."""
    alpha: float
    sigma: float
    step: int
    """Which of the run's steps this is, from 0; `steps` at the terminal level."""
    steps: int
    """How many steps the run has."""
    main: bool = True
    """False at an inner stage of a solver (Heun's corrector), which is never guided and never counted."""

    @property
    def progress(self) -> float:
        """How much of the run is done: 0 at the first level, 1 at the terminal one."""
        return self.step / self.steps


@final
@dataclass(frozen=True)
class Training:
    r"""What a model was trained with: the part of a scheduler that belongs to the model.

    Attributes:
        prediction: what the network returns: $\epsilon$; $v = \alpha \epsilon - \sigma x_0$; $x_0$ itself; or the flow
            $\epsilon - x_0$.
        timesteps: how many there are in training.
        beta_start: the first $\beta$.
        beta_end: the last $\beta$.
        beta_schedule: how $\beta$ goes from one to the other, in diffusers' names (`linear`, `scaled_linear`, ...).
        zero_snr: whether the betas were rescaled to end without any signal.
        shift: the flow-matching models' shift of $\sigma$.
    """

    prediction: Prediction = "epsilon"
    timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    zero_snr: bool = False
    shift: float = 1.0


def x0_from(
    prediction: Prediction, pred: Float[Tensor, "*shape"], x: Float[Tensor, "*shape"], level: Level
) -> Float[Tensor, "*shape"]:
    r"""The clean estimate that a prediction means.

    $x_0 = (x - \sigma \epsilon) / \alpha$ for $\epsilon$, $\alpha x - \sigma v$ for $v$ (Salimans & Ho 2022, appendix D),
    the prediction itself for $x_0$, and $x - \sigma u$ for a flow $u$ (Lipman et al. 2023, with $\alpha = 1 - \sigma$).
    """
    match prediction:
        case "epsilon":
            return (x - level.sigma * pred) / level.alpha
        case "v_prediction":
            return level.alpha * x - level.sigma * pred
        case "sample":
            return pred
        case "flow_prediction":
            return x - level.sigma * pred


def pred_from(
    prediction: Prediction, x0: Float[Tensor, "*shape"], x: Float[Tensor, "*shape"], level: Level
) -> Float[Tensor, "*shape"]:
    r"""The prediction that means `x0`: the inverse of `x0_from` at $\sigma > 0$."""
    match prediction:
        case "epsilon":
            return (x - level.alpha * x0) / level.sigma
        case "v_prediction":
            return (level.alpha * x - x0) / level.sigma
        case "sample":
            return x0
        case "flow_prediction":
            return (x - x0) / level.sigma


class Solver(ABC):
    """The memory of one run: where the noise levels are and how a canvas goes from one to the next."""

    levels: Sequence[Level]
    """From the noisiest down; the last one is terminal: no step starts there."""

    @abstractmethod
    def start(self, noise: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The canvas at the first level, from standard normal noise."""

    @abstractmethod
    def x0(self, pred: Float[Tensor, "*shape"], x: Float[Tensor, "*shape"], level: Level) -> Float[Tensor, "*shape"]:
        """The clean estimate that a prediction means: pure, differentiable, for any leading axes."""

    @abstractmethod
    def pred(self, x0: Float[Tensor, "*shape"], x: Float[Tensor, "*shape"], level: Level) -> Float[Tensor, "*shape"]:
        """The prediction that means `x0`: the inverse of `x0`, as pure as that."""

    @abstractmethod
    def step(
        self, pred: Float[Tensor, "*shape"], x: Float[Tensor, "*shape"], level: Level, generator: torch.Generator
    ) -> Float[Tensor, "*shape"]:
        """The canvas at `levels[level.index + 1]`. Called once a level, in order; noise comes from the generator, once."""

    @abstractmethod
    def state(self) -> Mapping[str, Any]:
        """All that later steps depend on: tensors, numbers, text, and lists and dicts of them."""

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on as the solver went on whose `state` this was."""


class Scheduler(ABC):
    """The settings of a solver. It never changes: what a run remembers is in the solver that `begin` returns."""

    @abstractmethod
    def begin(self, steps: int, device: torch.device, training: Training) -> Solver:
        """A fresh solver for one run.

        Args:
            steps: how many denoising steps the user wants, 1 or more.
            device: where the canvas is.
            training: what the model was trained with.

        Raises:
            SettingError: the scheduler cannot do that many steps, or cannot drive such a model.
        """
