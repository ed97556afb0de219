"""The model's own scheduler: that of its pipeline, as the pipeline sets it."""

import copy
import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast, get_args

import torch
from torch import Tensor

from panokit.backbones.diffusers.kinds import KINDS, Kind
from panokit.backbones.diffusers.parts import explained, quiet
from panokit.backbones.diffusers.solver import DiffusersSolver, rehearse, require_signal, without_numpy_warnings
from panokit.errors import FallbackWarning, ModelError, SettingError, reason_of
from panokit.scheduler import Prediction, Training

_FLOW_LCM = Kind("FlowMatchLCMScheduler", {}, ("flow_prediction",))
"""A scheduler that only its models use."""


def training_of(scheduler: Any) -> Training:
    """The noise that a model was trained with, by the configuration of its scheduler.

    Args:
        scheduler: a scheduler of diffusers.

    Raises:
        ModelError: panokit has no formula for the model's prediction, or for the noise.
    """
    config = scheduler.config
    prediction = "flow_prediction" if _flows(scheduler) else config.get("prediction_type", "epsilon")
    if prediction not in get_args(Prediction):
        raise ModelError(
            f"the model's scheduler says that it predicts {prediction!r:.60}: panokit knows {', '.join(get_args(Prediction))}"
        )
    betas = "beta_start" in config and not config.get("trained_betas") and config.get("snr_shift_scale", 1) == 1
    if prediction != "flow_prediction" and not betas:
        name = f"{type(scheduler).__name__}{' with trained_betas' * bool(config.get('trained_betas'))}"
        raise ModelError(f"the model's scheduler is a {name:.60}, whose noise panokit has no formula for: use another model")
    return Training(
        prediction=cast("Prediction", prediction),
        timesteps=config.get("num_train_timesteps", 1000),
        beta_start=config.get("beta_start", 0.0001),
        beta_end=config.get("beta_end", 0.02),
        beta_schedule=config.get("beta_schedule", "linear"),
        zero_snr=config.get("rescale_betas_zero_snr", False),
    )


def scheduler_class(config: Mapping[str, Any]) -> Any:
    """The class of a scheduler of diffusers, by its configuration.

    Args:
        config: the content of `scheduler_config.json`.

    Raises:
        ModelError: diffusers has no such scheduler.
    """
    import diffusers  # it imports each of its classes on first use

    name = str(config.get("_class_name", "DDIMScheduler"))
    cls = getattr(diffusers, name, None)
    if not (isinstance(cls, type) and issubclass(cls, diffusers.SchedulerMixin)):
        raise ModelError(
            f"the model's scheduler is a {name:.60}, which this version of diffusers does not have: update diffusers"
        )
    return cls


def training_from(config: Mapping[str, Any]) -> Training:
    """The noise that a model was trained with, and its own scheduler, by the configuration that its folder holds.

    Args:
        config: the content of `scheduler_config.json`.

    Raises:
        ModelError: diffusers has no such scheduler, or it cannot be made.
    """
    cls = scheduler_class(config)
    with quiet(), explained("the model's scheduler", "check its scheduler_config.json, or fetch it again"):
        scheduler = cls.from_config(config)
    return replace(training_of(scheduler), own=partial(_set, scheduler))


def _set(scheduler: Any, steps: int, device: torch.device) -> DiffusersSolver:
    """A solver with a copy of a scheduler, as Stable Diffusion's pipeline sets it."""
    scheduler = copy.deepcopy(scheduler)
    with without_numpy_warnings():
        scheduler.set_timesteps(steps)
    return own_solver(scheduler, device, {"eta": 0.0})


def own_solver(scheduler: Any, device: torch.device, options: Mapping[str, Any]) -> DiffusersSolver:
    """The solver of a scheduler that its pipeline has set.

    Args:
        scheduler: a scheduler of diffusers, with its timesteps set.
        device: the device of the canvas.
        options: arguments of its step, as its pipeline passes them.

    Raises:
        SettingError: panokit does not know schedulers of this class, or its canvases would have other noise than it says.
    """
    name = type(scheduler).__name__
    kind = _kind(name)
    if kind is None:
        raise SettingError(f"the model's own scheduler is a {name}, which panokit cannot drive: name another one")
    for key, value in vars(scheduler).items():
        if isinstance(value, Tensor):  # numbers on the CPU multiply a canvas on any device, without waiting for it
            setattr(scheduler, key, value.cpu())
    training = training_of(scheduler)
    if kind.native(training.prediction) != training.prediction:
        scheduler.register_to_config(prediction_type=kind.native(training.prediction))
    try:
        require_signal(training)
        solver = DiffusersSolver(kind, scheduler, options, device, training.prediction, exact=False)
        rehearse(solver)
    except Exception as cause:  # diffusers has no check for values: any error can come out of a wrong one
        raise SettingError(
            f"the model's own scheduler, a {name}, cannot begin: {reason_of(cause, 1000)}; name another one, or try other steps"
        ) from cause
    shift = scheduler.config.get("flow_shift", 1)
    if training.prediction == "flow_prediction" and scheduler.config.get("use_karras_sigmas") and shift != 1:
        warnings.warn(
            f"the model's own scheduler, a {name}, drops its flow_shift of {shift:g}, because use_karras_sigmas is set",
            FallbackWarning,
            stacklevel=2,
        )
    return solver


def _kind(name: str) -> Kind | None:
    return next((kind for kind in (*KINDS.values(), _FLOW_LCM) if kind.cls == name), None)


def _flows(scheduler: Any) -> bool:
    return (
        "FlowMatch" in type(scheduler).__name__
        or bool(scheduler.config.get("use_flow_sigmas"))
        or scheduler.config.get("prediction_type") == "flow_prediction"
    )
