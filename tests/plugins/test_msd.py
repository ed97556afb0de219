"""MSD's settings, its energy, what it costs, and what it does where the answer is known."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, final, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from panokit import Denoiser, Grid, Level, Run, Sampler, SettingError
from panokit.denoiser import Prompt
from panokit.scheduler import Prediction, Training
from panokit.testing import Check, conforms
from panokit.testing.toys import Pull, ToyDenoiser, ToyScheduler, toy_run
from panokit_msd import MSDGuidance
from panokit_msd.scale import enlarged, mean, pick, renoised

Jacobian = Literal["full", "identity"]
Coarse = Literal["bilinear", "strided", "renoise", "trajectory"]
Space = Literal["x0", "prev"]


gradient = partial(MSDGuidance, head_start=0.0)
"""The guidance without a head start: every step is guided or asleep."""


def finished(run: Run) -> Tensor:
    while not run.done:
        run.step()
    return run.canvas


def toy(run: Run) -> ToyDenoiser:
    assert isinstance(run.denoiser, ToyDenoiser)
    return run.denoiser


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"weight": -1.0}, "weight is -1.0: it must be 0 or more"),
        ({"weight": math.nan}, "weight is nan"),
        ({"decay": -0.5}, "decay is -0.5"),
        ({"until": 1.5}, "until is 1.5: it is a share of the steps, from 0 to 1"),
        ({"until": -0.1}, "until is -0.1"),
        ({"head_start": 1.5}, "head_start is 1.5: it is a share of the steps, from 0 to 1"),
        ({"head_start": -0.1}, "head_start is -0.1"),
        ({"levels": 1}, "levels is 1: it must be 2 or more"),
        ({"factor": 1}, "factor is 1: it must be 2 or more"),
        ({"lead": 0.5}, "lead is 0.5: it must be 1 or more"),
        ({"lead": math.nan}, "lead is nan"),
        ({"density": 0}, "density is 0: it must be 1 or more"),
    ],
)
@pytest.mark.parametrize("make", [MSDGuidance, MSDGuidance.paper, MSDGuidance.full])
def test_a_setting_out_of_range_is_refused(make: Any, setting: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make(**setting)


@pytest.mark.parametrize("name", ["coarse", "space", "norm", "jacobian"])
def test_a_choice_that_there_is_not_is_refused(name: str) -> None:
    guidance = MSDGuidance()
    object.__setattr__(guidance, name, "cubic")  # in tests beartype would look at the constructor's arguments first
    with pytest.raises(SettingError, match=f"{name} is 'cubic': it must be one of "):
        guidance.__post_init__()


@pytest.mark.parametrize(
    ("size", "guidance", "message"),
    [
        (
            (6, 16),
            MSDGuidance(),
            "needs a canvas of 8 x 8 cells or more, in steps of 2, .* 6 x 16: the next that works is 8 x 16$",
        ),
        ((8, 16), MSDGuidance(levels=3), "the next that works is 16 x 16, and 2 levels fit this one"),
        (
            (12, 12),
            MSDGuidance(factor=3),
            "factor is 3, which does not divide the model's window of 4 x 4 cells: choose 2 or 4$",
        ),
        ((9, 16), MSDGuidance(), "9 x 16: the next that works is 10 x 16"),
    ],
)
def test_a_canvas_that_does_not_hold_the_levels_is_refused(size: tuple[int, int], guidance: MSDGuidance, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        toy_run(size, guidances=[guidance])


def test_a_refusal_says_what_a_cell_is_in_pixels(tiny: Any) -> None:
    with pytest.raises(SettingError, match=r"the next that works is 16 x 32 \(a cell is 2 x 2 pixels\)"):
        Sampler(tiny, guidances=[MSDGuidance()]).begin("a lake", height=16, width=64)


@pytest.mark.parametrize(
    "guidance",
    [
        MSDGuidance(0.0),
        MSDGuidance.paper(0.0),
        MSDGuidance.full(0.0),
        MSDGuidance(coarse="renoise", weight=0.0),
        MSDGuidance(0.0, lead=math.inf),
        gradient(until=0.0),
    ],
)
def test_without_weight_it_is_multidiffusion_bit_for_bit_and_costs_the_same(guidance: MSDGuidance) -> None:
    plain, guided = toy_run((8, 16)), toy_run((8, 16), guidances=[guidance])
    assert torch.equal(finished(plain), finished(guided))
    assert toy(plain).forwards == toy(guided).forwards
    assert toy(guided).backwards == []


@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("jacobian", get_args(Jacobian))
@pytest.mark.parametrize("coarse", get_args(Coarse))
def test_it_costs_the_closed_form(levels: int, jacobian: Jacobian, coarse: Coarse) -> None:
    """A full guided step: 2 forwards and 1 backward a guided window, 1 forward a window of the coarsest level."""
    guidance = gradient(0.01, levels=levels, jacobian=jacobian, coarse=coarse, until=0.5)
    run = toy_run((16, 24), guidances=[guidance], steps=4, micro_batch=32)
    grids = [run.grid, run.grid.scaled(2), run.grid.scaled(4)][:levels]
    fine, guided, coarsest = len(run.grid), sum(map(len, grids[:-1])), len(grids[-1])
    finished(run)
    passes = 2 if jacobian == "full" else 1
    assert sum(toy(run).forwards) == 2 * (passes * guided + coarsest) + 2 * fine
    assert sum(toy(run).backwards) == (2 * guided if jacobian == "full" else 0)


@pytest.mark.parametrize("levels", [2, 3])
def test_a_head_start_costs_all_steps_of_the_coarsest_canvas_and_spares_the_others_theirs(levels: int) -> None:
    guidance = MSDGuidance(levels=levels, head_start=0.5, until=0.75)
    run = toy_run((16, 24), guidances=[guidance], steps=4)
    fine, *between, coarsest = [len(grid) for grid in (run.grid, run.grid.scaled(2), run.grid.scaled(4))[:levels]]
    painted, below = 4 * coarsest, coarsest
    for windows in (*between, fine):  # two steps are spared, one is guided by the canvases below, one is not
        painted, below = painted + 2 * windows + below, windows + below
    finished(run)
    assert sum(toy(run).forwards) == painted


@pytest.mark.parametrize(("steps", "head_start", "spared"), [(1, 0.3, 0), (2, 0.9, 1), (2, 1.0, 2), (10, 0.3, 3), (25, 0.3, 8)])
def test_the_last_step_is_the_fine_canvass_own(steps: int, head_start: float, spared: int) -> None:
    run = toy_run((8, 16), guidances=[MSDGuidance(head_start=head_start, until=0.0)], steps=steps)
    finished(run)
    painted = steps * len(run.grid.scaled(2)) if spared else 0
    assert sum(toy(run).forwards) == painted + (steps - spared) * len(run.grid)
    assert run.guided[0][1].keys() == ({"coarse", "painted"} if spared == steps else {"coarse"})


@pytest.mark.parametrize("wrap", [False, True])
def test_a_head_start_is_the_finished_coarse_canvas_enlarged_under_the_runs_own_noise(wrap: bool) -> None:
    pull = Pull("identity", weight=0.5, to=3)
    run = toy_run((8, 16), guidances=[MSDGuidance(head_start=0.5, coarse_guidances=(pull,))], wrap=wrap, steps=4)
    noise = run.canvas / run.level.sigma
    run.step()
    forwards = list(toy(run).forwards)
    run.step()
    assert toy(run).forwards == forwards  # it is painted once
    assert sum(forwards) == 4 * len(run.grid.scaled(2))
    coarse = run.guided[0][1]["painted"]
    expected = run.level.alpha * enlarged(coarse, 2, (wrap, wrap)) + run.level.sigma * noise
    torch.testing.assert_close(run.canvas, expected, rtol=1e-12, atol=1e-12)


def test_the_papers_geometry_is_45_windows_and_7() -> None:
    denoiser = ToyDenoiser((64, 64), channels=1)
    run = toy_run((128, 512), denoiser=denoiser, stride=32, steps=2, guidances=[gradient()])
    run.step()
    assert sum(denoiser.forwards) == 45 + 7
    run.step()  # asleep: the coarse windows are not denoised
    assert sum(denoiser.forwards) == 45 + 7 + 45


def test_coarse_windows_are_batched_like_any_others() -> None:
    run = toy_run((8, 32), guidances=[gradient()], steps=1, micro_batch=4)
    run.step()
    coarse = len(run.grid.scaled(2))
    assert coarse == 7
    assert toy(run).forwards[:2] == [3, 4]


@pytest.mark.parametrize(("size", "levels"), [((8, 16), 2), ((16, 24), 3), ((16, 12), 2), ((32, 64), 4)])
@pytest.mark.parametrize("jacobian", get_args(Jacobian))
def test_there_are_as_many_levels_as_the_canvas_holds(size: tuple[int, int], levels: int, jacobian: Jacobian) -> None:
    given, own = (toy_run(size, guidances=[MSDGuidance(jacobian=jacobian, levels=each)], steps=2) for each in (levels, None))
    assert torch.equal(finished(given), finished(own))
    assert toy(given).forwards == toy(own).forwards
    with pytest.raises(SettingError, match=f"and {levels} levels fit this one"):
        toy_run(size, guidances=[MSDGuidance(levels=levels + 1)])


def test_density_lays_the_coarsest_windows_closer() -> None:
    run = toy_run((8, 32), guidances=[gradient(density=2)], steps=1)
    run.step()
    assert sum(toy(run).forwards) == len(run.grid) + 13


@pytest.mark.parametrize("prediction", get_args(Prediction))
@pytest.mark.parametrize("coarse", get_args(Coarse))
@pytest.mark.parametrize("space", ["x0", "prev"])
def test_a_projection_of_full_weight_makes_both_sides_equal(prediction: Prediction, coarse: Coarse, space: Space) -> None:
    """However large the weight, the clean estimate, shrunk, goes no farther than the coarse canvas."""
    guidance = gradient(math.inf, 0.0, coarse=coarse, space=space)
    coarse_x0, fine_x0 = both_sides(toy_run((8, 8), denoiser=ToyDenoiser(prediction=prediction), guidances=[guidance], steps=2))
    assert coarse_x0.shape[1:] == (4, 4)
    shrunk = (pick if coarse == "strided" else mean)(fine_x0, 2, 2)
    torch.testing.assert_close(shrunk, coarse_x0, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("size", "window", "factor"), [((8,), 4, 2), ((8, 8, 8), 4, 2), ((18, 18), 6, 3), ((16, 16), 4, 2)])
@pytest.mark.parametrize("space", ["x0", "prev"])
def test_so_it_does_along_any_axes_by_any_factor_and_over_any_levels(
    size: tuple[int, ...], window: int, factor: int, space: Space
) -> None:
    guidance = gradient(math.inf, 0.0, factor=factor, space=space)
    denoiser = ToyDenoiser((window,) * len(size))
    coarse_x0, fine_x0 = both_sides(toy_run(size, denoiser=denoiser, guidances=[guidance], stride=window, steps=2))
    torch.testing.assert_close(mean(fine_x0, factor, len(size)), coarse_x0, rtol=1e-8, atol=1e-8)


@final
class Steady(Denoiser):
    r"""Sees noise that depends on the canvas alone: $\partial \hat x_0 / \partial x = 1 / \alpha$."""

    window, channels, training = (4, 4), 2, Training("epsilon")

    def modules(self) -> Iterable[nn.Module]:
        return ()

    def encode(self, prompt: Prompt, negative_prompt: str, guidance_scale: float) -> Any:
        return None

    def condition(self, embeddings: Any, grid: Grid, index: Sequence[int]) -> Any:
        return 0.1 * grid.size[0]

    def __call__(self, x: Tensor, level: Level, condition: Any) -> Tensor:
        return condition + 0.0 * x


@pytest.mark.parametrize("space", ["x0", "prev"])
@pytest.mark.parametrize("weight", [0.5, math.inf])
@pytest.mark.parametrize("coarse", get_args(Coarse))
@pytest.mark.parametrize("size", [(8, 8), (16, 16)])
def test_with_a_full_gradient_a_weight_is_the_same_share(
    space: Space, weight: float, coarse: Coarse, size: tuple[int, int]
) -> None:
    """Where the Jacobian is what the norm takes it to be, the clean estimate goes 1 - exp(-weight / steps) of the way."""

    def run(weight: float) -> Run:
        guidance = MSDGuidance.full(weight, decay=0.0, space=space, coarse=coarse)
        return toy_run(size, denoiser=Steady(), guidances=[guidance], steps=2, micro_batch=32)

    shrink = pick if coarse == "strided" else mean
    (coarse_x0, fine_x0), (_, unguided) = both_sides(run(weight)), both_sides(run(1e-30))
    start = shrink(unguided, 2, 2)
    assert float((coarse_x0 - start).abs().max()) > 0.1
    torch.testing.assert_close(
        shrink(fine_x0, 2, 2), start - math.expm1(-weight / 2) * (coarse_x0 - start), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("coarse", get_args(Coarse))
@pytest.mark.parametrize("lead", [1.0, 10.0, math.inf])
def test_a_canvas_between_two_follows_the_one_below_as_many_times_as_fast(coarse: Coarse, lead: float) -> None:
    """All coarse canvases go 1 - exp(-weight lead / steps) of their way, and the finest 1 - exp(-weight / steps)."""

    def run(weight: float, lead: float) -> list[Tensor]:
        guidance = gradient(weight, decay=0.0, coarse=coarse, lead=lead)
        return sides(toy_run((32, 32), guidances=[guidance], steps=2, micro_batch=64))

    shrink = pick if coarse == "strided" else mean
    found, unguided = run(0.5, lead), run(1e-30, 1.0)
    assert len(found) == 4
    rates = (0.5 * lead, 0.5 * lead, 0.5)
    for rate, below, start, guided in zip(rates, found, unguided[1:], found[1:], strict=False):
        apart = below - shrink(start, 2, 2)
        assert float(apart.abs().max()) > 0.01
        torch.testing.assert_close(
            shrink(guided, 2, 2), shrink(start, 2, 2) - math.expm1(-rate / 2) * apart, rtol=1e-9, atol=1e-9
        )


def both_sides(run: Run) -> tuple[Tensor, Tensor]:
    """The clean estimates of the canvas below and of the finest one in a run's first step."""
    *_, coarse, fine = sides(run)
    return coarse, fine


