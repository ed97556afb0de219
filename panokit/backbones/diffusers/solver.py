r"""The solver of one run, around an object of diffusers.

A canvas is always in the model's own coordinates. Some of diffusers' schedulers compute on $\tilde x = x / \alpha = x_0 +
\tilde\sigma \epsilon$ instead, with $\alpha = 1 / \sqrt{1 + \tilde\sigma^2}$ (variance exploding, Karras et al. 2022). For
these, `start` and `step` rescale the canvas, so diffusers' `scale_model_input` is not needed.
"""

import inspect
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from panokit.backbones.diffusers.kinds import Kind
from panokit.backbones.diffusers.levels import levels_of, strides
from panokit.errors import SettingError
from panokit.plain import map_leaves
from panokit.rehearsal import measure
from panokit.scheduler import Level, Prediction, Solver, Training, pred_from, x0_from


@final
class DiffusersSolver(Solver):
    """The solver of one run. It calls the step of an object of diffusers once for each level.

    diffusers decides the precision. Euler, Euler ancestral, the multistep DPM solvers and the flow solvers compute in float32
    and cast back. All others compute in the type of the canvas, with coefficients rounded to float32.

    Args:
        kind: how the class differs from others.
        scheduler: the object of diffusers, with its timesteps set.
        options: the options of the scheduler; those of the step are passed on.
        device: the device of the canvas.
        prediction: the kind of prediction of the model.
        exact: whether the network is told the time in training with the noise of the level. Otherwise it is told the
            timesteps of the scheduler, which may be rounded.
    """

    def __init__(
        self,
        kind: Kind,
        scheduler: Any,
        options: Mapping[str, Any],
        device: torch.device,
        prediction: Prediction,
        *,
        exact: bool = True,
    ) -> None:
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)  # otherwise it searches for the first timestep, and takes the second of two equal ones
        if hasattr(scheduler, "is_scale_input_called"):
            scheduler.is_scale_input_called = True  # otherwise it warns; this adapter scales instead
        self.levels = levels_of(kind, scheduler, flow=prediction == "flow_prediction", exact=exact)
        self._strides = strides(scheduler) if kind.end == "stride" and not hasattr(scheduler, "sigmas") else []
        if not exact and all(abs(stride - _stride_of(scheduler)) <= 1 for stride in self._strides):
            self._strides = []  # a model's own scheduler rounds as its pipeline does
        self._kind, self._scheduler, self._device, self._prediction = kind, scheduler, device, prediction
        self._options = {key: value for key, value in options.items() if key in kind.step()}
        self._draws = "generator" in inspect.signature(scheduler.step).parameters
        self._times: list[int | float] = scheduler.timesteps.tolist()  # as tensors, they would be read several times a step
        self._begun = dict(vars(scheduler))

    def start(self, noise: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The canvas at the first level: the noise times diffusers' own scale, which is 1 or slightly less."""
        scale = float(getattr(self._scheduler, "init_noise_sigma", 1.0))
        return noise * (scale * self.levels[0].alpha if self._kind.exploding else scale)

    def x0(self, pred: Float[Tensor, "*shape"], x: Float[Tensor, "*shape"], level: Level) -> Float[Tensor, "*shape"]:
        """Turn a prediction into a clean estimate, by `panokit.scheduler.x0_from`."""
        return x0_from(self._prediction, pred, x, level)

    def pred(self, x0: Float[Tensor, "*shape"], x: Float[Tensor, "*shape"], level: Level) -> Float[Tensor, "*shape"]:
        """Turn a clean estimate into a prediction, by `panokit.scheduler.pred_from`."""
        return pred_from(self._prediction, x0, x, level)

    def step(
        self, pred: Float[Tensor, "*shape"], x: Float[Tensor, "*shape"], level: Level, generator: torch.Generator
    ) -> Float[Tensor, "*shape"]:
        """Take the canvas one level down; see `Solver.step`."""
        native = self._kind.native(self._prediction)
        if native != self._prediction:
            pred = pred_from(native, self.x0(pred, x, level), x, level)
        if self._kind.exploding:
            x = x / level.alpha
        t = self._times[level.index]
        options = {**self._options, "generator": generator} if self._draws else self._options
        if self._strides:  # diffusers goes down by num_train_timesteps // num_inference_steps, the same at each step
            trained = self._scheduler.config.num_train_timesteps
            self._scheduler.num_inference_steps = Fraction(trained, self._strides[level.index])
        with without_numpy_warnings():  # UniPC and thresholding need a batch axis
            x = self._scheduler.step(pred[None], t, x[None], **options, return_dict=False)[0][0]
        if self._strides:
            self._scheduler.num_inference_steps = self._begun["num_inference_steps"]
        return x * self.levels[level.index + 1].alpha if self._kind.exploding else x

    def state(self) -> dict[str, Any]:
        """The attributes of diffusers' object that have changed since its start, and its lists, which change in place."""
        return {
            key: _copied(value)
            for key, value in vars(self._scheduler).items()
            if isinstance(value, list) or key not in self._begun or value is not self._begun[key]
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state; see `Solver.restore`."""
        attributes = vars(self._scheduler)
        attributes.clear()
        attributes.update(self._begun, **{key: _copied(value, self._device) for key, value in state.items()})


def _stride_of(scheduler: Any) -> int:
    """How many timesteps a class without a table goes down at each step, by itself."""
    stride: int = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    return stride


def require_signal(training: Training) -> None:
    """Refuse a model that predicts epsilon and was trained down to no signal, where epsilon says nothing about x0.

    Raises:
        SettingError: the model is one.
    """
    if training.prediction == "epsilon" and training.zero_snr:
        raise SettingError(
            "the model predicts epsilon, which cannot give x0 where there is no signal, and was trained down to none "
            "(zero_snr): correct prediction_type or rescale_betas_zero_snr in the configuration of its scheduler"
        )


def rehearse(solver: DiffusersSolver) -> None:
    """Run a new solver in a world of one image, so that what is wrong is an error before the model is called.

    Raises:
        SettingError: a canvas has other noise than its level says.
    """
    begun = solver.state()
    for measured in measure(solver):
        at = f"at timestep {measured.level.t:.0f}"
        if not math.isfinite(measured.noise):
            raise SettingError(f"{at} the canvas would hold NaN or infinity")
        if not measured.right:
            raise SettingError(
                f"{at} the canvas would have noise of {measured.noise:.3g}, and its level says {measured.level.sigma:.3g}"
            )
    solver.restore(begun)


def _copied(value: Any, device: torch.device | None = None) -> Any:
    """A copy that later steps do not change. Canvases move to the device; numbers of the schedule stay on the CPU."""

    def copied(leaf: Any) -> Any:
        return leaf.detach().to(device if leaf.ndim else None, copy=True) if isinstance(leaf, Tensor) else leaf

    return map_leaves(value, copied, is_leaf=lambda node: not isinstance(node, list))


@contextmanager
def without_numpy_warnings() -> Iterator[None]:
    """Inside, numpy does not warn that diffusers passes it tensors, which use an old protocol of numpy."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array", DeprecationWarning)
        yield
