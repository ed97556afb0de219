r"""An adapter for diffusers' schedulers.

A canvas is always in the model's own coordinates. Some of diffusers' schedulers compute on $\tilde x = x / \alpha = x_0 +
\tilde\sigma \epsilon$ instead, with $\alpha = 1 / \sqrt{1 + \tilde\sigma^2}$ (variance exploding, Karras et al. 2022). For
these, `start` and `step` rescale the canvas, so diffusers' `scale_model_input` is not needed.
"""

import inspect
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import accumulate, pairwise
from typing import Any, Literal, NamedTuple, final, get_args, get_origin

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from panokit import registry
from panokit.errors import PluginNotFoundError, SettingError
from panokit.plain import map_leaves
from panokit.scheduler import Level, Prediction, Scheduler, Solver, Training, pred_from, x0_from

_Predictions = tuple[Prediction, ...]
_NO_SAMPLE: _Predictions = ("epsilon", "v_prediction")
_DIFFUSION: _Predictions = (*_NO_SAMPLE, "sample")
_FLOW: _Predictions = ("flow_prediction",)


class _Kind(NamedTuple):
    """The differences between diffusers' schedulers."""

    cls: str
    """The name of the class in diffusers."""
    options: dict[str, Any]
    """The arguments in which Stable Diffusion's own configurations differ from the defaults of the class."""
    predictions: _Predictions = _DIFFUSION
    """The kinds of prediction that the class takes."""
    exploding: bool = False
    """Whether the class computes on x / alpha."""
    between: int = 0
    """For a class that also evaluates between noise levels: the position in `sigmas_interpol` of the first such level."""
    end: Literal["stride", "clean", "first"] = "stride"
    """For a class without sigmas, where the last step ends: one stride below its timestep, at x0, or at timestep 0."""

    def load(self) -> Any:
        """Import the class."""
        import diffusers  # it imports each of its classes on first use

        return getattr(diffusers, self.cls)

    def native(self, prediction: Prediction) -> Prediction:
        """The kind of prediction to pass to the class: epsilon in the place of x0, if the class does not take x0."""
        return "epsilon" if prediction == "sample" and prediction not in self.predictions else prediction

    def drives(self, prediction: Prediction) -> bool:
        """Whether the class works with models of that kind of prediction."""
        return self.native(prediction) in self.predictions


_LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
_UNCLIPPED = {**_LEADING, "clip_sample": False}
_PLAIN = {
    "ddim": _Kind("DDIMScheduler", {**_UNCLIPPED, "set_alpha_to_one": False}),
    "ddpm": _Kind("DDPMScheduler", _UNCLIPPED, end="clean"),
    "pndm": _Kind("PNDMScheduler", {**_LEADING, "set_alpha_to_one": False, "skip_prk_steps": True}, _NO_SAMPLE),
    "lcm": _Kind("LCMScheduler", {}, end="clean"),
    "tcd": _Kind("TCDScheduler", {}, end="first"),
    "euler": _Kind("EulerDiscreteScheduler", _LEADING, exploding=True),
    "euler_a": _Kind("EulerAncestralDiscreteScheduler", _LEADING, _NO_SAMPLE, exploding=True),
    "heun": _Kind("HeunDiscreteScheduler", _LEADING, exploding=True),
    "lms": _Kind("LMSDiscreteScheduler", _LEADING, exploding=True),
    "kdpm2": _Kind("KDPM2DiscreteScheduler", _LEADING, _NO_SAMPLE, exploding=True, between=1),
    "kdpm2_a": _Kind("KDPM2AncestralDiscreteScheduler", _LEADING, _NO_SAMPLE, exploding=True),
    "dpm++_2m": _Kind("DPMSolverMultistepScheduler", {}, _DIFFUSION + _FLOW),
    "dpm++_2m_sde": _Kind("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, _DIFFUSION + _FLOW),
    "dpm++_3m": _Kind("DPMSolverMultistepScheduler", {"solver_order": 3}, _DIFFUSION + _FLOW),
    "dpm++_2s": _Kind("DPMSolverSinglestepScheduler", {"lower_order_final": True}, _DIFFUSION + _FLOW),
    "unipc": _Kind("UniPCMultistepScheduler", {}, _DIFFUSION + _FLOW),
    "deis": _Kind("DEISMultistepScheduler", {}),
    "sa": _Kind("SASolverScheduler", {}),
    "flow_euler": _Kind("FlowMatchEulerDiscreteScheduler", {}, _FLOW),
    "flow_heun": _Kind("FlowMatchHeunDiscreteScheduler", {}, _FLOW),
}
_KARRAS = ("euler", "heun", "lms", "kdpm2", "kdpm2_a", "dpm++_2m", "dpm++_2m_sde", "dpm++_2s", "unipc", "deis", "sa")


def _karras(kind: _Kind) -> _Kind:
    """The same class with the sigmas of Karras et al. 2022, eq. 5. They do not suit flows."""
    known = tuple(prediction for prediction in kind.predictions if prediction in _DIFFUSION)
    return kind._replace(options={**kind.options, "use_karras_sigmas": True}, predictions=known)


_KINDS = _PLAIN | {f"{name}_karras": _karras(_PLAIN[name]) for name in _KARRAS}

_MODELS_OWN = "is set by the model"
_NOT_PLAIN = "is not offered: an option must be a number, a text or a tuple of them"
_WITHHELD = {
    "num_train_timesteps": _MODELS_OWN,
    "beta_start": _MODELS_OWN,
    "beta_end": _MODELS_OWN,
    "beta_schedule": _MODELS_OWN,
    "trained_betas": _MODELS_OWN,
    "prediction_type": _MODELS_OWN,
    "rescale_betas_zero_snr": _MODELS_OWN,
    "use_flow_sigmas": _MODELS_OWN,
    "timestep_type": _MODELS_OWN,
    "skip_prk_steps": "is not offered: PNDM runs as in Stable Diffusion, without Runge-Kutta steps",
    "solver_p": _NOT_PLAIN,
    "tau_func": _NOT_PLAIN,
}
"""The arguments of diffusers' constructors that are no options here, with the reason."""
_NOT_OF_FLOWS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
"""The options of classes for betas that put noise levels of betas in the place of those of a flow."""
_PER_STEP = {"model_output", "timestep", "sample", "generator", "variance_noise", "per_token_timesteps", "return_dict"}
"""The arguments of diffusers' steps that are no options, because they change at each step."""


@final
@dataclass(frozen=True, repr=False)
class DiffusersScheduler(Scheduler):
    """A scheduler of diffusers, by a short name.

    The defaults are those of Stable Diffusion's own configurations. Nothing is clipped. The timesteps of DDIM, DDPM, PNDM and
    the k-diffusion family are `leading` with an offset of 1. DDIM and PNDM end at the first training timestep. All schedulers
    share the noise levels of a flow: those that the model's pipeline sets, or even ones, shifted once.

    The network is told the time in training at which there was as much noise as at the level. diffusers rounds that time in
    many of its schedulers, and this adapter does not.

    Attributes:
        name: one of `names()`.
        options: arguments to pass to diffusers: those of the class, such as `timestep_spacing` or `use_karras_sigmas`, and
            those of its step, such as DDIM's `eta`, from 0 to 1. They are copied, and sorted by name.

    Raises:
        PluginNotFoundError: there is no scheduler of that name.
        SettingError: the scheduler has no such option, or does not take such a value.
    """

    name: str = "ddim"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.name not in _KINDS:
            raise PluginNotFoundError(registry.unknown_among("schedulers", self.name, _KINDS))
        options = {key: _frozen(self.options[key]) for key in sorted(self.options)}
        object.__setattr__(self, "options", options)
        if options:  # without options, diffusers need not be imported
            arguments = {**_constructor(self._kind), **_step(self._kind)}
            for option, value in options.items():
                _check(self.name, option, value, arguments)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}{f', {self.options}' if self.options else ''})"

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The short names of all schedulers."""
        return tuple(sorted(_KINDS))

    @classmethod
    def summary(cls, name: str) -> str:
        """A line about a scheduler by its short name: the class in diffusers, and what is special."""
        karras = ", on the noise levels of Karras et al. 2022" if name.endswith("_karras") else ""
        return f"{_KINDS[name].cls} of diffusers{karras}."

    @property
    def _kind(self) -> _Kind:
        return _KINDS[self.name]

    def begin(self, steps: int, device: torch.device, training: Training) -> "DiffusersSolver":
        """Make a solver for one run; see `Scheduler.begin`.

        The schedule stays on the CPU. Its numbers can multiply a canvas on any device, without waiting for the device.
        """
        if not 1 <= steps <= training.timesteps:
            raise SettingError(
                f"steps came as {steps}: give 1 to {training.timesteps}, the timesteps that the model was trained on"
            )
        if not self._kind.drives(training.prediction):
            fitting = [name for name, kind in _KINDS.items() if kind.drives(training.prediction)]
            raise SettingError(
                f"the scheduler {self.name!r} cannot drive a model that predicts {training.prediction!r}: "
                f"use one of {', '.join(sorted(fitting))}"
            )
        unfit = [option for option in _NOT_OF_FLOWS if self.options.get(option)]
        if training.prediction == "flow_prediction" and unfit and self._kind.predictions != _FLOW:
            raise SettingError(
                f"the option {unfit[0]!r} of the scheduler {self.name!r} does not suit a model that predicts "
                f"'flow_prediction': leave it out, or use 'flow_euler'"
            )
        if training.zero_snr and "rescale_betas_zero_snr" not in _constructor(self._kind):
            fitting = [name for name, kind in _KINDS.items() if "rescale_betas_zero_snr" in _constructor(kind)]
            raise SettingError(
                f"the scheduler {self.name!r} cannot drive a model that was trained down to no signal (zero_snr): "
                f"use one of {', '.join(sorted(fitting))}"
            )
        try:
            solver = DiffusersSolver(self._kind, self._build(steps, training), self.options, device, training.prediction)
            if self.options:
                _rehearse(solver)
        except Exception as cause:  # diffusers has no check for values: any error can come out of a wrong one
            reason = " ".join(str(cause).split()).rstrip(".") or type(cause).__name__
            raise SettingError(f"{self} cannot begin with steps={steps}: {reason}; try other steps or options") from cause
        return solver

    def _build(self, steps: int, training: Training) -> Any:
        """Make diffusers' object, with its timesteps set."""
        model = {
            "num_train_timesteps": training.timesteps,
            "beta_start": training.beta_start,
            "beta_end": training.beta_end,
            "beta_schedule": training.beta_schedule,
            "prediction_type": self._kind.native(training.prediction),
            "rescale_betas_zero_snr": training.zero_snr,
            "use_flow_sigmas": training.prediction == "flow_prediction",
        }
        shifted = {"shift": 1.0, "flow_shift": 1.0}  # the sigmas of a flow are shifted before diffusers gets them
        known, settings = _constructor(self._kind), {**model, **self._kind.options, **self.options, **shifted}
        with without_numpy_warnings():
            scheduler = self._kind.load()(**{key: value for key, value in settings.items() if key in known})
            if training.prediction == "flow_prediction":
                _set_flow(scheduler, self._flow(steps, training))
            else:
                scheduler.set_timesteps(steps, device="cpu")
        return scheduler

    def _flow(self, steps: int, training: Training) -> Sequence[float]:
        """The sigma of a flow at each step: shifted by the option, or else the model's own, or else shifted by the model."""
        shift = self.options.get("shift", self.options.get("flow_shift"))
        if shift is None and training.sigmas is not None:
            sigmas = training.sigmas(steps)
            if len(sigmas) != steps:
                raise SettingError(f"the model sets {len(sigmas)} noise levels for {steps} steps")
            return sigmas
        shift = training.shift if shift is None else shift
        even = [1 - k / steps for k in range(steps)]
        return [shift * sigma / (1 + (shift - 1) * sigma) for sigma in even]


