"""Every scheduler of diffusers behind the adapter: where it lands, what it agrees with, what it remembers, what it refuses."""

import io
import math
import pickle
import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from panokit import registry
from panokit.backbones.diffusers.own import training_from
from panokit.backbones.diffusers.scheduler import DiffusersScheduler
from panokit.backbones.diffusers.solver import DiffusersSolver
from panokit.errors import FallbackWarning, PluginNotFoundError, SettingError
from panokit.rehearsal import measure
from panokit.scheduler import Level, Own, Prediction, Training
from panokit.testing.worlds import Gaussian, OneImage

CPU = torch.device("cpu")
STEPS = 6

LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {**LEADING, "clip_sample": False, "set_alpha_to_one": False}),
    "ddpm": ("DDPMScheduler", {**LEADING, "clip_sample": False}),
    "pndm": ("PNDMScheduler", {**LEADING, "skip_prk_steps": True, "set_alpha_to_one": False}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
    "euler": ("EulerDiscreteScheduler", LEADING),
    "euler_a": ("EulerAncestralDiscreteScheduler", LEADING),
    "heun": ("HeunDiscreteScheduler", LEADING),
    "lms": ("LMSDiscreteScheduler", LEADING),
    "kdpm2": ("KDPM2DiscreteScheduler", LEADING),
    "kdpm2_a": ("KDPM2AncestralDiscreteScheduler", LEADING),
    "dpm++_2m": ("DPMSolverMultistepScheduler", {}),
    "dpm++_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpm++_3m": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "dpm++_2s": ("DPMSolverSinglestepScheduler", {"lower_order_final": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "sa": ("SASolverScheduler", {}),
    "flow_euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow_heun": ("FlowMatchHeunDiscreteScheduler", {}),
}
"""What a user of diffusers alone would write, to be compared with."""
KARRAS = {"euler", "heun", "lms", "kdpm2", "kdpm2_a", "dpm++_2m", "dpm++_2m_sde", "dpm++_2s", "unipc", "deis", "sa"}
FLOW = ("flow_euler", "flow_heun")
FLOW_TOO = ("dpm++_2m", "dpm++_2m_sde", "dpm++_3m", "dpm++_2s", "unipc")
every_flow = pytest.mark.parametrize("name", [*FLOW, *FLOW_TOO])
NOT_NATIVE = [*((name, "sample") for name in ("pndm", "euler_a", "kdpm2", "kdpm2_a")), ("pndm", "v_prediction")]
"""What classes of diffusers do not know, or add up wrongly: the adapter gives them epsilon."""
STANDING = ("deis_karras", "sa_karras")
"""The tables of diffusers that end at the same noise twice: these are asked for one step more."""
ENDS_NOISY = ("ddim", "pndm", "tcd", "deis", "sa")
"""By their own settings the last step of these lands at the first training timestep."""

DIFFUSION: tuple[Prediction, ...] = ("epsilon", "v_prediction", "sample")
NAMES = [*PLAIN, *(f"{name}_karras" for name in PLAIN if name in KARRAS)]
CASES: list[tuple[str, Prediction]] = [
    *((name, prediction) for name in NAMES if name not in FLOW for prediction in DIFFUSION),
    *((name, "flow_prediction") for name in (*FLOW, *FLOW_TOO)),
]
every_case = pytest.mark.parametrize(("name", "prediction"), CASES)
EXPLODING = {PLAIN[name][0] for name in ("euler", "euler_a", "heun", "lms", "kdpm2", "kdpm2_a")}


def plain_name(name: str) -> str:
    return name.removesuffix("_karras")


def training(name: str, prediction: Prediction = "epsilon", **settings: Any) -> Training:
    """Stable Diffusion's, in a twentieth of its timesteps where diffusers' constructor loops over them in Python."""
    if plain_name(name) in ("heun", "lms", "kdpm2", "kdpm2_a"):
        settings = {"timesteps": 50, "beta_start": 0.017, "beta_end": 0.24, **settings}
    return Training(prediction, **settings)


def begin(name: str, prediction: Prediction = "epsilon", steps: int = STEPS, **options: Any) -> DiffusersSolver:
    return DiffusersScheduler(name, options).begin(steps, CPU, training(name, prediction))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape or (4, 6, 5), generator=generator(seed), dtype=dtype)


def model(x: Tensor, t: float) -> Tensor:
    """Something smooth and not linear in place and time, with channels and neighbours mixed."""
    mixed = 0.6 * x + 0.3 * x.roll(1, -1) - 0.2 * x.roll(1, -3)
    return torch.tanh(mixed) + 0.1 * math.sin(t / 50)


def walk(solver: DiffusersSolver, x: Tensor, random: torch.Generator, first: int = 0) -> Iterator[Tensor]:
    """The canvas at every level from `first` on, driven by the fake model."""
    for level in solver.levels[first:-1]:
        x = solver.step(model(x, level.t), x, level, random)
        yield x


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def error(x: Tensor, truth: Tensor) -> float:
    return rms(x - truth) / rms(truth)


def test_the_names_are_these() -> None:
    assert DiffusersScheduler.names() == tuple(sorted(NAMES))


# -- where it lands ---------------------------------------------------------------------------------------------------


@every_case
def test_in_a_world_of_one_image_it_lands_on_the_image(name: str, prediction: Prediction) -> None:
    solver, world, random = begin(name, prediction), OneImage(noise(seed=1)), generator()
    x = solver.start(noise())
    for level in solver.levels[:-1]:
        pred = world.predict(solver, x, level)
        assert error(solver.x0(pred, x, level), world.image) < 1e-4
        x = solver.step(pred, x, level, random)
    end = solver.levels[-1]
    assert (end.sigma > 0) == (plain_name(name) in ENDS_NOISY)
    assert end.sigma < 0.1
    assert rms(x - end.alpha * world.image) < 1e-5 + 1.2 * end.sigma


@pytest.mark.parametrize("name", ["ddim", "deis", "deis_karras", "pndm", "dpm++_2m", "unipc", "lms", "heun", "kdpm2"])
def test_a_solver_without_randomness_keeps_the_noise_at_every_level(name: str) -> None:
    solver, world = begin(name), OneImage(noise(seed=1))
    x = solver.start(noise())
    first = solver.levels[0]
    epsilon = (x - first.alpha * world.image) / first.sigma
    for level, below in pairwise(solver.levels):
        x = solver.step(world.predict(solver, x, level), x, level, generator())
        assert error(x, below.alpha * world.image + below.sigma * epsilon) < 1e-5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [2, 3, 17])
