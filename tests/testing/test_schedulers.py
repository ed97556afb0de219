"""The checks of schedulers: sound ones pass them all, and each is the first to fail on one that breaks its rule."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from panokit import DiffusersScheduler, Level, Scheduler, SettingError, Solver, Training
from panokit.testing import Check, checks, conforms, run_checks, schedulers
from panokit.testing.toys import ToyScheduler, ToySolver


@conforms(lambda: ToyScheduler(eta=0.7, corrector=True))
def test_a_stochastic_scheduler_with_inner_stages(check: Check) -> None:
    check()


@conforms(lambda: DiffusersScheduler("ddim", {"eta": 1.0}))
def test_a_scheduler_of_diffusers_with_options(check: Check) -> None:
    check()


# --- schedulers that break one rule each --------------------------------------------------------------------


@dataclass(frozen=True)
class Bent(Scheduler):
    """Sound but for what `bend` does to the solver of each run."""

    bend: Callable[[ToySolver], None] = field(repr=False)

    def begin(self, steps: int, device: torch.device, training: Training) -> Solver:
        solver = ToyScheduler().begin(steps, device, training)
        self.bend(solver)
        return solver


def change(solver: ToySolver, k: int, **values: Any) -> None:
    solver.levels[k] = replace(solver.levels[k], **values)


def numbers_from_one(solver: ToySolver) -> None:
    for k, level in enumerate(solver.levels):
        change(solver, k, index=level.index + 1)


def explodes(solver: ToySolver) -> None:
    """In the coordinates of Karras et al., x0 + sigma eps."""
    for k, level in enumerate(solver.levels):
        change(solver, k, sigma=level.sigma / level.alpha, alpha=1.0)


def has_tensors(solver: ToySolver) -> None:
    object.__setattr__(solver.levels[0], "sigma", torch.tensor(solver.levels[0].sigma))


def has_no_terminal_level(solver: ToySolver) -> None:
    solver.levels = solver.levels[:-1]


def rises(solver: ToySolver) -> None:
    one, two = solver.levels[2], solver.levels[3]
    change(solver, 2, alpha=two.alpha, sigma=two.sigma)
    change(solver, 3, alpha=one.alpha, sigma=one.sigma)


def stays_noisy(solver: ToySolver) -> None:
    change(solver, -1, alpha=0.8, sigma=0.6)


def stands_still(solver: ToySolver) -> None:
    last = solver.levels[-2]
    change(solver, -1, alpha=last.alpha, sigma=last.sigma)


def begins_in_the_middle(solver: ToySolver) -> None:
    """Four fifths of the way up, with noise alone."""
    for k in range(7):
        sigma = math.sin(1.2 * (1 - k / 6))
        change(solver, k, sigma=sigma, alpha=1 - sigma if solver.prediction == "flow_prediction" else math.sqrt(1 - sigma**2))


def begins_too_loud(solver: ToySolver) -> None:
    solver.start = lambda noise: 1.1 * noise


def rounds_its_times_down(solver: ToySolver) -> None:
    for k, level in enumerate(solver.levels):
        change(solver, k, t=level.t - 0.9)


def lands_elsewhere(solver: ToySolver) -> None:
    """On the level below but one, whatever its table says."""
    solver._down, down = lambda x0, x, level, below, generator: down(x0, x, level, elsewhere(below), generator), solver._down

    def elsewhere(below: Level) -> Level:
        return solver.levels[min(below.index + 1, len(solver.levels) - 1)]


def takes_all_for_epsilon(solver: ToySolver) -> None:
    solver.prediction = "epsilon"


def inverts_badly(solver: ToySolver) -> None:
    pred = solver.pred
    solver.pred = lambda x0, x, level: 1.01 * pred(x0, x, level)


def has_no_gradient(solver: ToySolver) -> None:
    solver.x0 = torch.no_grad()(solver.x0)


def overshoots(solver: ToySolver) -> None:
    step = solver.step
    solver.step = lambda pred, x, level, generator: 1.05 * step(pred, x, level, generator)


def steps_in_place(solver: ToySolver) -> None:
    step = solver.step
    solver.step = lambda pred, x, level, generator: x.copy_(step(pred, x.clone(), level, generator))


def draws_its_own_noise(solver: ToySolver) -> None:
    step = solver.step

    def noisy(pred: Tensor, x: Tensor, level: Level, generator: torch.Generator) -> Tensor:
        return step(pred, x, level, generator) + 0.01 * solver.levels[level.index + 1].sigma * torch.randn_like(x)

    solver.step = noisy


def two_step(solver: ToySolver, memory: dict[str, Tensor]) -> None:
    """A method that looks back at the x0 of the level before."""
    step = solver.step

    def back(pred: Tensor, x: Tensor, level: Level, generator: torch.Generator) -> Tensor:
        x0 = solver.x0(pred, x, level)
        before = memory.get("x0", x0) if level.index else x0
        memory["x0"] = x0
        return step(solver.pred(1.1 * x0 - 0.1 * before, x, level), x, level, generator)

    solver.step = back


_SHARED: dict[str, Tensor] = {}


def shares_its_memory(solver: ToySolver) -> None:
    two_step(solver, _SHARED)


def saves_nothing(solver: ToySolver) -> None:
    two_step(solver, {})


def saves_a_function(solver: ToySolver) -> None:
    solver.state = lambda: {"why": lambda: None}


@pytest.mark.parametrize(
    ("bend", "check", "advice"),
    [
        (numbers_from_one, schedulers.levels_descend, r"levels \[1, 2, .*the index of a level is its place in the list"),
        (explodes, schedulers.levels_descend, "alpha² \\+ sigma² = 1.*rescale in `start` and `step`"),
        (has_tensors, schedulers.levels_descend, "alpha and sigma must be Python floats"),
        (
            has_no_terminal_level,
            schedulers.levels_descend,
            r"steps \[0, .*5\]; expected 0 to 6, where the last one is terminal",
        ),
        (rises, schedulers.levels_descend, "they must fall from each main level to the next"),
        (stays_noisy, schedulers.levels_descend, "and must end below 0.2"),
        (stands_still, schedulers.levels_descend, "they must fall from each main level to the next"),
        (
            begins_in_the_middle,
            schedulers.begins_with_noise,
            "noise alone at alpha 0.36.*begin near the last timestep of training",
        ),
        (begins_too_loud, schedulers.begins_with_noise, "has noise of 1.1, .*`start` must scale the noise to the level"),
        (rounds_its_times_down, schedulers.network_is_told_the_level, "the time 46.15 .* had at 47.05.*need not be whole"),
        (
            lands_elsewhere,
            schedulers.noise_is_what_levels_say,
            "at level 1, with noise of .* where sigma is 0.949.*the level that it lands on",
        ),
        (takes_all_for_epsilon, schedulers.x0_inverts, "predicts v_prediction.*use panokit.scheduler.x0_from"),
        (inverts_badly, schedulers.x0_inverts, "`x0` of `pred` is another.*use panokit.scheduler.pred_from"),
        (has_no_gradient, schedulers.x0_inverts, "`x0` has no gradient.*without no_grad or detach"),
        (overshoots, schedulers.noise_is_what_levels_say, "is 0.048 away from it at level 1.*check the coefficients of `step`"),
        (steps_in_place, schedulers.leaves_arguments_alone, "step wrote to one of its arguments.*trailing underscore"),
        (
            draws_its_own_noise,
            schedulers.step_is_deterministic_given_the_generator,
            "draw noise from the argument of `step`",
        ),
        (shares_its_memory, schedulers.runs_do_not_share_memory, "`begin` must return a new solver"),
        (saves_nothing, schedulers.state_restores, "makes another canvas.*must return copies of all that later steps"),
        (saves_a_function, schedulers.state_restores, "a checkpoint cannot hold: return tensors, numbers, text"),
        (lambda solver: None, schedulers.pickles_and_reprs, "cannot be pickled.*top level of a module, no lambdas"),
    ],
    ids=lambda value: getattr(value, "__name__", "says"),
)
def test_the_check_of_a_rule_is_the_first_to_fail_where_the_rule_is_broken(
    bend: Callable[[ToySolver], None], check: Callable[..., None], advice: str
) -> None:
    name, problem = next(outcome for outcome in run_checks(lambda: Bent(bend)) if outcome.problem)
    assert name == check.__name__
    assert re.search(advice, problem), problem
    assert "\n" not in problem


@dataclass(frozen=True)
class Refusing(Scheduler):
    def begin(self, steps: int, device: torch.device, training: Training) -> Solver:
        raise SettingError(f"not {training.prediction}")


def test_a_scheduler_that_drives_no_model_is_told_what_it_said() -> None:
    problems = [outcome.problem for outcome in run_checks(Refusing)]
    assert re.search(r"cannot begin 6 steps for any type of prediction \(not epsilon; .*: choose other settings", problems[0])


def test_a_scheduler_may_refuse_some_models() -> None:
    """diffusers' flow solvers drive nothing else."""
    assert [outcome for outcome in run_checks(lambda: DiffusersScheduler("flow_euler")) if outcome.problem] == []


def test_every_check_is_tried_by_a_broken_scheduler() -> None:
    (mark,) = test_the_check_of_a_rule_is_the_first_to_fail_where_the_rule_is_broken.pytestmark
    tried = {check.__name__ for _, check, _ in mark.args[1]}
    assert tried == {check.name for check in checks(ToyScheduler)}
