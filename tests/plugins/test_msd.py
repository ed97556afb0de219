"""MSD, panokit's and the paper's: settings, what they cost, and what they do where the answer is known."""

import math
from functools import partial
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from panokit import Grid, Guidance, Level, Run, Sampler, SettingError
from panokit.composition import build
from panokit.scheduler import Prediction
from panokit.testing import Check, conforms
from panokit.testing.toys import ToyDenoiser, ToyScheduler, toy_run
from panokit_msd import HeadStart, MSDGuidance, MSDPaper
from panokit_msd.scale import mean, renoised

gradient = partial(MSDGuidance, head_start=0.0)
"""The guidance without a head start: every step is guided or asleep."""


def finished(run: Run) -> Tensor:
    while not run.done:
        run.step()
    return run.canvas


def toy(run: Run) -> ToyDenoiser:
    assert isinstance(run.parts.denoiser, ToyDenoiser)
    return run.parts.denoiser


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"weight": -1.0}, "weight is -1.0: it must be 0 or more"),
        ({"weight": math.nan}, "weight is nan"),
        ({"decay": -0.5}, "decay is -0.5"),
        ({"until": 1.5}, "until is 1.5: it is a share of the steps, from 0 to 1"),
        ({"until": -0.1}, "until is -0.1"),
        ({"levels": 1}, "levels is 1: it must be 2 or more"),
        ({"factor": 1}, "factor is 1: it must be 2 or more"),
        ({"levels": 33}, "levels is 33: there are 32 at most"),
    ],
)
@pytest.mark.parametrize("make", [MSDGuidance, MSDPaper])
def test_a_setting_out_of_range_is_refused(make: Any, setting: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make(**setting)


@pytest.mark.parametrize("head_start", [1.5, -0.1, math.nan])
def test_a_head_start_is_a_share_of_the_steps(head_start: float) -> None:
    with pytest.raises(SettingError, match=f"head_start is {head_start}: it is a share of the steps, from 0 to 1"):
        MSDGuidance(head_start=head_start)


@pytest.mark.parametrize(
    ("setting", "advice"),
    [
        ({"coarse": "bilinear"}, "MSDPaper"),
        ({"space": "prev"}, "MSDPaper"),
        ({"norm": "sum"}, "MSDPaper"),
        ({"jacobian": "full"}, "MSDPaper"),
        ({"lead": 1.0}, "it is always 10"),
        ({"density": 2}, "leave it out"),
        ({"coarse_guidances": ()}, "beside MSDGuidance"),
    ],
)
def test_a_setting_that_is_gone_is_answered_with_what_to_write_now(setting: dict[str, Any], advice: str) -> None:
    (name,) = setting
    make: Any = MSDGuidance
    with pytest.raises(SettingError, match=f"^MSDGuidance has no setting '{name}' any more: .*{advice}[^\n]*$"):
        make(5.0, **setting)
    with pytest.raises(SettingError, match=f"^msd has no setting '{name}' any more: .*{advice}[^\n]*$"):
        build(Guidance, {"plugin": "msd", **setting})


@pytest.mark.parametrize(("name", "advice"), [("paper", "write MSDPaper"), ("full", r"write MSDGuidance\(head_start=0\)")])
def test_a_class_method_that_is_gone_is_answered_with_what_to_write_now(name: str, advice: str) -> None:
    with pytest.raises(SettingError, match=f"^MSDGuidance.{name} is [^\n]*{advice}[^\n]*$"):
        getattr(MSDGuidance, name)(3.0, levels=2)
    with pytest.raises(SettingError, match=f"^panokit_msd:MSDGuidance.{name}: MSDGuidance.{name} is [^\n]*{advice}[^\n]*$"):
        build(Guidance, {"plugin": f"panokit_msd:MSDGuidance.{name}", "levels": 2})


@pytest.mark.parametrize(
    ("size", "settings", "message"),
    [
        (
            (6, 16),
            {},
            "with 2 levels of factor 2 needs a canvas of 8 x 8 cells or more, in steps of 2, .* 6 x 16: "
            "the next that works is 8 x 16$",
        ),
        ((8, 16), {"levels": 3}, "the next that works is 16 x 16, and 2 levels fit this one"),
        ((12, 12), {"factor": 3}, "factor is 3, which does not divide the model's window of 4 x 4 cells: choose 2 or 4$"),
        ((9, 16), {}, "9 x 16: the next that works is 10 x 16"),
    ],
)
@pytest.mark.parametrize("make", [MSDGuidance, MSDPaper, HeadStart])
def test_a_canvas_that_does_not_hold_the_levels_is_refused(
    make: Any, size: tuple[int, int], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        toy_run(size, guidances=[make(**settings)])


def test_a_refusal_says_what_a_cell_is_in_pixels(tiny: Any) -> None:
    with pytest.raises(SettingError, match=r"the next that works is 16 x 32 \(a cell is 2 x 2 pixels\)"):
        Sampler(tiny, guidances=[MSDGuidance()]).begin("a lake", height=16, width=64)


@pytest.mark.parametrize(
    "guidance",
    [
        MSDGuidance(0.0),
        MSDPaper(0.0),
        gradient(until=0.0),
        MSDPaper(until=0.0),
    ],
)
@pytest.mark.parametrize("size", [(8, 16), (16, 24)])
def test_without_weight_it_is_multidiffusion_bit_for_bit_and_costs_the_same(guidance: Guidance, size: tuple[int, int]) -> None:
    plain, guided = toy_run(size), toy_run(size, guidances=[guidance])
    assert torch.equal(finished(plain), finished(guided))
    assert toy(plain).forwards == toy(guided).forwards
    assert toy(guided).backwards == []


@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize(("make", "passes"), [(gradient, 1), (MSDPaper, 2)])
def test_it_costs_the_closed_form(levels: int, make: Any, passes: int) -> None:
    """The paper's guided step: 2 forwards and 1 backward a guided window, 1 forward a window of the coarsest level."""
    guidance = make(0.01, levels=levels, until=0.5)
    run = toy_run((16, 24), guidances=[guidance], steps=4, micro_batch=32)
    grids = [run.windows, run.windows.scaled(2), run.windows.scaled(4)][:levels]
    fine, guided, coarsest = len(run.windows), sum(map(len, grids[:-1])), len(grids[-1])
    finished(run)
    assert sum(toy(run).forwards) == 2 * (passes * guided + coarsest) + 2 * fine
    assert sum(toy(run).backwards) == (2 * guided if passes == 2 else 0)


@pytest.mark.parametrize("levels", [2, 3])
def test_a_head_start_costs_all_steps_of_the_coarsest_canvas_and_spares_the_others_theirs(levels: int) -> None:
    guidance = MSDGuidance(levels=levels, head_start=0.5, until=0.75)
    run = toy_run((16, 24), guidances=[guidance], steps=4)
    fine, *between, coarsest = [len(grid) for grid in (run.windows, run.windows.scaled(2), run.windows.scaled(4))[:levels]]
    painted, below = 4 * coarsest, coarsest
    for windows in (*between, fine):  # two steps are spared, one is guided by the canvases below, one is not
        painted, below = painted + 2 * windows + below, windows + below
    finished(run)
    assert sum(toy(run).forwards) == painted


@pytest.mark.parametrize(("steps", "head_start", "spared"), [(1, 0.3, 0), (2, 0.9, 1), (2, 1.0, 2), (10, 0.3, 3), (25, 0.3, 8)])
def test_the_last_step_is_the_fine_canvass_own(steps: int, head_start: float, spared: int) -> None:
    run = toy_run((8, 16), guidances=[MSDGuidance(head_start=head_start, until=0.0)], steps=steps)
    finished(run)
    painted = steps * len(run.windows.scaled(2)) if spared else 0
    assert sum(toy(run).forwards) == painted + (steps - spared) * len(run.windows)
    assert run.guided[0][1].keys() == ({"coarse", "painted"} if spared == steps else {"coarse"})


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
    coarse = len(run.windows.scaled(2))
    assert coarse == 7
    assert toy(run).forwards[:2] == [3, 4]


@pytest.mark.parametrize(("size", "levels"), [((8, 16), 2), ((16, 24), 3), ((16, 12), 2), ((32, 64), 4)])
@pytest.mark.parametrize("make", [MSDGuidance, MSDPaper, HeadStart])
def test_there_are_as_many_levels_as_the_canvas_holds(size: tuple[int, int], levels: int, make: Any) -> None:
    given, own = (toy_run(size, guidances=[make(levels=number)], steps=2) for number in (levels, None))
    assert torch.equal(finished(given), finished(own))
    assert toy(given).forwards == toy(own).forwards
    with pytest.raises(SettingError, match=f"and {levels} levels fit this one"):
        toy_run(size, guidances=[make(levels=levels + 1)])


@pytest.mark.parametrize("prediction", get_args(Prediction))
def test_a_projection_of_full_weight_makes_both_sides_equal(prediction: Prediction) -> None:
    """However large the weight, the clean estimate, shrunk, goes no farther than the coarse canvas."""
    guidance = gradient(math.inf, 0.0)
    coarse_x0, fine_x0 = both_sides(toy_run((8, 8), denoiser=ToyDenoiser(prediction=prediction), guidances=[guidance], steps=2))
    assert coarse_x0.shape[1:] == (4, 4)
    torch.testing.assert_close(mean(fine_x0, 2, 2), coarse_x0, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("size", "window", "factor"),
    [((8,), 4, 2), ((8, 8, 8), 4, (2, 2, 2)), ((8, 8, 8), 4, (1, 2, 2)), ((18, 18), 6, 3), ((16, 16), 4, 2)],
)
def test_so_it_does_along_any_axes_by_any_factor_and_over_any_levels(
    size: tuple[int, ...], window: int, factor: int | tuple[int, ...]
) -> None:
    guidance = gradient(math.inf, 0.0, factor=factor)
    denoiser = ToyDenoiser((window,) * len(size))
    coarse_x0, fine_x0 = both_sides(toy_run(size, denoiser=denoiser, guidances=[guidance], stride=window, steps=2))
    torch.testing.assert_close(mean(fine_x0, factor, len(size)), coarse_x0, rtol=1e-8, atol=1e-8)


def test_a_canvas_between_two_follows_the_one_below_ten_times_as_fast() -> None:
    """All coarse canvases go 1 - exp(-10 weight / steps) of their way, and the finest 1 - exp(-weight / steps)."""

    def run(weight: float) -> list[Tensor]:
        return sides(toy_run((32, 32), guidances=[gradient(weight, decay=0.0)], steps=2, micro_batch=64))

    guided, unguided = run(0.5), run(1e-30)
    assert len(guided) == 4
    for rate, below, start, moved in zip((5.0, 5.0, 0.5), guided, unguided[1:], guided[1:], strict=False):
        apart = below - mean(start, 2, 2)
        assert float(apart.abs().max()) > 0.01
        torch.testing.assert_close(mean(moved, 2, 2), mean(start, 2, 2) - math.expm1(-rate / 2) * apart, rtol=1e-9, atol=1e-9)


def both_sides(run: Run) -> tuple[Tensor, Tensor]:
    """The clean estimates of the canvas below and of the finest one in a run's first step."""
    *_, coarse, fine = sides(run)
    return coarse, fine


def sides(run: Run) -> list[Tensor]:
    """The clean estimates of all canvases in a run's first step, the coarsest one first."""
    seen: list[Tensor] = []

    def spy(canvas: Tensor, grid: Grid, guided: Any, level: Level, place: int | None = None) -> Any:
        passed = pass_over(canvas, grid, guided, level, place)
        seen.append(run.solver.x0(passed.pred, passed.x, level))
        return passed

    pass_over, run.pass_over = run.pass_over, spy  # type: ignore[method-assign]  # looks on
    run.step()
    return seen


def test_cosine_decay_and_stop() -> None:
    levels = toy_run(steps=10).solver.levels
    weights = [3 * (0.5 * (1 + math.cos(math.pi * k / 10))) ** 2 for k in range(5)] + [0.0] * 6
    settings: dict[str, Any] = {"weight": 3.0, "decay": 2.0, "until": 0.5}
    assert [MSDPaper(**settings).strength(level) for level in levels] == pytest.approx(weights)
    assert [MSDGuidance(**settings).strength(level) for level in levels] == pytest.approx(
        [1 - math.exp(-weight / 10) for weight in weights]
    )


def test_a_rate_takes_as_much_away_in_any_number_of_steps() -> None:
    guidance = MSDGuidance(3.0, decay=0.0, until=0.5)
    left = [math.prod(1 - guidance.strength(level) for level in toy_run(steps=steps).solver.levels) for steps in (2, 10, 40)]
    assert left == pytest.approx([math.exp(-1.5)] * 3)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(2, 4), st.integers(0, 10_000))
def test_the_mean_is_the_mean_of_blocks(axes: int, factor: int, seed: int) -> None:
    coarse = torch.randn((2, *(3,) * axes), generator=torch.Generator().manual_seed(seed))
    fine = coarse
    for axis in range(1, axes + 1):
        fine = fine.repeat_interleave(factor, axis)
    torch.testing.assert_close(mean(fine, factor, axes), coarse)


def test_at_factor_2_the_mean_is_bilinear() -> None:
    x = torch.randn(3, 2, 8, 12)
    torch.testing.assert_close(mean(x, 2, 2), torch.nn.functional.interpolate(x, scale_factor=0.5, mode="bilinear"))


@pytest.mark.parametrize(("axes", "factor"), [(1, 2), (2, 2), (2, 3), (3, 2)])
def test_renoised_has_the_noise_of_its_level(axes: int, factor: int) -> None:
    generator = torch.Generator().manual_seed(0)
    level = Level(0, 0, 0.6, 0.8, 0, 1)
    fine = level.sigma * torch.randn((64, *(factor * 6,) * axes), generator=generator)
    size, window = (factor * 6,) * axes, (factor,) * axes
    windows = Grid(size, window, window, (False,) * axes)
    noisy = renoised(windows, fine, factor, level, lambda shape: torch.randn(shape, generator=generator))
    assert float(noisy.std()) == pytest.approx(level.sigma, rel=0.1)
    assert float(mean(fine, factor, axes).std()) == pytest.approx(level.sigma * factor ** (-axes / 2), rel=0.1)


@pytest.mark.parametrize(
    ("guidance", "wrap"),
    [
        (MSDPaper(0.1, until=1.0, levels=3), False),
        (MSDPaper(0.1, until=1.0, levels=3), True),
        (gradient(0.1, until=1.0, levels=3), False),
        (gradient(0.1, until=1.0, levels=3), True),
        (MSDGuidance(0.1, until=1.0, head_start=0.25, levels=3), True),
        (MSDGuidance(0.1, until=1.0, head_start=0.75, levels=3), False),
        (HeadStart(0.75, levels=3), True),
    ],
)
def test_it_resumes_bit_for_bit(guidance: Guidance, wrap: bool) -> None:
    def begun() -> Run:
        return toy_run((16, 16), guidances=[guidance], scheduler=ToyScheduler(eta=1.0), wrap=wrap, steps=4, micro_batch=32)

    whole, first, second = begun(), begun(), begun()
    first.step()
    first.step()
    second.restore(first.state())
    assert torch.equal(finished(whole), finished(second))


@conforms(gradient)
def test_it_keeps_its_contract_without_a_head_start(check: Check) -> None:
    check()


@conforms(lambda: MSDGuidance(head_start=0.25, until=1.0))
def test_it_keeps_its_contract_where_it_guides_after_one(check: Check) -> None:
    check()


def test_three_axes() -> None:
    for guidance in (MSDGuidance(0.1), MSDPaper(0.1), HeadStart(0.5)):
        assert torch.isfinite(finished(toy_run((8, 8, 8), guidances=[guidance], steps=2))).all()