def test_any_number_of_steps_will_do(name: str, steps: int) -> None:
    solver = begin(name, "flow_prediction" if name in FLOW else "epsilon", steps)
    assert solver.levels[-1].step == steps
    *_, x = walk(solver, solver.start(noise()), generator())
    assert x.isfinite().all()


# -- x0 and pred ------------------------------------------------------------------------------------------------------


@settings(deadline=None)  # the first example imports diffusers
@given(st.sampled_from(DIFFUSION), st.integers(0, STEPS - 1), st.lists(st.integers(1, 3), max_size=4), st.integers(0, 99))
def test_x0_and_pred_are_inverse_for_any_leading_axes(prediction: Prediction, i: int, axes: list[int], seed: int) -> None:
    solver = begin("ddim", prediction)
    level, shape = solver.levels[i], (*axes, 2, 3)
    x, x0 = noise(*shape, seed=seed, dtype=torch.float64), noise(*shape, seed=seed + 1, dtype=torch.float64)
    assert torch.allclose(solver.x0(solver.pred(x0, x, level), x, level), x0, rtol=1e-9, atol=1e-9)
    assert torch.allclose(solver.pred(solver.x0(x0, x, level), x, level), x0, rtol=1e-6, atol=1e-6)


def test_x0_has_a_gradient_and_changes_nothing() -> None:
    solver = begin("unipc")
    x, before = noise().requires_grad_(), solver.state()
    solver.x0(model(x, 3.0), x, solver.levels[2]).sum().backward()
    assert x.grad is not None
    assert solver.state() == before


@pytest.mark.parametrize("prediction", DIFFUSION)
def test_x0_of_ddim_is_what_diffusers_steps_to_to_the_last_digits_of_float64(prediction: Prediction) -> None:
    solver, plain = begin("ddim", prediction), plain_scheduler("ddim", prediction)
    x, pred = noise(dtype=torch.float64), noise(seed=1, dtype=torch.float64)
    for level, t in zip(solver.levels, plain.timesteps, strict=False):
        assert error(solver.x0(pred, x, level), plain.step(pred, t, x).pred_original_sample) < 1e-15


# -- agreement with diffusers -----------------------------------------------------------------------------------------


def plain_scheduler(name: str, prediction: Prediction, **options: Any) -> Any:
    """The object that a user of diffusers alone would make."""
    trained, (cls, settings) = training(name, prediction), PLAIN[plain_name(name)]
    settings = {**settings, **options, **({"use_karras_sigmas": True} if name.endswith("_karras") else {})}
    if name not in FLOW:
        settings |= {
            "num_train_timesteps": trained.timesteps,
            "beta_start": trained.beta_start,
            "beta_end": trained.beta_end,
            "beta_schedule": trained.beta_schedule,
            "prediction_type": prediction,
            **({"use_flow_sigmas": True} if prediction == "flow_prediction" else {}),
        }
    scheduler = getattr(diffusers, cls)(**settings)
    even = np.linspace(1, 1 / STEPS, STEPS)
    if name in STANDING:
        scheduler.set_timesteps(STEPS + 1)
        scheduler.timesteps, scheduler.sigmas = scheduler.timesteps[:-1], scheduler.sigmas[:-1]
    elif prediction != "flow_prediction":
        scheduler.set_timesteps(STEPS)
    elif name in ("flow_euler", "unipc"):
        scheduler.set_timesteps(sigmas=even)
    else:
        scheduler.set_timesteps(STEPS)
        scheduler.sigmas = torch.tensor([1 - 1e-6, *even[1:].repeat(scheduler.order), 0], dtype=torch.float32)
    return scheduler


def plain_loop(
    scheduler: Any, canvas: Tensor, random: torch.Generator, times: Sequence[float] | None = None, **options: Any
) -> Tensor:
    """The loop of diffusers' own pipelines, over one window. The model is told `times`, or else diffusers' timesteps."""
    takes = scheduler.step.__code__.co_varnames[: scheduler.step.__code__.co_argcount]
    if "generator" in takes:
        options["generator"] = random
    x = canvas[None] * getattr(scheduler, "init_noise_sigma", 1.0)
    for t, time in zip(scheduler.timesteps, times or scheduler.timesteps.tolist(), strict=True):
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(model(scaled, time), t, x, **options).prev_sample
    return x[0]


