"""Every scheduler that is installed, in every setting: what each run is, and whether its noise is what its levels say."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, NamedTuple, final, get_args, get_origin

import torch

from panokit import registry
from panokit.backbones.diffusers.kinds import KINDS, WITHHELD
from panokit.backbones.diffusers.own import training_from
from panokit.backbones.diffusers.scheduler import DiffusersScheduler
from panokit.errors import FallbackWarning, SettingError
from panokit.rehearsal import measure
from panokit.scheduler import Scheduler, Solver, Training
from panokit.testing.worlds import Gaussian, times_of

STEPS, MANY = (1, 2, 3, 4, 10, 50), (501, 800, 1000)
"""Numbers of steps to try with every setting, and with those that decide noise levels alone."""
TRAININGS: dict[str, Training] = {
    "epsilon": Training(),
    "v": Training("v_prediction"),
    "x0": Training("sample"),
    "v, zero SNR": Training("v_prediction", zero_snr=True),
    "epsilon, zero SNR": Training("epsilon", zero_snr=True),
    "flow": Training("flow_prediction"),
    "flow, shift 3": Training("flow_prediction", shift=3.0),
}
NUMBERS: dict[str, tuple[Any, ...]] = {
    "base_image_seq_len": (100,),
    "base_shift": (0.7,),
    "clip_sample_range": (0.9,),
    "corrector_order": (1, 3),
    "disable_corrector": ((0, 1),),
    "dynamic_thresholding_ratio": (0.9,),
    "eta": (0.0, 0.5, 1.0),
    "flow_shift": (3.0,),
    "lambda_min_clipped": (-5.1, -1.0),
    "max_image_seq_len": (1000,),
    "max_shift": (2.0,),
    "order": (1, 2),
    "original_inference_steps": (100, 600, 1000),
    "predictor_order": (1, 3),
    "s_churn": (0.5, 20.0),
    "s_noise": (1.003,),
    "s_tmax": (1.0,),
    "s_tmin": (0.1,),
    "sample_max_value": (2.0,),
    "shift": (3.0,),
    "shift_terminal": (0.1,),
    "sigma_max": (1.0, 10.0),
    "sigma_min": (0.05,),
    "solver_order": (1, 2, 3),
    "steps_offset": (0, 7, 30, 300),
    "timestep_scaling": (0.01, 5.0),
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"),
}
"""Values of the options that are no choice among names."""
PAIRS: tuple[dict[str, Any], ...] = (
    {"timestep_spacing": "trailing", "set_alpha_to_one": True},
    {"timestep_spacing": "linspace", "set_alpha_to_one": True},
    {"timestep_spacing": "leading", "steps_offset": 0},
    {"timestep_spacing": "trailing", "eta": 1.0},
    {"timestep_spacing": "linspace", "eta": 1.0},
    {"use_karras_sigmas": True, "timestep_spacing": "trailing"},
    {"use_karras_sigmas": True, "use_lu_lambdas": True},
    {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"},
    {"use_exponential_sigmas": True, "final_sigmas_type": "sigma_min"},
    {"use_beta_sigmas": True, "final_sigmas_type": "sigma_min"},
    {"use_lu_lambdas": True, "final_sigmas_type": "sigma_min"},
    {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
    {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"},
    {"predict_x0": False, "final_sigmas_type": "sigma_min"},
    {"clip_sample": True, "clip_sample_range": 0.9},
    {"clip_sample": True, "use_clipped_model_output": True},
    {"thresholding": True, "sample_max_value": 2.0},
)
"""Options that mean something together alone."""
CONSISTENT = {"lcm", "tcd", "LCMScheduler", "TCDScheduler"}
"""Solvers for networks that predict the end of a trajectory. With the mean of all ends, pictures have too little variance."""
LEVELS = {"timestep_spacing", "steps_offset", "set_alpha_to_one", "final_sigmas_type"}
"""The options that decide noise levels, beside those whose names have sigmas or lambdas."""


@final
class Outcome(NamedTuple):
    """What came of a run of the matrix."""

    refusal: str
    """Why the scheduler would not begin; empty if it ran."""
    broken: str
    """The rule that it broke; empty if it broke none."""
    worst: float
    """The largest difference between the noise of a canvas and that of its level."""
    idle: tuple[str, ...]
    """What was said of options that change nothing."""


def names() -> list[str]:
    """The names of all schedulers that are installed, anybody's."""
    return [plugin.name for plugin in registry.plugins("schedulers")]


def settings_of(name: str) -> list[dict[str, Any]]:
    """The settings of a scheduler to try: none; each option with each of its values; and some pairs.

    A scheduler of somebody else is tried with the settings of its preset, and with every value of those that name their values.
    """
    maker = _maker(name)
    if registry.made_class(maker) is not DiffusersScheduler:
        fields = registry.made_class(maker).__init__.__annotations__
        chosen = [{key: value} for key, hint in fields.items() for value in _values(key, hint, None)]
        return [{}, *({key: value} for choice in chosen for key, value in choice.items() if key not in registry.bound(maker))]
    arguments = {key: argument for key, argument in KINDS[name].arguments().items() if key not in {*WITHHELD, "self"}}
    single = [
        {key: value} for key, argument in arguments.items() for value in _values(key, argument.annotation, argument.default)
    ]
    return [{"options": options} for options in ({}, *single, *(pair for pair in PAIRS if pair.keys() <= arguments.keys()))]


