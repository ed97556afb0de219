"""Every installed scheduler, in settings of every kind: it keeps the rule of the matrix, or is refused in a line."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from typing import Any

import pytest
import torch
from torch import Tensor

from panokit import Level, SettingError, Solver, Training
from panokit.testing.matrix import attempt, names, runs_of, settings_of, trainings_of
from panokit.testing.toys import ToyScheduler, ToySolver

TOY = "panokit.testing.toys:ToyScheduler"
SLOW = ("kdpm2", "heun", "lms")
"""Those whose constructor makes a table of all timesteps: they get training noise of a twentieth of them."""


@pytest.mark.parametrize("name", [*names(), TOY])
def test_every_scheduler_has_the_noise_that_its_levels_say(name: str, sweeps: bool) -> None:
    """Without options in all worlds; and with each setting in one, which differs from setting to setting."""
    plain, *others = settings_of(name)
    if sweeps:
        runs = [(settings, *run) for settings in (plain, *others) for run in runs_of(name, settings)]
    else:
        short = {"timesteps": 50, "beta_start": 0.017, "beta_end": 0.24} if name.startswith(SLOW) else {}
        worlds = {kind: replace(training, **short) for kind, training in trainings_of(name).items()}
        runs = [(plain, kind, world, steps) for kind, world in worlds.items() for steps in (1, 2, 3, 4, 10)]
        turns = zip(
            others[:: 3 if name.endswith("_karras") else 1],
            cycle(worlds.items()),
            cycle((2, 10, 3, 7, 4, 25, 1, 12)),
            strict=False,
        )
        runs += [(settings, kind, world, steps) for settings, (kind, world), steps in turns]
    outcomes = {
        (str(settings), kind, steps): attempt(name, settings, world, steps, kind) for settings, kind, world, steps in runs
    }
    assert {run: outcome.broken for run, outcome in outcomes.items() if outcome.broken} == {}
    assert any(not outcome.refusal for outcome in outcomes.values())


@pytest.mark.parametrize(("name", "steps"), [("ddim", 501), ("pndm", 667), ("euler", 1000), ("dpm++_2m_karras", 800)])
def test_so_many_steps_begin_near_pure_noise_too(name: str, steps: int) -> None:
    outcome = attempt(name, {}, Training(), steps)
    assert (outcome.refusal, outcome.broken) == ("", "")


def test_a_scheduler_of_somebody_else_enters_by_its_name() -> None:
    assert settings_of(TOY) == [{}, {"eta": 0.0}, {"eta": 0.5}, {"eta": 1.0}, {"corrector": False}, {"corrector": True}]
    assert {"own", "ddim", "flow_heun"} <= {*names()}


def lands_elsewhere(patch: pytest.MonkeyPatch) -> None:
    down = ToySolver._down

    def too_far(self: ToySolver, x0: Tensor, x: Tensor, level: Level, below: Level, generator: torch.Generator) -> Tensor:
        return down(self, x0, x, level, self.levels[min(below.index + 1, len(self.levels) - 1)], generator)

    patch.setattr(ToySolver, "_down", too_far)


def begins(**values: Any) -> Callable[[pytest.MonkeyPatch], None]:
    """Begin with another number of steps, or with later times."""

    def bend(patch: pytest.MonkeyPatch) -> None:
        begin = ToyScheduler.begin

        def bent(self: ToyScheduler, steps: int, device: torch.device, training: Training) -> Solver:
            solver = begin(self, values.get("steps", steps), device, training)
            for level in solver.levels:
                object.__setattr__(level, "t", level.t + values.get("later", 0.0))
            return solver

        patch.setattr(ToyScheduler, "begin", bent)

    return bend


def begins_in_the_middle(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(math, "sin", lambda angle, sine=math.sin: sine(0.8 * angle))
    patch.setattr(math, "cos", lambda angle, cosine=math.cos: cosine(0.8 * angle))


def stands_still(patch: pytest.MonkeyPatch) -> None:
    begin = ToyScheduler.begin

    def bent(self: ToyScheduler, steps: int, device: torch.device, training: Training) -> Solver:
        solver = begin(self, steps, device, training)
        for key in ("alpha", "sigma"):
            object.__setattr__(solver.levels[3], key, getattr(solver.levels[2], key))
        return solver

    patch.setattr(ToyScheduler, "begin", bent)


def starts_loud(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ToySolver, "start", lambda self, noise: 1.2 * noise)


def refuses_at_length(patch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> Solver:
        raise SettingError("no\nreally not")

    patch.setattr(ToyScheduler, "begin", refuse)


def looks_too_far_ahead(patch: pytest.MonkeyPatch) -> None:
    """Extrapolate x0, which goes unnoticed where x0 is the same at all levels."""
    down, before = ToySolver._down, []

    def ahead(self: ToySolver, x0: Tensor, *others: Any) -> Tensor:
        before.append(x0)
        return down(self, 9 * x0 - 8 * before[-2] if others[1].index else x0, *others)

    patch.setattr(ToySolver, "_down", ahead)


@pytest.mark.parametrize(
    ("bend", "steps", "broken"),
    [
        (lands_elsewhere, 8, "noise of .* at level 1, whose sigma is"),
        (begins(steps=9), 8, "9 steps"),
        (begins_in_the_middle, 8, "noise alone at alpha 0.36"),
        (begins(later=0.2), 8, "the time .* told for"),
        (stands_still, 8, "a step that stands still"),
        (starts_loud, 8, "a first canvas with noise of 1.2"),
        (refuses_at_length, 8, "its refusal has several lines"),
        (looks_too_far_ahead, 50, "pictures of .* and spread .*, not 0.2 and 0.2"),
    ],
    ids=["lands", "steps", "middle", "time", "still", "start", "lines", "spread"],
)
def test_a_broken_rule_is_named(
    bend: Callable[[pytest.MonkeyPatch], None], steps: int, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert attempt(TOY, {}, Training(), steps).broken == ""
    bend(monkeypatch)
    assert re.search(broken, attempt(TOY, {}, Training(), steps).broken)