def times_of(solver: DiffusersSolver) -> list[float]:
    return [level.t for level in solver.levels[:-1]]


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers', which the adapter keeps to itself
@pytest.mark.parametrize(("name", "prediction"), [c for c in CASES if (plain_name(c[0]), c[1]) not in NOT_NATIVE])
def test_it_agrees_with_a_plain_loop_of_diffusers(name: str, prediction: Prediction) -> None:
    solver, random, plain_random = begin(name, prediction), generator(1), generator(1)
    *_, x = walk(solver, solver.start(noise()), random)
    truth = plain_loop(plain_scheduler(name, prediction), noise(), plain_random, times_of(solver))
    assert error(x, truth) < 1e-5
    assert torch.equal(random.get_state(), plain_random.get_state())


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "constructor", "step"),
    [
        ("ddim", {"clip_sample": True}, {"eta": 0.7}),
        ("ddim", {"set_alpha_to_one": True, "clip_sample": True}, {"use_clipped_model_output": True}),
        ("tcd", {}, {"eta": 1}),
        ("euler", {"timestep_spacing": "trailing", "use_exponential_sigmas": True}, {}),
        ("lms", {"timestep_spacing": "trailing"}, {"order": 2}),
        ("unipc", {"solver_order": 3, "predict_x0": False, "final_sigmas_type": "sigma_min", "disable_corrector": (0, 1)}, {}),
        ("dpm++_2m", {"use_lu_lambdas": True, "thresholding": True}, {}),
        ("ddpm", {"timestep_spacing": "linspace"}, {}),
        ("flow_euler", {"shift": 3.0, "stochastic_sampling": True}, {}),
    ],
)
def test_options_pass_through(name: str, constructor: dict[str, Any], step: dict[str, Any]) -> None:
    prediction: Prediction = "flow_prediction" if name in FLOW else "v_prediction"
    solver = begin(name, prediction, **constructor, **step)
    *_, x = walk(solver, solver.start(noise()), generator(1))
    truth = plain_loop(plain_scheduler(name, prediction, **constructor), noise(), generator(1), times_of(solver), **step)
    assert error(x, truth) < 1e-5


@pytest.mark.parametrize(("name", "prediction"), NOT_NATIVE)
def test_a_prediction_that_the_class_does_not_know_is_the_epsilon_that_it_means(name: str, prediction: Prediction) -> None:
    other, by_epsilon = begin(name, prediction), begin(name, "epsilon")
    x = y = other.start(noise())
    for level in other.levels[:-1]:
        meant = by_epsilon.pred(other.x0(model(y, level.t), y, level), y, level)
        y = by_epsilon.step(meant, y, level, random := generator(level.index))
        x = other.step(model(x, level.t), x, level, random.manual_seed(level.index))
    assert error(x, y) < 1e-6


@pytest.mark.parametrize("prediction", DIFFUSION)
def test_ddim_on_a_float64_canvas_is_a_literal_loop_in_float64(prediction: Prediction) -> None:
    solver, canvas = begin("ddim", prediction), noise(dtype=torch.float64)
    *_, x = walk(solver, solver.start(canvas), generator())
    assert x.dtype == torch.float64
    assert error(x, plain_loop(plain_scheduler("ddim", prediction), canvas, generator())) < 1e-12


# -- noise levels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "prediction"), [case for case in CASES if case[1] in ("epsilon", "flow_prediction")])
def test_levels_go_down_and_are_numbered(name: str, prediction: Prediction) -> None:
    levels = begin(name, prediction).levels
    assert [level.index for level in levels] == list(range(len(levels)))
    for level in levels:
        assert isinstance(level.alpha, float)
        assert isinstance(level.sigma, float)
        total = level.alpha + level.sigma if prediction == "flow_prediction" else math.hypot(level.alpha, level.sigma)
        assert total == pytest.approx(1, abs=1e-6)
    main = [level for level in levels[:-1] if level.main]
    assert [level.step for level in main] == list(range(STEPS))
    assert {level.steps for level in levels} == {STEPS}
    assert all(above.sigma > below.sigma for above, below in pairwise(main))
    assert levels[-1].main
    assert levels[-1].progress == 1
    assert levels[-1].sigma <= main[-1].sigma


def inner(name: str) -> list[int]:
    return [level.index for level in begin(name).levels if not level.main]


def test_inner_stages_are_not_main() -> None:
    assert inner("ddim") == []
    assert inner("pndm") == [1]
    assert inner("heun") == inner("kdpm2") == inner("kdpm2_a") == inner("heun_karras") == [1, 3, 5, 7, 9]
    assert [level.step for level in begin("heun").levels] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 6]


@pytest.mark.parametrize("name", [name for name in NAMES if PLAIN[plain_name(name)][0] in EXPLODING])
def test_alpha_is_what_diffusers_scales_the_models_input_by(name: str) -> None:
    solver = begin(name)
    ones, x = torch.ones(1, 1, 1, 1), solver.start(noise())
    for level in solver.levels[:-1]:
        scaled = solver._scheduler.scale_model_input(ones, solver._scheduler.timesteps[level.index])
        assert scaled.item() == pytest.approx(level.alpha, rel=1e-6)
        x = solver.step(model(x, level.t), x, level, generator())


