"""The noise of canvases in a world of one image, and what makes two solvers alike."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from panokit import Level, Training
from panokit.rehearsal import alike, measure
from panokit.testing.toys import ToyScheduler, ToySolver

CPU = torch.device("cpu")


def begin(eta: float = 0.0, corrector: bool = False) -> ToySolver:
    return ToyScheduler(eta, corrector).begin(5, CPU, Training())


def more_noise(solver: ToySolver, factor: float) -> None:
    """Sigmas that say so many times the noise that a step leaves."""
    levels = [replace(level, sigma=level.sigma * factor if level.index == 3 else level.sigma) for level in solver.levels]
    step, solver.levels = solver.step, levels
    kept = begin(solver.settings.eta).levels

    def as_before(pred: Tensor, x: Tensor, level: Level, generator: torch.Generator) -> Tensor:
        solver.levels = kept
        x = step(solver.pred(solver.x0(pred, x, levels[level.index]), x, kept[level.index]), x, kept[level.index], generator)
        solver.levels = levels
        return x

    solver.step = as_before


@pytest.mark.parametrize(("eta", "corrector"), [(0.0, False), (0.7, False), (1.0, False), (0.0, True), (0.7, True)])
def test_a_sound_solver_has_the_noise_of_its_levels(eta: float, corrector: bool) -> None:
    solver = begin(eta, corrector)
    levels = list(measure(solver))
    assert [one.level for one in levels] == solver.levels[1:]
    assert all(one.right for one in levels)
    assert all(one.noise == pytest.approx(one.level.sigma, rel=0.05, abs=1e-6) for one in levels)


@pytest.mark.parametrize(("eta", "factor"), [(0.0, 0.97), (0.0, 1.03), (0.7, 0.9), (0.7, 1.1)])
def test_noise_that_is_not_what_the_level_says_is_found_there(eta: float, factor: float) -> None:
    solver = begin(eta)
    more_noise(solver, factor)
    assert [one.level.index for one in measure(solver) if not one.right] == [3]


def test_nan_is_never_right() -> None:
    solver = begin()
    solver.step = lambda pred, x, level, generator: x * math.nan
    assert not any(one.right for one in measure(solver))


def coarser(solver: ToySolver) -> None:
    solver.levels = [replace(level, t=round(level.t)) for level in solver.levels]


def other_noise(solver: ToySolver) -> None:
    solver.settings = ToyScheduler(0.6)


def clips(solver: ToySolver) -> None:
    down = solver._down
    solver._down = lambda x0, *others: down(x0.clamp(-3, 3), *others)


@pytest.mark.parametrize("change", [coarser, other_noise, clips])
def test_solvers_are_alike_if_nothing_makes_a_difference(change: Callable[[ToySolver], None]) -> None:
    assert alike(begin(0.5), begin(0.5))
    other = begin(0.5)
    change(other)
    assert not alike(begin(0.5), other)