def _values(option: str, annotation: Any, default: Any) -> tuple[Any, ...]:
    if option in NUMBERS:
        return NUMBERS[option]
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return (False, True) if annotation is bool or isinstance(default, bool) else ()


@lru_cache
def _maker(name: str) -> Callable[..., Scheduler]:
    """The maker of a scheduler. To look entry points up takes longer than a run."""
    return registry.maker("schedulers", name, Scheduler)


def runs_of(name: str, settings: Mapping[str, Any]) -> Iterator[tuple[str, Training, int]]:
    """The kinds of models and the numbers of steps to try a setting with. Noise levels differ between betas and flows alone."""
    options = settings.get("options", {})
    decides = all(key in LEVELS or "sigmas" in key or "lambdas" in key for key in options)
    for kind, training in trainings_of(name).items():
        for steps in (*STEPS, *MANY) if decides and kind in ("epsilon", "flow, shift 3", "PNDMScheduler") else STEPS:
            yield kind, training, steps


def trainings_of(name: str) -> dict[str, Training]:
    """The trainings to try a scheduler with. The model's own scheduler is tried with models that bring one each."""
    if name != "own":
        return TRAININGS
    return {cls: training_from({"_class_name": cls, **_config(cls)}) for cls in sorted({kind.cls for kind in KINDS.values()})}


def _config(cls: str) -> dict[str, Any]:
    """The configuration of a scheduler of Stable Diffusion, as far as the class knows it."""
    known = next(kind for kind in KINDS.values() if kind.cls == cls).constructor()
    return {key: value for key, value in _MODELS.items() if key in known}


_MODELS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "lower_order_final": True,
    "clip_sample": False,
}
"""The configuration of the scheduler of Stable Diffusion."""


def attempt(name: str, settings: Mapping[str, Any], training: Training, steps: int, kind: str = "") -> Outcome:
    """Begin a run, and look whether its noise is what its levels say.

    Args:
        name: the name of the scheduler.
        settings: its settings.
        training: the noise that the model was trained with.
        steps: number of steps.
        kind: the name of the world, as `runs_of` gives it; for `own`, the class of the model's scheduler.

    Returns:
        What came of it.
    """
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            solver = _maker(name)(**settings).begin(steps, torch.device("cpu"), training)
        except SettingError as refusal:
            return Outcome(str(refusal), "" if "\n" not in str(refusal) else "its refusal has several lines", 0.0, ())
    idle = tuple(str(one.message) for one in said if issubclass(one.category, FallbackWarning))
    broken, worst = list(_breaks(solver, training, steps, exact=name != "own")), 0.0
    begun = solver.state()
    for measured in measure(solver):
        worst = max(worst, measured.off)
        if not measured.right:
            level = measured.level
            broken.append(f"noise of {measured.noise:.3g} at level {level.index}, whose sigma is {level.sigma:.3g}")
    solver.restore(begun)
    if steps == 50 and not CONSISTENT & {name, kind} and not settings.get("options"):
        broken.extend(_misses(solver, training))
    return Outcome("", broken[0] if broken else "", worst, idle)


def _breaks(solver: Solver, training: Training, steps: int, exact: bool) -> Iterator[str]:
    """What is wrong with the levels.

    Args:
        solver: a new solver.
        training: the noise that the model was trained with.
        steps: number of steps.
        exact: whether times need not be whole, and no step may stand still: for all but the model's own scheduler.
    """
    first, *_ = levels = solver.levels
    if levels[-1].step != steps:
        yield f"{levels[-1].step} steps"
    sigmas = [level.sigma for level in levels if level.main]
    if any(above <= below for above, below in pairwise(sigmas if exact else sigmas[:-1])):
        yield "a step that stands still"
    if first.alpha > 0.25 and steps not in (2, 3):  # Stable Diffusion's own tables begin a stride, or a half, below the top
        yield f"noise alone at alpha {first.alpha:.2f}"
    noise = torch.randn(4, 32, 32, generator=torch.Generator().manual_seed(0))
    scale = float(solver.start(noise).std() / noise.std())
    if not first.sigma - 0.01 < scale < 1.01:
        yield f"a first canvas with noise of {scale:.3g}"
    for level in levels[:-1]:
        times = times_of(training, level.alpha, level.sigma)
        if min(abs(level.t - time) for time in times) > (0.1 if exact else 0.6):
            yield f"the time {level.t:.5g} told for {times[0]:.5g}"


def _misses(solver: Solver, training: Training) -> Iterator[str]:
    """Whether 50 steps miss the mean or the spread of pictures in a world of normal noise.

    Steps of finite length lose up to a quarter of the spread.
    """
    world, first, last = Gaussian(0.2, 0.04, training=training), solver.levels[0], solver.levels[-1]
    random = torch.Generator().manual_seed(0)
    x = torch.randn(4, 32, 32, generator=random)
    x = first.alpha * world.mean + x * (first.alpha**2 * world.variance + first.sigma**2) ** 0.5
    for level in solver.levels[:-1]:
        x = solver.step(world(x, level, None), x, level, random)
    spread = (last.alpha**2 * world.variance + last.sigma**2) ** 0.5
    if not abs(float(x.std()) / spread - 1) < 0.3 or not abs(float(x.mean()) - last.alpha * world.mean) < 0.02:
        yield f"pictures of {float(x.mean()):.3g} and spread {float(x.std()):.3g}, not {world.mean:.3g} and {spread:.3g}"