def test_the_terminal_level_is_where_the_last_step_lands() -> None:
    first = begin("ddim", set_alpha_to_one=True, steps=50).levels[-2]
    assert begin("ddim").levels[-1].sigma == pytest.approx(math.sqrt(0.00085), rel=1e-4)
    assert begin("ddim", set_alpha_to_one=True).levels[-1].sigma == 0
    assert first.t == 1


TIMES: list[dict[str, Any]] = [
    {},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
    {"use_lu_lambdas": True},
    {"interpolation_type": "log_linear"},
    {"final_sigmas_type": "sigma_min"},
    *({"timestep_spacing": spacing} for spacing in ("linspace", "leading", "trailing")),
]
"""The options that decide noise levels, or timesteps."""


def logarithms(trained: Training) -> Any:
    """The log of sigma / alpha at each timestep of training, from the formula of its betas."""
    betas = np.linspace(trained.beta_start**0.5, trained.beta_end**0.5, trained.timesteps) ** 2
    kept = np.cumprod(1 - betas)
    if trained.zero_snr:  # Lin et al. 2024, algorithm 1, with diffusers' least signal in the place of none
        alphas = kept**0.5
        kept = ((alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])) ** 2
        kept[-1] = 2**-24
    return np.log((1 - kept) / kept) / 2


def apart(level: Level, trained: Training) -> float:
    """How far the noise of training at a level's t is from the level's own, in the log of sigma / alpha.

    Between two timesteps, sigma / alpha may be linear or exponential: diffusers uses both.
    """
    if trained.prediction == "flow_prediction":
        return abs(math.log(level.t / trained.timesteps / level.sigma))
    known, times = logarithms(trained), range(trained.timesteps)
    here = np.clip(math.log(level.sigma / level.alpha), known[0], known[-1])
    readings = np.interp(level.t, times, known), math.log(np.interp(level.t, times, np.exp(known)))
    return float(min(abs(here - reading) for reading in readings))


@pytest.mark.parametrize(
    ("name", "prediction", "zero_snr"),
    [
        *((*case, False) for case in CASES),
        *((name, "v_prediction", True) for name in ("euler", "euler_a", "dpm++_2m", "dpm++_2m_sde", "dpm++_3m", "unipc")),
    ],
)
@pytest.mark.filterwarnings("ignore:the option:panokit.errors.FallbackWarning")
def test_the_network_is_told_the_noise_that_there_is(name: str, prediction: Prediction, zero_snr: bool) -> None:
    trained, begun, wrong = training(name, prediction, zero_snr=zero_snr), 0, {}
    for steps, options in product((1, 2, 7, 30), TIMES):
        try:
            levels = DiffusersScheduler(name, options).begin(steps, CPU, trained).levels[:-1]
        except SettingError:  # the class lacks the option, or the levels do not suit it
            continue
        begun += 1
        wrong |= {(steps, *options.items(), k): off for k, level in enumerate(levels) if (off := apart(level, trained)) > 1e-3}
    assert begun >= 3
    assert wrong == {}


def test_timesteps_that_are_exact_are_those_of_diffusers() -> None:
    assert [level.t for level in begin("ddim").levels] == [831, 665, 499, 333, 167, 1, 0]
    for name in ("ddim", "pndm", "lcm", "dpm++_2m", "unipc", "sa"):
        assert all(type(level.t) is int for level in begin(name).levels)
    for name in ("euler", "euler_karras", "heun_karras", "lms", "kdpm2", "ddim", "unipc"):
        solver = begin(name)
        assert times_of(solver) == solver._scheduler.timesteps.tolist()
    assert any(level.t != round(level.t) for level in begin("euler_karras").levels)


