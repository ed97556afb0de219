"""An adapter for diffusers' schedulers: their settings."""

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from typing import Any, Literal, final, get_args, get_origin

import torch

from panokit import registry
from panokit.backbones.diffusers.kinds import FLOW, KINDS, LEADING, NOT_OF_FLOWS, WITHHELD, Kind
from panokit.backbones.diffusers.solver import DiffusersSolver, rehearse, require_signal, without_numpy_warnings
from panokit.backbones.diffusers.timesteps import set_steps
from panokit.errors import FallbackWarning, PluginNotFoundError, SettingError, reason_of
from panokit.hints import words
from panokit.plain import map_leaves
from panokit.rehearsal import alike
from panokit.scheduler import Scheduler, Training


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
        if self.name not in KINDS:
            raise PluginNotFoundError(registry.unknown_among("schedulers", self.name, KINDS))
        options = {key: _frozen(self.options[key]) for key in sorted(self.options)}
        object.__setattr__(self, "options", options)
        if options:  # without options, diffusers need not be imported
            arguments = self._kind.arguments()
            for option, value in options.items():
                _check(self.name, option, value, arguments)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}{f', {self.options}' if self.options else ''})"

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The short names of all schedulers."""
        return tuple(sorted(KINDS))

    @classmethod
    def summary(cls, name: str) -> str:
        """A line about a scheduler by its short name: the class in diffusers, and what is special."""
        karras = ", on the noise levels of Karras et al. 2022" if name.endswith("_karras") else ""
        return f"{KINDS[name].cls} of diffusers{karras}."

    @property
    def _kind(self) -> Kind:
        return KINDS[self.name]

    def begin(self, steps: int, device: torch.device, training: Training) -> "DiffusersSolver":
        """Make a solver for one run; see `Scheduler.begin`.

        The schedule stays on the CPU. Its numbers can multiply a canvas on any device, without waiting for the device.
        """
        if not 1 <= steps <= training.timesteps:
            raise SettingError(
                f"steps came as {steps}: give 1 to {training.timesteps}, the timesteps that the model was trained on"
            )
        if not self._kind.drives(training.prediction):
            fitting = [name for name, kind in KINDS.items() if kind.drives(training.prediction)]
            raise SettingError(
                f"the scheduler {self.name!r} cannot drive a model that predicts {training.prediction!r}: "
                f"use one of {', '.join(sorted(fitting))}"
            )
        unfit = [option for option in NOT_OF_FLOWS if self.options.get(option)]
        if training.prediction == "flow_prediction" and unfit and self._kind.predictions != FLOW:
            raise SettingError(
                f"the option {unfit[0]!r} of the scheduler {self.name!r} does not suit a model that predicts "
                f"'flow_prediction': leave it out, or use 'flow_euler'"
            )
        require_signal(training)
        if training.zero_snr and "rescale_betas_zero_snr" not in self._kind.constructor():
            fitting = [name for name, kind in KINDS.items() if "rescale_betas_zero_snr" in kind.constructor()]
            raise SettingError(
                f"the scheduler {self.name!r} cannot drive a model that was trained down to no signal (zero_snr): "
                f"use one of {', '.join(sorted(fitting))}"
            )
        try:
            solver = self._solver(steps, device, training, self._spacings)
            if self.options or steps > 500:  # without options, tests know that it works; rounding adds up over many steps
                rehearse(solver)
        except Exception as cause:  # diffusers has no check for values: any error can come out of a wrong one
            reason = reason_of(cause, 1000).rstrip(".")
            raise SettingError(f"{self} cannot begin with steps={steps}: {reason}; try other steps or options") from cause
        for option in self._idle(solver, steps, training):
            warnings.warn(
                f"the option {option!r} of the scheduler {self.name!r} changes nothing in {steps} steps of this model",
                FallbackWarning,
                stacklevel=2,
            )
        return solver

    @property
    def _spacings(self) -> Sequence[Mapping[str, Any]]:
        """The options about timesteps to try in turn, until a table begins near pure noise. A user's own stand alone."""
        if self.options.keys() & LEADING.keys() or not LEADING.items() <= self._kind.options.items():
            return [{}]
        return [{}, {"timestep_spacing": "trailing"}, {"timestep_spacing": "linspace"}]

    def _solver(
        self, steps: int, device: torch.device, training: Training, spacings: Sequence[Mapping[str, Any]]
    ) -> DiffusersSolver:
        """Make a solver with the first spacing that works."""
        refusals = []
        for spacing in spacings:
            try:
                scheduler = self._build(steps, training, spacing)
                return DiffusersSolver(self._kind, scheduler, self.options, device, training.prediction)
            except SettingError as refusal:
                refusals.append(refusal)
        raise refusals[0]

    def _build(self, steps: int, training: Training, spacing: Mapping[str, Any]) -> Any:
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
        settings = {**model, **self._kind.options, **spacing, **self.options, **shifted}
        known = self._kind.constructor()
        flow = partial(self._flow, training=training) if training.prediction == "flow_prediction" else None
        with without_numpy_warnings():
            scheduler = self._kind.load()(**{key: value for key, value in settings.items() if key in known})
            set_steps(self._kind, scheduler, steps, flow)
        return scheduler

    def _idle(self, solver: DiffusersSolver, steps: int, training: Training) -> Iterator[str]:
        """The options that change neither the noise levels nor what the steps make of a canvas."""
        usual = {**{key: argument.default for key, argument in self._kind.arguments().items()}, **self._kind.options}
        begun = solver.state()
        for option, value in self.options.items():
            if value == _frozen(usual[option]):
                continue
            others = {key: other for key, other in self.options.items() if key != option}
            try:
                without = DiffusersScheduler(self.name, others)._solver(steps, torch.device("cpu"), training, [{}])
                idle = alike(solver, without)
            except Exception:  # the option is what makes it work
                idle = False
            solver.restore(begun)
            if idle:
                yield option

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


def _check(name: str, option: str, value: Any, arguments: Mapping[str, inspect.Parameter]) -> None:
    """Raise a SettingError if the scheduler has no such option, or does not take such a value."""
    if option in WITHHELD:
        raise SettingError(f"the option {option!r} of the scheduler {name!r} {WITHHELD[option]}: leave it out")
    if option not in arguments:
        known = sorted(arguments.keys() - WITHHELD.keys())
        close = get_close_matches(option, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise SettingError(f"the scheduler {name!r} has no option {option!r}: {hint}it takes {', '.join(known)}")
    annotation, default = arguments[option].annotation, _frozen(arguments[option].default)
    if get_origin(annotation) is Literal and value not in get_args(annotation):
        expected = f"one of {', '.join(map(repr, get_args(annotation)))}"
    elif default is not None and type(value) is not type(default) and (type(value), type(default)) != (int, float):
        expected = f"{words(type(default))}, such as {default!r}"
    elif option == "eta" and not 0 <= value <= 1:
        expected = "between 0, no noise, and 1"
    else:
        return
    raise SettingError(f"the option {option!r} of the scheduler {name!r} came as {value!r}: it must be {expected}")


def _frozen(value: Any) -> Any:
    """A value that can be compared and hashed: lists become tuples."""
    return map_leaves(value, lambda leaf: leaf, sequence=tuple)