def sides(run: Run) -> list[Tensor]:
    """The clean estimates of all canvases in a run's first step, the coarsest one first."""
    seen: list[Tensor] = []

    def spy(canvas: Tensor, grid: Grid, guided: Any, level: Level) -> Any:
        x, pred = estimate(canvas, grid, guided, level)
        seen.append(run.solver.x0(pred, x, level))
        return x, pred

    estimate, run.estimate = run.estimate, spy  # type: ignore[method-assign]  # looks on
    run.step()
    return seen


@pytest.mark.parametrize("coarse", get_args(Coarse))
def test_projecting_one_step_down_is_projecting_the_clean_estimate(coarse: Coarse) -> None:
    runs = [toy_run((8, 16), guidances=[gradient(0.7, coarse=coarse, space=space)], steps=2) for space in get_args(Space)]
    for run in runs:
        run.step()
    torch.testing.assert_close(runs[0].canvas, runs[1].canvas, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("norm", ["sum", "projection"])
def test_cosine_decay_and_stop(norm: Literal["sum", "projection"]) -> None:
    guidance = MSDGuidance(3.0, decay=2.0, until=0.5, norm=norm)
    levels = toy_run(steps=10).solver.levels
    found = [guidance.strength(level) for level in levels]
    weights = [3 * (0.5 * (1 + math.cos(math.pi * k / 10))) ** 2 for k in range(5)] + [0.0] * 6
    assert found == pytest.approx(weights if norm == "sum" else [1 - math.exp(-weight / 10) for weight in weights])


def test_a_rate_takes_as_much_away_in_any_number_of_steps() -> None:
    guidance = MSDGuidance(3.0, decay=0.0, until=0.5)
    left = [math.prod(1 - guidance.strength(level) for level in toy_run(steps=steps).solver.levels) for steps in (2, 10, 40)]
    assert left == pytest.approx([math.exp(-1.5)] * 3)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(2, 4), st.integers(0, 10_000))