@pytest.mark.parametrize("steps", [2, 3, 4, 5, 7, 8, 10, 25, 30, 50, 100, 200, 300, 500])
def test_the_usual_timesteps_are_those_of_stable_diffusion(steps: int) -> None:
    leading = [k * (1000 // steps) + 1 for k in reversed(range(steps))]
    for name in ("ddim", "ddpm", "euler"):
        levels = DiffusersScheduler(name).begin(steps, CPU, Training()).levels[:-1]
        assert [level.t for level in levels] == leading


@pytest.mark.parametrize(("steps", "spacing"), [(1, "trailing"), (400, "trailing"), (600, "trailing"), (769, "linspace")])
@pytest.mark.parametrize("name", ["ddim", "pndm", "euler"])
def test_where_leading_timesteps_begin_far_from_noise_others_are_taken(name: str, steps: int, spacing: str) -> None:
    taken = DiffusersScheduler(name).begin(steps, CPU, Training())
    assert taken.levels == DiffusersScheduler(name, {"timestep_spacing": spacing}).begin(steps, CPU, Training()).levels
    assert taken.levels[0].t == 999
    with pytest.raises(SettingError, match="with noise alone"):
        DiffusersScheduler(name, {"timestep_spacing": "leading"}).begin(steps, CPU, Training())


@pytest.mark.parametrize("name", ["ddim", "pndm"])
@pytest.mark.parametrize(
    ("spacing", "steps", "times"),
    [
        ("linspace", 1, [999, 0]),
        ("linspace", 4, [999, 749, 500, 250, 0]),
        ("trailing", 3, [999, 666, 332, 0]),
        ("trailing", 7, [999, 856, 713, 570, 428, 285, 142, 0]),
    ],
)
def test_each_step_lands_on_the_next_timestep_of_the_table(name: str, spacing: str, steps: int, times: list[int]) -> None:
    solver = DiffusersScheduler(name, {"timestep_spacing": spacing}).begin(steps, CPU, Training())
    main = [level for level in solver.levels if level.main]
    assert [level.t for level in main] == times
    kept = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    assert [level.alpha**2 for level in main] == pytest.approx([kept[t] for t in times], rel=1e-4)
    assert all(one.right for one in measure(solver))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {f"use_{kind}_sigmas": True}) for name in ("deis", "sa") for kind in ("karras", "exponential", "beta")),
        *((name, {"final_sigmas_type": "sigma_min"}) for name in ("unipc_karras", "dpm++_2m_karras", "dpm++_2s_karras")),
        *((name, {"steps_offset": 0}) for name in ("ddim", "pndm")),
    ],
)
@pytest.mark.parametrize("steps", [4, 10])
def test_the_last_step_moves_the_canvas_down_to_the_least_noise(name: str, options: dict[str, Any], steps: int) -> None:
    levels = [level for level in DiffusersScheduler(name, options).begin(steps, CPU, Training()).levels if level.main]
    assert len(levels) == steps + 1
    assert levels[-1].sigma == pytest.approx(math.sqrt(0.00085), rel=1e-3)
    assert levels[-2].sigma > 1.01 * levels[-1].sigma


OWN = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("cls", ["DDIMScheduler", "PNDMScheduler"])
def test_the_models_own_scheduler_has_the_noise_that_it_says(cls: str, prediction: str, spacing: str) -> None:
    config = {"timestep_spacing": spacing, "prediction_type": prediction, "steps_offset": 1 if spacing == "leading" else 0}
    skip = {"skip_prk_steps": True} if cls == "PNDMScheduler" else {}
    own = training_from({"_class_name": cls, **OWN, **config, **skip}).own
    assert own is not None
    assert all(one.right for one in measure(own(7, CPU)))


@pytest.mark.parametrize(
    ("config", "steps", "message"),
    [
        ({"steps_offset": 1}, 600, "begins at timestep 600, where 40% .* noise alone; name another one, or try other steps"),
        ({"rescale_betas_zero_snr": True}, 10, "predicts epsilon, which cannot give x0 where there is no signal"),
        ({"_class_name": "DDPMScheduler", "variance_type": "fixed_large"}, 10, "the canvas would have noise of"),
        ({"_class_name": "UniPCMultistepScheduler", "solver_order": 0}, 10, "list assignment index out of range"),
    ],
)
def test_the_models_own_scheduler_is_refused_in_a_line(config: dict[str, Any], steps: int, message: str) -> None:
    own = training_from({"_class_name": "DDIMScheduler", **OWN, **config}).own
    assert own is not None
    with pytest.raises(SettingError, match=f"the model's own scheduler, a .*, cannot begin: .*{message}") as raised:
        own(steps, CPU)
    assert "\n" not in str(raised.value)


def test_the_models_own_scheduler_refuses_more_steps_than_training_had() -> None:
    trained = training_from({"_class_name": "DDIMScheduler", **OWN})
    with pytest.raises(SettingError, match=r"the model's own scheduler cannot make 1001 steps: .*1001 cannot be larger"):
        Own().begin(1001, CPU, trained)


