"""The schedulers of diffusers by their short names, and how they differ."""

import inspect
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from panokit.scheduler import Prediction

_Predictions = tuple[Prediction, ...]
_NO_SAMPLE: _Predictions = ("epsilon", "v_prediction")
DIFFUSION: _Predictions = (*_NO_SAMPLE, "sample")
FLOW: _Predictions = ("flow_prediction",)
_PER_STEP = {"model_output", "timestep", "sample", "generator", "variance_noise", "per_token_timesteps", "return_dict"}
"""The arguments of diffusers' steps that are no options, because they change at each step."""


class Kind(NamedTuple):
    """The differences between diffusers' schedulers."""

    cls: str
    """The name of the class in diffusers."""
    options: dict[str, Any]
    """The arguments in which Stable Diffusion's own configurations differ from the defaults of the class."""
    predictions: _Predictions = DIFFUSION
    """The kinds of prediction that the class takes, and is right for. PNDM adds up predictions of several levels, and a sum of
    v of several levels is none of any."""
    exploding: bool = False
    """Whether the class computes on x / alpha."""
    between: int = 0
    """For a class that also evaluates between noise levels: the position in `sigmas_interpol` of the first such level."""
    end: Literal["stride", "clean", "first"] = "stride"
    """For a class without sigmas, where the last step ends: a stride below its timestep, at x0, or at timestep 0. A class that
    ends a stride below goes down by one stride at each step, whatever its timesteps are."""

    def load(self) -> Any:
        """Import the class."""
        import diffusers  # it imports each of its classes on first use

        return getattr(diffusers, self.cls)

    def constructor(self) -> Mapping[str, inspect.Parameter]:
        """The arguments of the constructor."""
        return inspect.signature(self.load()).parameters

    def step(self) -> Mapping[str, inspect.Parameter]:
        """The arguments of the step that stay the same at each step."""
        arguments = inspect.signature(self.load().step).parameters
        return {key: argument for key, argument in arguments.items() if key not in _PER_STEP | {"self"}}

    def arguments(self) -> dict[str, inspect.Parameter]:
        """The arguments of the constructor and of the step."""
        return {**self.constructor(), **self.step()}

    def native(self, prediction: Prediction) -> Prediction:
        """The kind of prediction to pass to the class: epsilon in the place of v or x0, if the class does not take them."""
        return "epsilon" if prediction in DIFFUSION and prediction not in self.predictions else prediction

    def drives(self, prediction: Prediction) -> bool:
        """Whether the class works with models of that kind of prediction."""
        return self.native(prediction) in self.predictions


LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
"""The timesteps of Stable Diffusion's own configurations."""
_UNCLIPPED = {**LEADING, "clip_sample": False}
_PLAIN = {
    "ddim": Kind("DDIMScheduler", {**_UNCLIPPED, "set_alpha_to_one": False}),
    "ddpm": Kind("DDPMScheduler", _UNCLIPPED, end="clean"),
    "pndm": Kind("PNDMScheduler", {**LEADING, "set_alpha_to_one": False, "skip_prk_steps": True}, ("epsilon",)),
    "lcm": Kind("LCMScheduler", {}, end="clean"),
    "tcd": Kind("TCDScheduler", {}, end="first"),
    "euler": Kind("EulerDiscreteScheduler", LEADING, exploding=True),
    "euler_a": Kind("EulerAncestralDiscreteScheduler", LEADING, _NO_SAMPLE, exploding=True),
    "heun": Kind("HeunDiscreteScheduler", LEADING, exploding=True),
    "lms": Kind("LMSDiscreteScheduler", LEADING, exploding=True),
    "kdpm2": Kind("KDPM2DiscreteScheduler", LEADING, _NO_SAMPLE, exploding=True, between=1),
    "kdpm2_a": Kind("KDPM2AncestralDiscreteScheduler", LEADING, _NO_SAMPLE, exploding=True),
    "dpm++_2m": Kind("DPMSolverMultistepScheduler", {}, DIFFUSION + FLOW),
    "dpm++_2m_sde": Kind("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, DIFFUSION + FLOW),
    "dpm++_3m": Kind("DPMSolverMultistepScheduler", {"solver_order": 3}, DIFFUSION + FLOW),
    "dpm++_2s": Kind("DPMSolverSinglestepScheduler", {"lower_order_final": True}, DIFFUSION + FLOW),
    "unipc": Kind("UniPCMultistepScheduler", {}, DIFFUSION + FLOW),
    "deis": Kind("DEISMultistepScheduler", {}),
    "sa": Kind("SASolverScheduler", {}),
    "flow_euler": Kind("FlowMatchEulerDiscreteScheduler", {}, FLOW),
    "flow_heun": Kind("FlowMatchHeunDiscreteScheduler", {}, FLOW),
}
_KARRAS = ("euler", "heun", "lms", "kdpm2", "kdpm2_a", "dpm++_2m", "dpm++_2m_sde", "dpm++_2s", "unipc", "deis", "sa")


def _karras(kind: Kind) -> Kind:
    """The same class with the sigmas of Karras et al. 2022, eq. 5. They do not suit flows."""
    known = tuple(prediction for prediction in kind.predictions if prediction in DIFFUSION)
    return kind._replace(options={**kind.options, "use_karras_sigmas": True}, predictions=known)


KINDS = _PLAIN | {f"{name}_karras": _karras(_PLAIN[name]) for name in _KARRAS}

_MODELS_OWN = "is set by the model"
_NOT_PLAIN = "is not offered: an option must be a number, a text or a tuple of them"
WITHHELD = {
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
NOT_OF_FLOWS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
"""The options of classes for betas that put noise levels of betas in the place of those of a flow."""