def _set_flow(scheduler: Any, sigmas: Sequence[float]) -> None:
    """Set the noise levels of a flow.

    Some classes take them. The others would make levels of their own, each in its own way, so theirs are replaced. These
    classes read nothing but `sigmas` in their steps. A second-order method has two calls at each level but the first.
    """
    if "sigmas" in inspect.signature(scheduler.set_timesteps).parameters:
        scheduler.set_timesteps(sigmas=np.array(sigmas), device="cpu")
        return
    scheduler.set_timesteps(len(sigmas), device="cpu")
    levels = torch.tensor(sigmas, dtype=torch.float32).clamp(max=1 - 1e-6)  # as in UniPC, so that log alpha is finite
    calls = torch.cat([levels[:1], levels[1:].repeat_interleave(scheduler.order)])
    scheduler.sigmas = torch.cat([calls, scheduler.sigmas[-1:]])
    scheduler.timesteps = calls * scheduler.config.num_train_timesteps


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
        kind: _Kind,
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
        self.levels = _levels(kind, scheduler, flow=prediction == "flow_prediction", exact=exact)
        if prediction == "epsilon" and self.levels[0].alpha == 0:
            raise SettingError("the model predicts epsilon, which cannot give x0 at a first level without signal")
        self._kind, self._scheduler, self._device, self._prediction = kind, scheduler, device, prediction
        self._options = {key: value for key, value in options.items() if key in _step(kind)}
        self._draws = "generator" in inspect.signature(scheduler.step).parameters
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
        t = self._scheduler.timesteps[level.index]
        options = {**self._options, "generator": generator} if self._draws else self._options
        with without_numpy_warnings():  # UniPC and thresholding need a batch axis
            x = self._scheduler.step(pred[None], t, x[None], **options, return_dict=False)[0][0]
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