@pytest.mark.parametrize(("karras", "shift", "warnings_expected"), [(True, 3.0, 1), (True, 1.0, 0), (False, 3.0, 0)])
def test_a_shift_that_the_models_own_scheduler_drops_is_a_warning(karras: bool, shift: float, warnings_expected: int) -> None:
    config = {"use_karras_sigmas": karras, "flow_shift": shift, "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    trained = training_from({"_class_name": "UniPCMultistepScheduler", **config})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        solver = Own().begin(8, CPU, trained)
    assert [str(one.message) for one in caught if one.category is FallbackWarning] == warnings_expected * [
        "the model's own scheduler, a UniPCMultistepScheduler, drops its flow_shift of 3, because use_karras_sigmas is set"
    ]
    assert all(one.right for one in measure(solver))


def test_a_caller_may_tell_the_timesteps_of_diffusers() -> None:
    exact = begin("dpm++_2m_karras")
    args = exact._kind, exact._scheduler, {}, CPU, exact._prediction
    rounded = DiffusersSolver(*args, exact=False)
    assert times_of(rounded) == exact._scheduler.timesteps.tolist() != times_of(exact)
    assert [level.sigma for level in rounded.levels] == [level.sigma for level in exact.levels]


# -- flows ------------------------------------------------------------------------------------------------------------


def flow(name: str, steps: int = 8, options: dict[str, Any] | None = None, **settings: Any) -> DiffusersSolver:
    return DiffusersScheduler(name, options or {}).begin(steps, CPU, Training("flow_prediction", **settings))


def sigmas(solver: DiffusersSolver) -> list[float]:
    return [level.sigma for level in solver.levels if level.main]


@every_flow
def test_all_flow_solvers_share_the_levels_of_the_pipelines(name: str) -> None:
    """A pipeline passes even sigmas to FlowMatchEuler, which shifts them."""
    pipeline = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline.set_timesteps(sigmas=np.linspace(1.0, 1 / 8, 8))
    levels = [1, 21 / 22, 9 / 10, 5 / 6, 3 / 4, 9 / 14, 1 / 2, 3 / 10, 0]
    assert pipeline.sigmas.tolist() == pytest.approx(levels, abs=2e-6)
    assert sigmas(flow(name, shift=3.0)) == pytest.approx(levels, abs=2e-6)
    option = "shift" if name in FLOW else "flow_shift"
    assert sigmas(flow(name, shift=7.0, options={option: 3.0})) == pytest.approx(levels, abs=2e-6)


@every_flow
def test_a_model_may_set_the_levels_of_its_flow(name: str) -> None:
    def falling(steps: int) -> list[float]:
        return [0.9 * 0.5**k for k in range(steps)]

    assert sigmas(flow(name, 4, sigmas=falling, shift=3.0)) == pytest.approx([0.9, 0.45, 0.225, 0.1125, 0], abs=1e-6)
    assert sigmas(flow(name, 2, {"shift" if name in FLOW else "flow_shift": 1.0}, sigmas=falling))[1] == pytest.approx(0.5)
    with pytest.raises(SettingError, match="the model sets 3 noise levels for 4 steps"):
        flow(name, 4, sigmas=lambda steps: falling(steps - 1))


def test_flow_euler_is_a_literal_loop() -> None:
    solver, x = flow("flow_euler", shift=3.0), noise()
    *_, stepped = walk(solver, solver.start(x), generator())
    even = [1 - k / 8 for k in range(9)]
    for sigma, below in pairwise(3 * u / (1 + 2 * u) for u in even):
        x = x + (below - sigma) * model(x, 1000 * sigma)
    assert error(stepped, x) < 1e-5


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(
    ("name", "gain"),
    [("flow_euler", 7), ("flow_heun", 50), ("dpm++_2m", 15), ("dpm++_3m", 15), ("dpm++_2s", 15), ("unipc", 15)],
)
def test_a_flow_to_normal_pictures_ends_where_its_solution_does(name: str, gain: int, shift: float) -> None:
    """The exact flow keeps z in x = alpha mu + sqrt(alpha^2 v + sigma^2) z, and it starts at x = z.

    Steps of an eighth of the length divide the error by 8 in the first order and by 64 in the second. Less is asked of the
    solvers in log alpha / sigma, whose first and last steps stay long.
    """
    world, z = Gaussian(2.0, 0.3, training=Training("flow_prediction", shift=shift)), noise(dtype=torch.float64)

    def off(steps: int) -> float:
        solver = flow(name, steps, shift=shift)
        x = solver.start(z)
        for level in solver.levels[:-1]:
            x = solver.step(world(x, level, None), x, level, generator())
        return rms(x - 2.0 - math.sqrt(0.3) * z)

    coarse, fine = off(16), off(128)
    assert coarse < 0.1
    assert fine < coarse / gain


def test_zero_snr_starts_without_any_signal() -> None:
    zero = training("ddim", "v_prediction", zero_snr=True)
    solver = DiffusersScheduler("ddim", {"timestep_spacing": "trailing"}).begin(STEPS, CPU, zero)
    level, world, x = solver.levels[0], OneImage(noise(seed=1)), noise()
    assert (level.alpha, level.sigma) == (0, 1)
    assert torch.allclose(solver.x0(world.predict(solver, x, level), x, level), world.image)
    assert DiffusersScheduler("euler_a", {"timestep_spacing": "trailing"}).begin(STEPS, CPU, zero).levels[0].alpha < 1e-3


# -- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_restored_at_any_level_it_goes_on_to_the_same_bits(name: str) -> None:
    prediction: Prediction = "flow_prediction" if name in FLOW else "v_prediction"
    solver, random, saved = begin(name, prediction, steps=5), generator(1), []
    x = solver.start(noise())
    for level in solver.levels[:-1]:
        saved.append((x, random.get_state(), written_and_read(solver.state())))
        x = solver.step(model(x, level.t), x, level, random)
    other = begin(name, prediction, steps=5)
    for i, (canvas, drawn, state) in enumerate(saved):
        other.restore(state)
        *_, again = walk(other, canvas, generator().set_state(drawn), first=i)
        assert torch.equal(again, x)


def written_and_read(state: dict[str, Any]) -> Any:
    """Through a file that can hold nothing but tensors, numbers, text, None, and lists and dicts of them."""
    torch.save(state, file := io.BytesIO())
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", NAMES)
def test_two_solvers_of_one_scheduler_do_not_touch_each_other(name: str) -> None:
    trained = training(name, "flow_prediction" if name in FLOW else "epsilon")
    scheduler = DiffusersScheduler(name)
    alone = [list(walk(s, s.start(noise(seed=k)), generator(k))) for k in (0, 1) if (s := scheduler.begin(4, CPU, trained))]
    pair = [scheduler.begin(4, CPU, trained) for _ in (0, 1)]
    both = zip(*(walk(s, s.start(noise(seed=k)), generator(k)) for k, s in enumerate(pair)), strict=True)
    for mine, others in zip(both, zip(*alone, strict=True), strict=True):
        assert all(map(torch.equal, mine, others))


def test_a_state_is_a_copy() -> None:
    solver = begin("lms")
    steps = walk(solver, solver.start(noise()), generator())
    next(steps)
    state = solver.state()
    held = state["derivatives"][0].clone()
    next(steps)
    solver.restore(state)
    state["derivatives"][0].zero_()
    assert len(state["derivatives"]) == 1
    assert torch.equal(solver.state()["derivatives"][0], held)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_never_looks_at_the_canvas(name: str) -> None:
    """On the meta device a tensor has no values: reading one, which is what synchronises a device, raises."""
    trained = training(name, "flow_prediction" if name in FLOW else "epsilon")
    solver = DiffusersScheduler(name).begin(STEPS, torch.device("meta"), trained)
    x = solver.start(torch.empty(4, 6, 5, device="meta"))
    for level in solver.levels[:-1]:
        x = solver.step(model(x, level.t), x, level, generator())
    assert x.device.type == "meta"


@pytest.mark.parametrize("name", ["ddim", "unipc", "dpm++_2m", "heun"])
def test_a_canvas_may_have_three_axes(name: str) -> None:
    solver = begin(name)
    *_, x = walk(solver, solver.start(noise(2, 3, 4, 5)), generator())
    assert x.shape == (2, 3, 4, 5)


# -- settings ---------------------------------------------------------------------------------------------------------


def test_settings_are_a_value() -> None:
    scheduler = DiffusersScheduler("unipc", {"solver_order": 3, "disable_corrector": [0, 1]})
    assert scheduler == DiffusersScheduler("unipc", {"disable_corrector": (0, 1), "solver_order": 3})
    assert scheduler != DiffusersScheduler("unipc")
    assert hash(scheduler) == hash(pickle.loads(pickle.dumps(scheduler)))
    assert repr(scheduler) == "DiffusersScheduler('unipc', {'disable_corrector': (0, 1), 'solver_order': 3})"
    assert repr(DiffusersScheduler()) == "DiffusersScheduler('ddim')"
    assert eval(repr(scheduler)) == scheduler


def test_an_unknown_name_offers_the_closest() -> None:
    with pytest.raises(PluginNotFoundError, match=r"'eular'.*did you mean 'euler'\?.*ddim.*unipc"):
        DiffusersScheduler("eular")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ddim", {"etta": 0.5}, r"'ddim' has no option 'etta': did you mean 'eta'\? it takes clip_sample, .*timestep_spacing"),
        ("ddim", {"use_karras_sigmas": True}, "'ddim' has no option 'use_karras_sigmas': "),
        ("ddim", {"eta": 1.5}, "'eta'.*'ddim' came as 1.5: it must be between 0"),
        ("ddim", {"eta": "much"}, "'eta'.*'ddim' came as 'much': it must be a number, such as 0.0"),
        (
            "ddim",
            {"timestep_spacing": "even"},
            "'timestep_spacing'.*'even': it must be one of 'leading', 'trailing', 'linspace'",
        ),
        ("ddim", {"set_alpha_to_one": 1}, "'set_alpha_to_one'.*came as 1: it must be true or false"),
        (
            "ddim",
            {"prediction_type": "sample"},
            "'prediction_type'.*'ddim' is set by the model: leave it out",
        ),
        ("pndm", {"skip_prk_steps": False}, "'skip_prk_steps'.*not offered"),
        ("euler", {"timestep_type": "continuous"}, "'timestep_type'.*'euler' is set by the model: leave it out"),
    ],
)
def test_a_wrong_option_is_refused_at_once(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message) as raised:
        DiffusersScheduler(name, options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "options", "steps", "trained", "message"),
    [
        ("ddim", {}, 0, Training(), "steps came as 0: give 1 to 1000"),
        ("ddim", {}, 1001, Training(), "steps came as 1001: give 1 to 1000"),
        (
            "ddim",
            {"timestep_spacing": "leading"},
            600,
            Training(),
            "steps=600: it begins at timestep 600, where 40% of the picture should be there, with noise alone; try other",
        ),
        ("ddim", {"timestep_spacing": "leading"}, 1, Training(), "steps=1: it begins at timestep 1, where 100% of the picture"),
        ("dpm++_2m", {"timestep_spacing": "leading"}, 500, Training(), "it begins at timestep 500, where 53% of the picture"),
        ("ddpm", {"variance_type": "fixed_large"}, 10, Training(), "the canvas would have noise of .*, and its level says "),
        ("flow_heun", {"s_churn": 2.0}, 10, Training("flow_prediction"), "the canvas would have noise of .*, and its level"),
        ("euler", {"s_churn": 2.0}, 10, Training(), "the canvas would have noise of .*, and its level says "),
        ("ddim", {}, 1000, Training(), "its first timestep would be 1000, and the model knows 0 to 999"),
        ("lcm", {}, 60, Training(), r"DiffusersScheduler\('lcm'\) cannot begin with steps=60: .*; try other steps or options"),
        (
            "ddim",
            {"timestep_spacing": "trailing"},
            61,
            Training(),
            "steps=61: its last timestep would be -1",
        ),
        ("dpm++_2m", {"timestep_spacing": "leading"}, 1000, Training(), "its noise levels do not go down"),
        ("euler_a", {"timestep_spacing": "even"}, 10, Training(), "cannot begin with steps=10: even is not supported"),
        ("dpm++_2m", {"solver_order": 0}, 10, Training(), "cannot begin with steps=10: list"),
        (
            "lms_karras",
            {},
            800,
            Training(),
            "at timestep 0 the canvas would have noise of 0.00",
        ),  # the fits of its steps add up
        ("ddpm", {"variance_type": "learned"}, 10, Training(), "cannot begin with steps=10: "),
        ("unipc", {"solver_type": "bh1"}, 10, Training(), "at timestep 0 the canvas would hold NaN or infinity"),
        ("euler_karras", {"use_beta_sigmas": True}, 10, Training(), "Only one of"),
        (
            "ddim",
            {},
            10,
            Training("flow_prediction"),
            "'ddim' cannot drive.*predicts 'flow_prediction': use one of .*flow_euler",
        ),
        (
            "unipc",
            {"use_karras_sigmas": True},
            10,
            Training("flow_prediction"),
            "'use_karras_sigmas'.*'unipc' does not suit.*'flow_prediction': leave it out, or use 'flow_euler'",
        ),
        ("flow_euler", {}, 10, Training("epsilon"), "'flow_euler' cannot drive.*predicts 'epsilon': use one of ddim, "),
        ("heun", {}, 10, Training("v_prediction", zero_snr=True), "'heun' cannot.*zero_snr.*: use one of ddim, .*unipc"),
        ("ddim", {}, 10, Training(beta_schedule="sine"), "cannot begin with steps=10: sine is not implemented"),
    ],
)
def test_what_cannot_begin_says_why(name: str, options: dict[str, Any], steps: int, trained: Training, message: str) -> None:
    with pytest.raises(SettingError, match=message) as raised:
        DiffusersScheduler(name, options).begin(steps, CPU, trained)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", NAMES)