def test_the_mean_is_the_mean_of_blocks_and_the_pick_keeps_one_of_them(axes: int, factor: int, seed: int) -> None:
    coarse = torch.randn((2, *(3,) * axes), generator=torch.Generator().manual_seed(seed))
    fine = coarse
    for axis in range(1, axes + 1):
        fine = fine.repeat_interleave(factor, axis)
    torch.testing.assert_close(mean(fine, factor, axes), coarse)
    assert torch.equal(pick(fine, factor, axes), coarse)


def test_at_factor_2_the_mean_is_bilinear() -> None:
    x = torch.randn(3, 2, 8, 12)
    torch.testing.assert_close(mean(x, 2, 2), torch.nn.functional.interpolate(x, scale_factor=0.5, mode="bilinear"))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(2, 4), st.integers(0, 10_000))
def test_enlarged_goes_round_a_ring_and_is_linear_between_cells(axes: int, factor: int, seed: int) -> None:
    coarse = torch.randn((2, *(4,) * axes), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    fine = enlarged(coarse, factor, (True,) * axes)
    assert fine.shape == (2, *(4 * factor,) * axes)
    for axis in range(-axes, 0):
        torch.testing.assert_close(enlarged(coarse.roll(1, axis), factor, (True,) * axes), fine.roll(factor, axis))
    ramp = torch.arange(5.0, dtype=torch.float64).view(1, -1, *(1,) * (axes - 1)).expand(1, *(5,) * axes)
    inner = (slice(None), slice(factor, -factor))
    places = (torch.arange(5.0 * factor, dtype=torch.float64) + 0.5) / factor - 0.5
    found = enlarged(ramp, factor, (False,) * axes)
    torch.testing.assert_close(found[inner], places.view(1, -1, *(1,) * (axes - 1)).expand(found.shape)[inner])


def test_along_two_axes_enlarged_is_bilinear() -> None:
    x = torch.randn(3, 6, 5)
    bilinear = torch.nn.functional.interpolate(x[None], scale_factor=3, mode="bilinear")[0]
    torch.testing.assert_close(enlarged(x, 3, (False, False)), bilinear)


@pytest.mark.parametrize(("axes", "factor"), [(1, 2), (2, 2), (2, 3), (3, 2)])
def test_renoised_has_the_noise_of_its_level(axes: int, factor: int) -> None:
    generator = torch.Generator().manual_seed(0)
    level = Level(0, 0, 0.6, 0.8, 0, 1)
    fine = level.sigma * torch.randn((64, *(factor * 6,) * axes), generator=generator)
    found = renoised(fine, factor, axes, level, lambda shape: torch.randn(shape, generator=generator))
    assert float(found.std()) == pytest.approx(level.sigma, rel=0.1)
    assert float(mean(fine, factor, axes).std()) == pytest.approx(level.sigma * factor ** (-axes / 2), rel=0.1)


@pytest.mark.parametrize("coarse", get_args(Coarse))
@pytest.mark.parametrize("jacobian", get_args(Jacobian))
@pytest.mark.parametrize(("wrap", "head_start"), [(False, 0.0), (True, 0.0), (True, 0.25), (False, 0.75)])
def test_it_resumes_bit_for_bit(coarse: Coarse, jacobian: Jacobian, wrap: bool, head_start: float) -> None:
    def begun() -> Run:
        guidance = MSDGuidance(0.1, coarse=coarse, jacobian=jacobian, until=1.0, head_start=head_start, levels=3)
        return toy_run((16, 16), guidances=[guidance], scheduler=ToyScheduler(eta=1.0), wrap=wrap, steps=4, micro_batch=32)

    whole, first, second = begun(), begun(), begun()
    first.step()
    first.step()
    second.restore(first.state())
    assert torch.equal(finished(whole), finished(second))


def test_a_trajectory_is_a_run_of_its_own() -> None:
    """Its coarse canvas goes down by itself, whatever happens above: here nothing, for the weight is next to none."""
    guidance = gradient(1e-30, coarse="trajectory", until=1.0)
    run = toy_run((8, 16), guidances=[guidance], steps=3)
    run.step()
    memory = run.guided[0][1]
    alone = toy_run((4, 8), steps=3)
    alone.level, alone.canvas = run.level, memory["canvas"].clone()
    run.step()
    alone.step()
    torch.testing.assert_close(memory["canvas"], alone.canvas, rtol=1e-9, atol=1e-9)


def test_guidances_of_the_coarse_canvas_are_asked_there_alone() -> None:
    pull = Pull("identity", weight=0.5, to=3)
    plain = toy_run((8, 16), guidances=[gradient()], steps=2)
    pulled = toy_run((8, 16), guidances=[gradient(coarse_guidances=(pull,))], steps=2)
    plain.step()
    pulled.step()
    assert sum(toy(plain).forwards) == sum(toy(pulled).forwards)
    assert not torch.allclose(plain.canvas, pulled.canvas)


@conforms(gradient)
def test_it_keeps_its_contract_without_a_head_start(check: Check) -> None:
    check()


@conforms(lambda: MSDGuidance(head_start=0.25, until=1.0))
def test_it_keeps_its_contract_where_it_guides_after_one(check: Check) -> None:
    check()


def test_a_guidance_beside_it_that_ends_with_the_head_start_is_one_of_the_coarse_canvas() -> None:
    pull = Pull("identity", weight=0.5, to=3, until=2)
    beside, below = MSDGuidance(head_start=0.5, until=0.75), MSDGuidance(head_start=0.5, until=0.75, coarse_guidances=(pull,))
    runs = [toy_run((8, 16), guidances=guidances, steps=4) for guidances in ([pull, beside], [below], [beside])]
    found, expected, without = [finished(run) for run in runs]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(found, without)


def test_three_axes() -> None:
    run = toy_run((8, 8, 8), guidances=[MSDGuidance(0.1)], steps=2)
    assert torch.isfinite(finished(run)).all()


def test_settings_of_the_named_ones() -> None:
    assert replace(MSDGuidance.paper(), weight=1.0) == MSDGuidance.paper(1.0)
    paper, full = MSDGuidance.paper(), MSDGuidance.full()
    assert (paper.weight, paper.decay, paper.coarse, paper.space) == (10.0, 1.0, "bilinear", "prev")
    assert (paper.norm, paper.jacobian, paper.lead, paper.head_start) == ("sum", "full", 1.0, 0.0)
    assert full == replace(gradient(full.weight), coarse="bilinear", space="prev", jacobian="full", lead=1.0)
