r"""Noise levels, and the solvers that take a canvas from one level to the next.

Everywhere in panokit a noisy canvas is $x = \alpha x_0 + \sigma \epsilon$ in the model's own coordinates: $\alpha^2 +
\sigma^2 = 1$, or $\alpha = 1 - \sigma$ for flow matching. Some solvers compute in other coordinates (the variance-exploding
Euler, Heun, LMS, ...). They rescale inside `start` and `step`, so an energy means the same under every scheduler.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from panokit.errors import SettingError, reason_of

Prediction = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]
"""The kinds of prediction, in diffusers' names; `Training.prediction` has their formulas."""


@final
@dataclass(frozen=True)
class Level:
    r"""A noise level: $x = \alpha x_0 + \sigma \epsilon$.

    The numbers are Python's own, so reading them never waits for a device.
    """

    index: int
    """Position in `Solver.levels`, from 0. It identifies the level; `t` does not, because PNDM repeats timesteps."""
    t: int | float
    r"""The time that the network is told, in the units of its training. It need not be whole.

    It is the time at which training had the noise of $\sigma$ and $\alpha$, or the nearest time that training had.
    """
    alpha: float
    r"""$\alpha$, the factor of the clean canvas, in [0, 1]."""
    sigma: float
    r"""$\sigma$, the factor of the noise, in [0, 1]."""
    step: int
    """The number of the run's step that starts here, from 0; `steps` at the terminal level."""
    steps: int
    """The number of steps of the run."""
    main: bool = True
    """False at an inner stage of a solver, such as Heun's corrector. Guidances sleep there, and it does not count as a step."""

    @property
    def progress(self) -> float:
        """The share of the run that is done, from 0 at the first level to 1 at the terminal one."""
        return self.step / self.steps


CLEAN = Level(0, 0.0, 1.0, 0.0, 0, 1)
"""The level of a finished canvas."""


@final
@dataclass(frozen=True)
class Training:
    r"""The noise that a model was trained with. A scheduler builds its levels from it.

    Attributes:
        prediction: the quantity that the network predicts. `epsilon`: the noise $\epsilon$. `v_prediction`: $v = \alpha
            \epsilon - \sigma x_0$. `sample`: the clean $x_0$. `flow_prediction`: the flow $u = \epsilon - x_0$.
        timesteps: number of timesteps in training.
        beta_start: the first $\beta$, in (0, 1).
        beta_end: the last $\beta$, in (0, 1).
        beta_schedule: how $\beta$ goes from the first to the last, in diffusers' names (`linear`, `scaled_linear`, ...).
        zero_snr: whether the betas were rescaled so that no signal is left at the last timestep (Lin et al. 2024).
        shift: the shift of $\sigma$ that flow-matching models use (Esser et al. 2024), above 0; 1 for none.
        sigmas: for flow matching, the $\sigma$ at each of so many steps, from 1 or less down, as the model's own pipeline sets
            them. The end, at 0, is not among them. None: `shift` decides.
        own: makes the solver that the model's own pipeline uses, for a number of steps and a device; None if there is none.
    """

    prediction: Prediction = "epsilon"
    timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    zero_snr: bool = False
    shift: float = 1.0
    sigmas: Callable[[int], Sequence[float]] | None = field(default=None, compare=False, repr=False)
    own: "Callable[[int, torch.device], Solver] | None" = field(default=None, compare=False, repr=False)


