"""DemoFusion against a literal loop, and the laws that make it that method."""

from collections.abc import Sequence
from copy import deepcopy
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.nn import functional

from panokit import (
    Denoiser,
    Grid,
    Guidance,
    Layout,
    Level,
    Model,
    Run,
    Runtime,
    Sampler,
    SettingError,
    Union,
    Windows,
    load_model,
)
from panokit.testing import Check, conforms
from panokit.testing.families import tiny_pipeline
from panokit.testing.ranks import same_on_ranks
from panokit.testing.toys import Pull, ToyDenoiser, ToyScheduler, toy_run
from panokit.windows import require_cover
from panokit_demofusion import DemoFusion, DemoFusionFuser, DemoFusionLayout, Phased
from panokit_demofusion.canvas import filtered
from panokit_demofusion.phases import dilated
from panokit_msd import HeadStart, MSDGuidance, MSDPaper
from panokit_multidiffusion import MultiDiffusion
from panokit_syncdiffusion import SyncDiffusion


@conforms(DemoFusionLayout)
def test_the_layout(check: Check) -> None:
    check()


@conforms(lambda: DemoFusionLayout(phases=1, jitter=0))
def test_the_layout_of_the_first_phase(check: Check) -> None:
    check()


@conforms(lambda: DemoFusionFuser(alpha3=2.0, weights="uniform"))
def test_the_fuser_with_uniform_weights(check: Check) -> None:
    check()


def squares(images: Tensor, other: Tensor) -> Tensor:
    return (images - other).square().mean((1, 2, 3))


def level_at(step: int, steps: int) -> Level:
    return Level(step, 500, 0.8, 0.6, step, steps)


def begun(size: tuple[int, ...] = (8, 12), *, guidance: DemoFusion | None = None, **more: Any) -> Run:
    parts = {"layout": DemoFusionLayout(jitter=1), "fuser": DemoFusionFuser(weights="uniform"), "steps": 4, "seed": 3, **more}
    return toy_run(size, guidances=[guidance or DemoFusion()], **parts)


def finished(run: Run) -> Tensor:
    while not run.done:
        run.step()
    return run.canvas


# --- the paper ----------------------------------------------------------------------------------------------