def test_epsilon_without_any_signal_is_refused_by_all(name: str) -> None:
    with pytest.raises(SettingError, match=r"predicts epsilon, which cannot give x0 where there is no signal|cannot drive"):
        DiffusersScheduler(name).begin(10, CPU, Training(zero_snr=True))


def idle_options(name: str, steps: int, options: dict[str, Any], trained: Training) -> list[str]:
    """The options that a warning names, since they change nothing."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        DiffusersScheduler(name, options).begin(steps, CPU, trained)
    lines = [str(warning.message) for warning in caught if warning.category is FallbackWarning]
    assert all(f"of the scheduler {name!r} changes nothing in {steps} steps of this model" in line for line in lines)
    return [line.split("'")[1] for line in lines]


@pytest.mark.parametrize(
    ("name", "options", "idle"),
    [
        ("ddim", {"clip_sample_range": 0.9}, ["clip_sample_range"]),
        ("ddim", {"clip_sample": True, "clip_sample_range": 0.9}, []),
        ("ddim", {"timestep_spacing": "trailing", "steps_offset": 5}, ["steps_offset"]),
        ("ddim", {"timestep_spacing": "leading", "eta": 0.0}, []),
        ("unipc_karras", {"timestep_spacing": "trailing"}, ["timestep_spacing"]),
        ("euler_karras", {"timestep_spacing": "trailing"}, []),
        ("euler", {"s_noise": 1.01}, ["s_noise"]),
        ("dpm++_2m", {"use_karras_sigmas": True, "use_lu_lambdas": True}, ["use_lu_lambdas"]),
        ("dpm++_2m", {"flow_shift": 3.0}, ["flow_shift"]),
        ("lcm", {"timestep_spacing": "trailing"}, ["timestep_spacing"]),
        ("tcd", {"timestep_spacing": "linspace", "eta": 0.5}, ["timestep_spacing"]),
        ("flow_euler", {"s_churn": 1.0, "shift": 2.0}, ["s_churn"]),
        ("unipc", {"timestep_spacing": "leading"}, []),
    ],
)
def test_an_option_that_changes_nothing_is_a_warning(name: str, options: dict[str, Any], idle: list[str]) -> None:
    trained = Training("flow_prediction" if name in FLOW else "epsilon")
    assert idle_options(name, 10, options, trained) == idle


def test_an_option_that_this_model_does_not_need_is_a_warning() -> None:
    flow = Training("flow_prediction", shift=3.0)
    assert idle_options("unipc", 4, {"timestep_spacing": "trailing"}, flow) == ["timestep_spacing"]
    assert idle_options("unipc", 4, {"flow_shift": 3.0}, flow) == ["flow_shift"]
    assert idle_options("unipc", 4, {"flow_shift": 5.0}, flow) == []


def test_every_scheduler_is_an_entry_point_that_says_what_it_is() -> None:
    installed = {plugin.name: plugin for plugin in registry.plugins("schedulers") if plugin.origin[0] == "panokit"}
    assert installed.pop("own").load() is Own
    assert sorted(installed) == sorted(DiffusersScheduler.names())
    for name, plugin in installed.items():
        assert plugin.load()() == DiffusersScheduler(name)
        assert registry.summary(plugin.load()).startswith(f"{PLAIN[plain_name(name)][0]} of diffusers")