def x0_from(
    prediction: Prediction, pred: Float[Tensor, "*shape"], x: Float[Tensor, "*shape"], level: Level
) -> Float[Tensor, "*shape"]:
    r"""Turn a prediction into a clean estimate.

    $x_0 = (x - \sigma \epsilon) / \alpha$ for $\epsilon$, $\alpha x - \sigma v$ for $v$ (Salimans & Ho 2022, appendix D),
    the prediction itself for $x_0$, and $x - \sigma u$ for a flow $u$ (Lipman et al. 2023, with $\alpha = 1 - \sigma$).

    Args:
        prediction: the kind of the prediction.
        pred: the prediction, of any shape.
        x: the noisy canvas or windows that the prediction is for, of the same shape.
        level: the noise level of `x`.

    Returns:
        The clean estimate, of the shape of `x`.
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
    r"""Turn a clean estimate into a prediction: the inverse of `x0_from`, at $\sigma > 0$.

    Args:
        prediction: the kind of prediction to return.
        x0: the clean estimate, of any shape.
        x: the noisy canvas or windows that the estimate is for, of the same shape.
        level: the noise level of `x`.

    Returns:
        The prediction, of the shape of `x`.
    """
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
    """Takes one canvas from noise to a clean picture. A run has a solver of its own, which may remember earlier steps.

    A run calls `start` once, then `step` once for each level but the last, in order. `x0` and `pred` may be called at any
    time, for any canvas.
    """

    levels: Sequence[Level]
    """The noise levels, from the noisiest down. The last one is terminal: no step starts there."""

    @abstractmethod
    def start(self, noise: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Make the canvas at the first level.

        Args:
            noise: standard normal noise, `c *size`, on the run's device.

        Returns:
            The canvas at `levels[0]` in the model's own coordinates, of the shape, dtype and device of `noise`.
        """

    @abstractmethod
    def x0(self, pred: Float[Tensor, "*shape"], x: Float[Tensor, "*shape"], level: Level) -> Float[Tensor, "*shape"]:
        r"""Turn a prediction into a clean estimate $\hat x_0$; `x0_from` has the formulas.

        It must be a pure function, and a gradient must flow from the result to `pred` and `x`.

        Args:
            pred: the model's prediction in its own type (`Training.prediction`), for windows or for a canvas.
            x: the noisy windows or canvas that the prediction is for, of the same shape.
            level: the noise level of `x`.

        Returns:
            The clean estimate, of the shape of `x`.
        """

    @abstractmethod
    def pred(self, x0: Float[Tensor, "*shape"], x: Float[Tensor, "*shape"], level: Level) -> Float[Tensor, "*shape"]:
        """Turn a clean estimate into a prediction: the inverse of `x0`, and a pure function too.

        The run needs it where a guidance corrected or supplied the clean estimate.

        Args:
            x0: the clean estimate, for windows or for a canvas.
            x: the noisy windows or canvas that the estimate is for, of the same shape.
            level: the noise level of `x`, never the terminal one.

        Returns:
            The prediction in the model's own type, of the shape of `x`.
        """

    @abstractmethod
    def step(
        self, pred: Float[Tensor, "*shape"], x: Float[Tensor, "*shape"], level: Level, generator: torch.Generator
    ) -> Float[Tensor, "*shape"]:
        """Take the canvas one level down. Called once for each level but the last, in order.

        Args:
            pred: the model's prediction for the whole canvas, fused, `c *size`.
            x: the canvas at `level`, `c *size`, in the model's own coordinates.
            level: the noise level of `x`.
            generator: the run's generator, on the CPU. Noise is drawn from it, at most once a step, for the whole canvas, so
                that any number of ranks draws the same.

        Returns:
            The canvas at `levels[level.index + 1]`, of the shape and dtype of `x`.
        """

    @abstractmethod
    def state(self) -> Mapping[str, Any]:
        """Everything that later steps depend on, for a checkpoint.

        Returns:
            A mapping of names to tensors, numbers, text, or lists, tuples and dicts of them. Later steps must not change it.
        """

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state: later steps are those of the solver that returned it.

        Args:
            state: what `state` returned, in a solver of the same scheduler, steps and training. Its tensors may be on another
                device.
        """


class Scheduler(ABC):
    """The settings of a solver.

    A scheduler never changes. The solver that `begin` returns holds what a run remembers, so one scheduler serves many runs.
    """

    @abstractmethod
    def begin(self, steps: int, device: torch.device, training: Training) -> Solver:
        """Make a solver for one run.

        Args:
            steps: number of denoising steps that the user asked for, 1 or more.
            device: the device of the canvas, for tensors that the solver keeps.
            training: the noise that the model was trained with, which fixes the levels and the kind of prediction.

        Returns:
            A new solver at its first level.

        Raises:
            SettingError: the scheduler cannot make that many steps, or cannot work with such a model.
        """


@final
@dataclass(frozen=True)
class Own(Scheduler):
    """The model's own scheduler, exactly as the model's pipeline sets it for a picture of one window."""

    def begin(self, steps: int, device: torch.device, training: Training) -> Solver:
        if training.own is None:
            raise SettingError("the model brings no scheduler of its own: name one, such as ddim")
        try:
            return training.own(steps, device)
        except SettingError:
            raise
        except ValueError as cause:  # diffusers' own, of too many steps
            reason = reason_of(cause, 1000)
            raise SettingError(f"the model's own scheduler cannot make {steps} steps: {reason}") from cause