def _levels(kind: _Kind, scheduler: Any, flow: bool, exact: bool) -> tuple[Level, ...]:
    """A level for each model call, then the terminal one.

    A call is an inner stage if it is the second of two in a second-order method, or if the next call is at the same noise
    level. PNDM's first step calls the model again at the level that it reached, and then repeats the step with the mean.
    """
    alphas, sigmas = _coordinates(kind, scheduler, flow)
    times = _times(scheduler, alphas, sigmas, flow) if exact else scheduler.timesteps.tolist()
    calls = len(times)
    main = [i % scheduler.order == 0 and (i + 1 == calls or sigmas[i + 1] < sigmas[i]) for i in range(calls)]
    number = list(accumulate(map(int, main)))
    steps = number[-1]
    down = [sigma for sigma, counts in zip(sigmas, main, strict=False) if counts]
    if (
        steps != scheduler.num_inference_steps
        or any(above <= below for above, below in pairwise(down))
        or not all(0 <= value <= 1 for value in alphas + sigmas)
        or not sigmas[0] > sigmas[-1] <= down[-1]
    ):
        raise SettingError("its noise levels do not go down from step to step")
    if alphas[0] > sigmas[0]:
        raise SettingError(f"its first timestep is {times[0]}, which is for a nearly clean picture, and the canvas is noise")
    levels = [Level(i, times[i], alphas[i], sigmas[i], number[i] - 1, steps, main[i]) for i in range(calls)]
    return (*levels, Level(calls, 0, alphas[-1], sigmas[-1], steps, steps))