def literal(run: Run, phases: int, noises: dict[tuple[int, ...], Tensor], stride: int = 2) -> Tensor:
    """The loop of the paper's section 4 with DDIM, on a canvas that is no ring: every window makes steps of its own."""
    denoiser, levels, window = ToyDenoiser(), run.solver.levels, 4
    base = [cells // phases for cells in run.windows.size]

    def stepped(x: Tensor, level: Level, below: Level) -> Tensor:
        eps = denoiser(x[None], level, run.parts.embeddings)[0]
        return below.alpha * (x - level.sigma * eps) / level.alpha + below.sigma * eps

    def multidiffusion(z: Tensor, places: Sequence[tuple[int, int]], level: Level, below: Level) -> Tensor:
        value, count = torch.zeros_like(z), torch.zeros_like(z)
        for top, left in places:
            at = (slice(None), slice(top, top + window), slice(left, left + window))
            value[at] += stepped(z[at], level, below)
            count[at] += 1
        return value / count

    def steady(cells: int) -> list[int]:
        return sorted({min(start, cells - window) for start in range(0, cells - window + stride, stride)})

    z = torch.empty(0)
    for s in range(1, phases + 1):
        size = (s * base[0], s * base[1])
        eps, before = noises[size], z
        z = levels[0].sigma * eps
        for level, below in pairwise(levels):
            laid = run.windows.on(size).at(level)
            local = [(int(y), int(x)) for y, x in laid.cells()[~dilated(laid)][:, :, 0, 0]]
            c = (1 + torch.cos(torch.tensor(torch.pi * level.step / level.steps, dtype=torch.float64))) / 2
            if s == 1:
                z = multidiffusion(z, local, level, below)
                continue
            large = functional.interpolate(before[None], size=size, mode="bicubic")[0]
            z = c**3 * (level.alpha * large + level.sigma * eps) + (1 - c**3) * z
            radius, sigma = 2 * s - 2, c * (1 - 0.01) + 0.01
            kernel = torch.exp(-(torch.arange(-radius, radius + 1, dtype=torch.float64) ** 2) / (2 * sigma**2))
            kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2
            wide = functional.pad(z[:, None], (radius,) * 4, mode="replicate")
            smooth = functional.conv2d(wide, kernel[None, None])[:, 0]
            smooth = (smooth - smooth.mean()) / smooth.std() * z.std() + z.mean()
            apart = torch.zeros_like(z)
            for i in range(s):
                for j in range(s):
                    places = [(y, x) for y in steady(base[0]) for x in steady(base[1])]
                    apart[:, i::s, j::s] = multidiffusion(smooth[:, i::s, j::s], places, level, below)
            z = c * apart + (1 - c) * multidiffusion(z, local, level, below)
    return z


@pytest.mark.parametrize(("size", "phases"), [((8, 12), 2), ((12, 15), 3)])
def test_it_is_the_loop_of_the_paper(monkeypatch: pytest.MonkeyPatch, size: tuple[int, ...], phases: int) -> None:
    noises: dict[tuple[int, ...], Tensor] = {}
    draw = Denoiser.noise

    def noise(denoiser: Denoiser, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
        noises[size] = draw(denoiser, size, generator).double()
        return noises[size]

    monkeypatch.setattr(Denoiser, "noise", noise)
    run = begun(size)
    assert isinstance(run.windows, Phased)
    assert run.windows.phases == phases
    canvas = finished(run)
    assert len(noises) == phases
    torch.testing.assert_close(canvas, literal(run, phases, noises), rtol=0, atol=1e-9)


# --- what makes it that method ------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [False, True])
def test_without_its_parts_it_is_a_head_start_of_multidiffusion(wrap: bool) -> None:
    """A skip residual at the first step alone, in a layout without dilated windows."""
    free = DemoFusion(alpha1=1e9)
    run, plain = (toy_run((8, 12), guidances=guidances, wrap=wrap, seed=3, steps=4) for guidances in ([free], []))
    noise = plain.canvas / plain.level.sigma
    run.step()
    before = run.guided[0][1]["enlarged"]
    plain.canvas = plain.level.alpha * before + plain.level.sigma * noise
    torch.testing.assert_close(finished(run), finished(plain), rtol=0, atol=1e-9)


def test_a_skip_residual_that_never_fades_keeps_the_picture_of_the_phase_before() -> None:
    kept, free = (begun((8, 8), guidance=DemoFusion(alpha1=alpha1), steps=20) for alpha1 in (0.0, 1e9))
    apart = [float((finished(run) - run.guided[0][1]["enlarged"]).abs().mean()) for run in (kept, free)]
    assert apart[0] < 0.5 * apart[1]


def test_the_smaller_canvas_has_the_other_guidances_and_fewer_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    painted: list[tuple[tuple[int, ...], list[Guidance]]] = []
    paint = Run.paint

    def spy(run: Run, windows: Windows, guidances: Sequence[Guidance], *more: Any) -> Tensor:
        painted.append((windows.size, list(guidances)))
        return paint(run, windows, guidances, *more)

    monkeypatch.setattr(Run, "paint", spy)
    pull = Pull()
    finished(toy_run((12, 12), layout=DemoFusionLayout(), fuser=DemoFusionFuser(), guidances=[pull, DemoFusion()]))
    assert painted == [((8, 8), [DemoFusion(phases=2), pull]), ((4, 4), [pull])]


sides = st.tuples(st.integers(2, 6), st.integers(2, 6))


@settings(max_examples=20)
@given(sides, st.integers(2, 4))
def test_dilated_windows_of_a_base_of_one_window_read_each_cell_once(window: tuple[int, int], phases: int) -> None:
    size = (window[0] * phases, window[1] * phases)
    windows = DemoFusionLayout().begin(size, window, None, (False, False), 0)
    numbers = dilated(windows).nonzero().flatten().tolist()
    count = torch.zeros(size)
    for i in numbers:
        windows.put(count, i, torch.ones(window))
    assert (count == 1).all()
    assert len(numbers) == phases**2


@settings(max_examples=20)
@given(sides, sides, st.integers(2, 4), st.tuples(st.booleans(), st.booleans()))
def test_dilated_windows_of_an_enlarged_canvas_are_those_of_the_small_one(
    base: tuple[int, int], window: tuple[int, int], phases: int, wrap: tuple[bool, bool]
) -> None:
    window = (min(window[0], base[0]), min(window[1], base[1]))
    small = torch.rand(1, *base)
    large = small.repeat_interleave(phases, 1).repeat_interleave(phases, 2)
    windows = DemoFusionLayout(phases=phases, jitter=0).begin((base[0] * phases, base[1] * phases), window, None, wrap, 0)
    crops = windows.crop(large)[dilated(windows)]
    first = windows.on(base)
    assert torch.equal(crops, first.crop(small).repeat(phases**2, 1, 1, 1))
    assert not dilated(first).any()


@settings(max_examples=20)
@given(st.integers(0, 9), st.sampled_from([0.5, 1.0, 3.0]), st.sampled_from(["uniform", "gaussian"]))
def test_the_fuser_goes_from_the_mean_of_dilated_windows_to_that_of_local_ones(step: int, alpha3: float, weights: Any) -> None:
    windows = DemoFusionLayout().begin((8, 12), (4, 4), None, (False, True), 1).at(level_at(step, 10))
    far = dilated(windows)
    rows = torch.rand(len(windows), 2, 4, 4, dtype=torch.float64)

    def mean(chosen: Tensor) -> Tensor:
        value, total = torch.zeros(2, 8, 12, dtype=torch.float64), torch.zeros(8, 12, dtype=torch.float64)
        weight = MultiDiffusion(weights).weight(windows, level_at(step, 10))[0].double()
        for i in chosen.nonzero().flatten().tolist():
            windows.put(value, i, rows[i], weight)
            windows.put(total, i, weight)
        return value / total

    c3 = float((1 + torch.cos(torch.tensor(torch.pi * step / 10))) / 2) ** alpha3
    fused = DemoFusionFuser(alpha3, weights).fuse(rows, windows, level_at(step, 10))
    torch.testing.assert_close(fused, c3 * mean(far) + (1 - c3) * mean(~far), rtol=1e-6, atol=1e-6)


def test_a_union_of_grids_has_dilated_windows_too() -> None:
    """The fuser knows them by their cells, whichever layout they are of."""
    local = Grid((8, 8), (4, 4), (2, 2), (False, False))
    apart = Grid((8, 8), (4, 4), (1, 1), (False, False), dilation=(2, 2))
    assert dilated(Union((apart, local))).tolist() == [True] * 4 + [False] * 9
    assert not dilated(Grid((8, 8), (4, 4), (4, 4), (True, True), shift=(2, 1))).any()


def test_local_windows_move_as_far_as_the_jitter_and_another_seed_moves_them_otherwise() -> None:
    def shifts(seed: int, layout: DemoFusionLayout) -> list[tuple[int, ...] | None]:
        windows = layout.begin((16, 24), (8, 8), None, (True, True), seed)
        return [windows.at(level_at(k, 100)).shift for k in range(100)]

    assert {x for shift in shifts(0, DemoFusionLayout(jitter=2)) for x in shift or ()} == {-2, -1, 0, 1, 2}
    assert {x for shift in shifts(0, DemoFusionLayout()) for x in shift or ()} == {-1, 0, 1}  # a quarter of the overlap
    assert shifts(0, DemoFusionLayout(jitter=2)) != shifts(1, DemoFusionLayout(jitter=2))
    assert set(shifts(0, DemoFusionLayout(jitter=0))) == {(0, 0)}


@settings(max_examples=20)
@given(sides, st.tuples(st.integers(6, 20), st.integers(6, 20)), st.integers(0, 9), st.booleans())
def test_windows_that_move_cover_the_canvas_and_are_as_many_as_those_that_do_not(
    window: tuple[int, int], size: tuple[int, int], jitter: int, ring: bool
) -> None:
    moving, still = (
        DemoFusionLayout(jitter=cells).begin(size, window, None, (False, ring), 0).at(level_at(3, 10)) for cells in (jitter, 0)
    )
    require_cover(moving)
    assert len(moving) == len(still)


@settings(max_examples=20)
@given(st.integers(3, 12), st.integers(0, 3))
def test_a_ring_is_filtered_like_itself_at_all_places(cells: int, turn: int) -> None:
    large = torch.rand(2, cells, dtype=torch.float64)
    smooth = filtered(large, 1.5, 2, [True])
    torch.testing.assert_close(filtered(large.roll(turn, 1), 1.5, 2, [True]), smooth.roll(turn, 1), rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.stack([smooth.mean(), smooth.std()]), torch.stack([large.mean(), large.std()]))
    torch.testing.assert_close(filtered(large, 0.0, 2, [False]), large)


# --- in a run -----------------------------------------------------------------------------------------------


def test_any_number_of_ranks_makes_the_same_bits() -> None:
    same_on_ranks(lambda runtime: finished(begun(runtime=runtime)), 3, ": ")


@pytest.mark.parametrize(
    ("guidances", "wrap"),
    [([], False), ([Pull()], "x"), ([SyncDiffusion(2.0, metric=squares)], "xy")],
    ids=["alone", "pull", "sync"],
)
def test_it_works_with_other_guidances_and_a_resumed_run_has_the_same_bits(
    tiny: Model, cpu: Runtime, guidances: list[Guidance], wrap: Any
) -> None:
    """On a canvas that no stride divides."""

    def begin() -> Run:
        return Sampler(tiny, layout="demofusion", fuser="demofusion", guidances=[*guidances, DemoFusion()], runtime=cpu).begin(
            "a lake", height=32, width=40, steps=4, wrap=wrap, seed=2
        )

    run, resumed = begin(), begin()
    for _ in range(2):
        run.step()
    resumed.restore(run.state())
    assert torch.isfinite(finished(run)).all()
    assert torch.equal(finished(resumed), run.canvas)


@pytest.mark.parametrize("scheduler", ["heun", "euler_a", "dpm++_2m", "unipc"])
def test_it_works_with_every_kind_of_solver(tiny: Model, cpu: Runtime, scheduler: str) -> None:
    sampler = Sampler(tiny, scheduler=scheduler, layout="demofusion", fuser="demofusion", guidances=["demofusion"], runtime=cpu)
    assert torch.isfinite(finished(sampler.begin("a lake", height=32, width=48, steps=3))).all()


def test_it_works_in_half_precision(tiny: Model) -> None:
    runtime = Runtime(accelerator="cpu", precision="bf16-true")
    sampler = Sampler(deepcopy(tiny), layout="demofusion", fuser="demofusion", guidances=["demofusion"], runtime=runtime)
    assert torch.isfinite(finished(sampler.begin("a lake", height=32, width=32, steps=2))).all()


def test_it_works_with_noise_that_a_solver_adds_and_in_any_number_of_axes() -> None:
    assert torch.isfinite(finished(begun(scheduler=ToyScheduler(eta=1.0, corrector=True)))).all()
    for size in ((12,), (8, 8, 8)):
        assert torch.isfinite(finished(begun(size, steps=2))).all()


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_run_from_a_picture_has_noise_of_its_own_or_is_refused(tiny: Model, cpu: Runtime, strength: float) -> None:
    """A mask leaves the canvas free at all steps; with less strength the first steps show the picture, and no noise alone."""
    sampler = Sampler(tiny, layout="demofusion", fuser="demofusion", guidances=["demofusion"], runtime=cpu)
    picture, mask = Image.linear_gradient("L").convert("RGB").resize((48, 32)), Image.new("L", (48, 32), 255)
    mask.paste(0, (0, 0, 16, 32))
    run = sampler.begin("a lake", height=32, width=48, steps=4, image=picture, mask=mask, strength=strength)
    if strength < 1:
        with pytest.raises(
            SettingError, match="DemoFusion starts from a smaller canvas that it paints, and this run from a pict"
        ):
            finished(run)
        return
    noise = run.canvas / run.level.sigma
    run.step()
    kept = run.guided[0][1]["noise"]
    torch.testing.assert_close(kept[..., 12:], noise[..., 12:])
    assert 0.8 < float(kept.std()) < 1.2
    assert torch.isfinite(finished(run)).all()


# --- bad input ----------------------------------------------------------------------------------------------


NEEDS = "in 2 phases needs a canvas of 16 x 16 cells or more, in steps of 2, and this one is"
PHASED = "demofusion"


@pytest.mark.parametrize(
    ("layout", "guidance", "size", "message"),
    [
        ("overlap", DemoFusion(), (16, 64), f"{NEEDS} 8 x 32: the next that works is 16 x 32 "),
        (PHASED, DemoFusion(), (16, 64), f"{NEEDS} 8 x 32: the next that works is 16 x 32 "),
        (PHASED, DemoFusion(), (32, 34), f"{NEEDS} 16 x 17: the next that works is 16 x 18 "),
        ("overlap", DemoFusion(3), (32, 64), "the next that works is 24 x 33, and 2 phases fit this one"),
        (DemoFusionLayout(3), DemoFusion(), (32, 64), "DemoFusion in 3 phases needs a canvas of 24 x 24 cells"),
        (PHASED, DemoFusion(2), (64, 64), "DemoFusion has 2 phases, and its layout 4: set them in the layout alone"),
        (PHASED, MSDGuidance(), (32, 64), "which cannot be coarsened, .*: guidances .* such as msd, need another layout"),
        (PHASED, MSDPaper(), (32, 64), "which cannot be coarsened"),
        (PHASED, HeadStart(), (32, 64), "which cannot be coarsened"),
    ],
)
def test_what_cannot_work_is_refused_before_the_run(
    tiny: Model, cpu: Runtime, layout: Layout | str, guidance: Guidance, size: tuple[int, int], message: str
) -> None:
    sampler = Sampler(tiny, layout=layout, guidances=[guidance], runtime=cpu)
    with pytest.raises(SettingError, match=message):
        sampler.plan("a lake", height=size[0], width=size[1]).check()


def test_what_needs_finer_cells_is_refused(cpu: Runtime) -> None:
    """Of a pipeline that packs its cells, the windows are laid in blocks."""
    sampler = Sampler(load_model(tiny_pipeline("flux"), window=16), layout="demofusion", runtime=cpu)
    with pytest.raises(SettingError, match=r"^the layout demofusion has dilated windows, which cannot be refined, .*$"):
        sampler.plan("a lake", height=64, width=64)


@pytest.mark.parametrize("other", [HeadStart(), MSDGuidance(), DemoFusion(alpha1=1.0)], ids=lambda other: type(other).__name__)
def test_two_guidances_that_choose_the_start_are_refused_in_any_order(tiny: Model, cpu: Runtime, other: Guidance) -> None:
    for guidances in ([DemoFusion(), other], [other, DemoFusion()]):
        with pytest.raises(SettingError, match="both decide what the canvas begins with: use one of them"):
            Sampler(tiny, guidances=guidances, runtime=cpu)


@pytest.mark.usefixtures("unannotated")
def test_settings_that_mean_nothing_are_refused() -> None:
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (DemoFusion, {"phases": 1}, "phases is 1: it must be 2 or more, or None"),
        (DemoFusion, {"alpha1": -1.0}, "alpha1 is -1.0: it must be 0 or more"),
        (DemoFusion, {"sigma2": float("nan")}, "sigma2 is nan: it must be 0 or more"),
        (DemoFusionLayout, {"phases": 0}, "phases is 0: it must be 1 or more"),
        (DemoFusionLayout, {"jitter": -1}, "jitter is -1: it must be 0 cells or more"),
        (DemoFusionFuser, {"alpha3": -0.5}, "alpha3 is -0.5: it must be 0 or more"),
        (DemoFusionFuser, {"weights": "round"}, 'weights is \'round\': it must be "gaussian" or "uniform"'),
    ]
    for part, values, message in wrong:
        with pytest.raises(SettingError, match=message):
            part(**values)