def _coordinates(kind: _Kind, scheduler: Any, flow: bool) -> tuple[list[float], list[float]]:
    """Alpha and sigma at each model call, and after the last step."""
    times = scheduler.timesteps
    if hasattr(scheduler, "sigmas"):
        noise = scheduler.sigmas[: len(times) + 1].tolist()
        if hasattr(scheduler, "sigmas_interpol"):
            noise[1:-1:2] = scheduler.sigmas_interpol[kind.between :: 2].tolist()[: len(times) // 2]
        alphas = [1 - sigma if flow else 1 / math.sqrt(1 + sigma**2) for sigma in noise]
        return alphas, noise if flow else [alpha * sigma for alpha, sigma in zip(alphas, noise, strict=True)]
    cumprod = scheduler.alphas_cumprod
    if times[0] >= len(cumprod):
        raise SettingError(f"its first timestep would be {times[0]}, and the model knows 0 to {len(cumprod) - 1}")
    match kind.end:
        case "stride":
            below = times[-1] - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
            end = cumprod[below] if below >= 0 else scheduler.final_alpha_cumprod
        case "clean":
            end = torch.ones(())
        case "first":
            end = cumprod[0]
    squares = torch.cat([cumprod[times], end[None]])
    # In float32, as in diffusers' own steps: so both compute the same x0, to the last bit of a float64 canvas.
    return squares.sqrt().tolist(), (1 - squares).sqrt().tolist()


def _times(scheduler: Any, alphas: Sequence[float], sigmas: Sequence[float], flow: bool) -> list[int | float]:
    """The time in training with the noise of each model call, in the units of the network.

    Where diffusers reads the noise off at its timesteps, these are the times. Where it chooses the noise first, it rounds the
    times in some classes. Its own numbers stand if none is a tenth of a timestep off: a linear interpolation between two
    timesteps, which it uses from time to noise, and one in the logarithm, which it uses back, differ by less.
    """
    rounded: list[int | float] = scheduler.timesteps.tolist()
    if not hasattr(scheduler, "sigmas"):
        return rounded  # alpha and sigma are read off at these
    calls = list(zip(alphas, sigmas, strict=True))[: len(rounded)]
    if flow:
        times = [sigma * scheduler.config.num_train_timesteps for _, sigma in calls]
    else:
        kept = scheduler.alphas_cumprod.double().numpy()
        noise = [math.log(sigma / alpha) for alpha, sigma in calls]
        times = np.interp(noise, np.log((1 - kept) / kept) / 2, np.arange(len(kept))).tolist()
    close = all(abs(time - given) < 0.1 for time, given in zip(times, rounded, strict=True))
    return rounded if close else times


def _rehearse(solver: DiffusersSolver) -> None:
    """Try the options on a canvas of four cells, so that a wrong one is an error before the model is called."""
    begun, random, zeros = solver.state(), torch.Generator(), torch.zeros(4, 1, 1)
    x = zeros
    for level in solver.levels[:-1]:
        x = solver.step(zeros, x, level, random)
        if x.shape != zeros.shape or not x.isfinite().all():
            raise SettingError(f"at timestep {level.t} it does not return a canvas of numbers")
    solver.restore(begun)


def _constructor(kind: _Kind) -> Mapping[str, inspect.Parameter]:
    """The arguments of the constructor."""
    return inspect.signature(kind.load()).parameters


def _step(kind: _Kind) -> Mapping[str, inspect.Parameter]:
    """The arguments of the step that stay the same at each step."""
    arguments = inspect.signature(kind.load().step).parameters
    return {key: argument for key, argument in arguments.items() if key not in _PER_STEP | {"self"}}


def _check(name: str, option: str, value: Any, arguments: Mapping[str, inspect.Parameter]) -> None:
    """Raise a SettingError if the scheduler has no such option, or does not take such a value."""
    if option in _WITHHELD:
        raise SettingError(f"the option {option!r} of the scheduler {name!r} {_WITHHELD[option]}: leave it out")
    if option not in arguments:
        known = sorted(arguments.keys() - _WITHHELD.keys())
        close = get_close_matches(option, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise SettingError(f"the scheduler {name!r} has no option {option!r}: {hint}it takes {', '.join(known)}")
    annotation, default = arguments[option].annotation, _frozen(arguments[option].default)
    if get_origin(annotation) is Literal and value not in get_args(annotation):
        expected = f"one of {', '.join(map(repr, get_args(annotation)))}"
    elif default is not None and type(value) is not type(default) and (type(value), type(default)) != (int, float):
        expected = f"of the type {type(default).__name__}, such as {default!r}"
    elif option == "eta" and not 0 <= value <= 1:
        expected = "between 0, no noise, and 1"
    else:
        return
    raise SettingError(f"the option {option!r} of the scheduler {name!r} came as {value!r}: it must be {expected}")


def _frozen(value: Any) -> Any:
    """A value that can be compared and hashed: lists become tuples."""
    return map_leaves(value, lambda leaf: leaf, sequence=tuple)


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
