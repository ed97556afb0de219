"""HiFlow against a literal loop in the paper's velocities, and the laws that make it that method."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import interpolate, pad

from panokit import Guidance, Level, Model, Run, Runtime, Sampler, SettingError
from panokit.scheduler import Prediction, x0_from
from panokit.testing.ranks import VirtualRanks
from panokit.testing.toys import Drift, Pull, ToyCodec, ToyDenoiser, ToyScheduler, toy_run
from panokit_hiflow import HiFlow
from panokit_hiflow.bands import enlarged, low_pass
from panokit_msd import MSDGuidance, MSDPaper
from panokit_syncdiffusion import SyncDiffusion


def finished(run: Run) -> Tensor:
    while not run.done:
        run.step()
    return run.canvas


@pytest.fixture
def seeds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds of the smaller canvases, in the order in which they are painted."""
    painted: list[int] = []
    paint = Run.paint

    def spy(run: Run, windows: Any, guidances: Any, seed: int, watch: Any = None) -> Tensor:
        painted.append(seed)
        return paint(run, windows, guidances, seed, watch)

    monkeypatch.setattr(Run, "paint", spy)
    return painted


def bilinear(x: Tensor, wrap: bool) -> Tensor:
    padded = pad(x[None], (1, 1, 1, 1), mode="circular" if wrap else "replicate")
    return interpolate(padded, scale_factor=2, mode="bilinear")[0, :, 2:-2, 2:-2]


def low(x: Tensor, share: float) -> Tensor:
    """The low frequencies of `c h w`: the ideal filter of the mirrored picture, by FFT."""
    high, wide = x.shape[-2:]
    mirrored = torch.cat([x, x.flip(-1)], -1)
    mirrored = torch.cat([mirrored, mirrored.flip(-2)], -2)
    y, z = (torch.fft.fftfreq(2 * cells, 1 / (2 * cells)).abs() <= int(share * cells) for cells in (high, wide))
    return torch.fft.ifft2(torch.fft.fft2(mirrored) * (y[:, None] & z)).real[..., :high, :wide]


@pytest.mark.parametrize("prediction", ["flow_prediction", "epsilon", "v_prediction"])
@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("hiflow", [HiFlow(start=0.3, cutoff=0.3), HiFlow(0.7, 0.9, start=0.0)], ids=str)
def test_it_is_the_loop_of_the_paper(prediction: Prediction, wrap: bool, hiflow: HiFlow, seeds: list[int]) -> None:
    """Two cascaded flows, stepped by Euler in the velocity. A diffusion is a flow after a rescaling of x and of its time."""
    steps, size = 6, (8, 10)
    denoiser = ToyDenoiser(prediction=prediction)
    run = toy_run(size, denoiser=denoiser, guidances=[hiflow], wrap=wrap, steps=steps)
    levels, start = run.solver.levels, run.canvas
    ours = finished(run)
    coarse = toy_run((4, 5), denoiser=denoiser, wrap=wrap, steps=steps, seed=seeds[0])

    def x0s(windows: Any, x: Tensor, k: int) -> Tensor:
        level = levels[k]
        crops = windows.crop(x)
        return x0_from(prediction, denoiser(crops, level, run.parts.embeddings), crops, level)

    def mean(windows: Any, rows: Tensor) -> Tensor:
        total, count = torch.zeros(2, *windows.size, dtype=rows.dtype), torch.zeros(windows.size, dtype=rows.dtype)
        for i, row in enumerate(rows):
            windows.put(total, i, row)
            windows.put(count, i, torch.ones_like(row[0]))
        return total / count

    scale = [level.alpha + level.sigma for level in levels]
    time = [level.sigma / by for level, by in zip(levels, scale, strict=True)]
    references: list[tuple[Tensor, Tensor]] = []  # clean estimate and velocity, enlarged
    small = coarse.canvas / scale[0]
    for k in range(steps):
        x0 = mean(coarse.windows, x0s(coarse.windows, small * scale[k], k))
        v = (small - x0) / time[k]
        references.append((bilinear(x0, wrap), bilinear(v, wrap)))
        small = small + (time[k + 1] - time[k]) * v
    noise = start / levels[0].sigma
    first = math.ceil(hiflow.start * steps)
    picture = (1 - time[first]) * bilinear(small, wrap) + time[first] * noise if first else start / scale[0]
    before: Tensor | None = None
    for k in range(first, steps):
        fade = (1 - k / steps) / (1 - hiflow.start)
        rows = x0s(run.windows, picture * scale[k], k)
        crops = run.windows.crop
        x0 = rows + fade * hiflow.direction * torch.stack([low(row, hiflow.cutoff) for row in crops(references[k][0]) - rows])
        v = (crops(picture) - x0) / time[k]
        if before is not None:
            target = crops(before + references[k][1] - references[k - 1][1])
            v = v + fade * hiflow.acceleration * (target - v)
        before = mean(run.windows, v)
        picture = picture + (time[k + 1] - time[k]) * before
    torch.testing.assert_close(ours, picture, rtol=0, atol=1e-9)


@given(cells=st.tuples(st.integers(1, 9), st.integers(1, 9)), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_the_low_pass_is_an_orthogonal_projection_that_keeps_the_mean(cells: tuple[int, int], share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(1, 2, *cells, generator=generator, dtype=torch.float64) for _ in range(2))
    kept = low_pass(x, share, 2)
    torch.testing.assert_close(low_pass(kept, share, 2), kept, rtol=0, atol=1e-12)
    torch.testing.assert_close((kept * y).sum(), (x * low_pass(y, share, 2)).sum(), rtol=0, atol=1e-12)
    torch.testing.assert_close(kept.mean((-2, -1)), x.mean((-2, -1)), rtol=0, atol=1e-12)
    torch.testing.assert_close(low_pass(x, 1.0, 2), x, rtol=0, atol=1e-12)


@given(factor=st.integers(2, 4), axes=st.integers(1, 3), wrap=st.booleans())
def test_enlarging_keeps_a_constant_and_a_slope(factor: int, axes: int, wrap: bool) -> None:
    flat = torch.full((2, *(3,) * axes), 1.5, dtype=torch.float64)
    assert torch.equal(enlarged(flat, factor, (wrap,) * axes), torch.full((2, *(3 * factor,) * axes), 1.5, dtype=torch.float64))
    slope = enlarged(torch.arange(5.0)[None], factor, (False,))[0, factor:-factor].diff()
    torch.testing.assert_close(slope, torch.full_like(slope, 1 / factor))


def test_the_canvas_has_the_low_frequencies_of_the_smaller_one() -> None:
    """They stay those of the reference's path; those of a head start alone drift away from them."""

    def apart(guidance: Guidance, path: Callable[[Run], Tensor]) -> float:
        run = toy_run((8, 16), guidances=[guidance], steps=8)
        for _ in range(7):
            run.step()
        reference, seen = path(run), run.seen
        assert seen is not None
        return float(low_pass((seen.x0 - enlarged(reference, 2, (False, False)))[None], 0.1, 2).norm())

    followed = apart(HiFlow(start=0.5, acceleration=0.0), lambda run: run.guided[0][1]["path"][6])
    begun = apart(HiFlow(start=0.5, direction=0.01, acceleration=0.0), lambda run: run.guided[0][1]["path"][6])
    assert followed < 0.5 * begun


def test_it_starts_from_the_enlarged_smaller_canvas_under_the_runs_own_noise() -> None:
    run = toy_run((8, 16), guidances=[HiFlow(start=0.5)], steps=4)
    noise = run.canvas / run.level.sigma
    run.step()
    run.step()
    smaller = run.guided[0][1]["path"][4]
    expected = run.level.alpha * enlarged(smaller, 2, (False, False)) + run.level.sigma * noise
    torch.testing.assert_close(run.canvas, expected, rtol=1e-12, atol=1e-12)


def test_the_path_has_an_estimate_for_each_step_and_none_of_inner_stages() -> None:
    run = toy_run((8, 16), guidances=[HiFlow(start=0.5)], scheduler=ToyScheduler(corrector=True), steps=4)
    levels: list[Level] = []
    paint = Run.paint

    def watched(self: Run, windows: Any, guidances: Any, seed: int, watch: Any) -> Tensor:
        return paint(self, windows, guidances, seed, lambda seen: (levels.append(seen.level), watch(seen))[1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "paint", watched)
        run.step()
    assert [level.step for level in levels] == [0, 1, 2, 3]
    assert all(level.main for level in levels)


@pytest.mark.parametrize("corrector", [False, True])
def test_it_costs_a_smaller_canvas_and_spares_the_steps_of_the_start(corrector: bool) -> None:
    run = toy_run((8, 16), guidances=[HiFlow(start=0.5)], scheduler=ToyScheduler(corrector=corrector), steps=4)
    finished(run)
    denoiser = run.parts.denoiser
    assert isinstance(denoiser, ToyDenoiser)
    stages = (7, 3) if corrector else (4, 2)  # of all steps, and of the last two: the last one has no corrector
    assert sum(denoiser.forwards) == stages[0] * len(run.windows.scaled(2)) + stages[1] * len(run.windows)
    assert denoiser.backwards == []
    assert [*run.guided[0][1]["path"]] == [3]  # the others are not needed any more


def test_nothing_of_it_is_multidiffusion_bit_for_bit_and_costs_the_same() -> None:
    plain, off = toy_run((8, 16)), toy_run((8, 16), guidances=[HiFlow(0.0, 0.0, start=0.0)])
    assert torch.equal(finished(plain), finished(off))
    assert plain.computed == off.computed
    assert off.guided[0][1] == {}


def test_a_start_of_all_steps_is_the_enlarged_smaller_canvas() -> None:
    run = toy_run((8, 16), guidances=[HiFlow(start=1.0)], steps=4)
    assert torch.equal(finished(run), enlarged(run.guided[0][1]["path"][4], 2, (False, False)))
    assert run.computed == 0


def test_a_canvas_that_holds_several_smaller_ones_is_a_cascade(seeds: list[int]) -> None:
    assert torch.isfinite(finished(toy_run((16, 16), guidances=[HiFlow()], steps=4))).all()
    assert len(seeds) == 2


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize(
    "guidances",
    [
        [HiFlow()],
        [
            HiFlow(start=0.0),
            SyncDiffusion(1.0, until=1.0, metric=lambda images, other: (images - other).square().mean((1, 2, 3))),
        ],
        [Pull(), HiFlow()],
        [MSDGuidance(head_start=0.0), HiFlow()],
        [HiFlow(start=0.0), MSDPaper(0.1)],
    ],
    ids=lambda guidances: "-".join(type(guidance).__name__ for guidance in guidances),
)
def test_it_works_beside_others_on_any_ranks_and_a_resumed_run_has_the_same_bits(guidances: list[Guidance], wrap: bool) -> None:
    def begin(runtime: Runtime | None = None) -> Run:
        denoiser = ToyDenoiser(channels=4)
        return toy_run(
            (8, 18),
            denoiser=denoiser,
            codec=ToyCodec(),
            layout=Drift(2),
            guidances=guidances,
            wrap=wrap,
            steps=4,
            runtime=runtime or Runtime(accelerator="cpu", micro_batch=8),
        )

    run, resumed = begin(), begin()
    for _ in range(3):  # the first with passes of its own, and the one that knows it, are done
        run.step()
    resumed.restore(run.state())
    assert torch.isfinite(finished(run)).all()
    assert torch.equal(finished(resumed), run.canvas)
    for canvas in VirtualRanks(2, 8).run(lambda runtime: finished(begin(runtime))):
        assert torch.equal(canvas, run.canvas)


def test_it_runs_on_a_volume() -> None:
    denoiser = ToyDenoiser((2, 2, 2))
    assert torch.isfinite(finished(toy_run((4, 4, 6), denoiser=denoiser, stride=1, guidances=[HiFlow()], steps=4))).all()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"direction": 1.5}, "direction is 1.5: it must be from 0 to 1"),
        ({"acceleration": -0.1}, "acceleration is -0.1: it must be from 0 to 1"),
        ({"cutoff": math.nan}, "cutoff is nan: it must be from 0 to 1"),
        ({"start": 2.0}, "start is 2.0: it must be from 0 to 1"),
        ({"factor": 1}, "factor is 1: it must be 2 or more"),
    ],
)
def test_a_setting_out_of_range_is_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        HiFlow(**setting)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (
            {"height": 16, "width": 64},
            "hiflow first paints a canvas 2 times smaller: a canvas of 8 cells along axis 0 does not hold a window of 8 at 1/2 "
            "of its size: make it 16 cells or larger",
        ),
        (
            {"height": 32, "width": 66},
            "hiflow first paints a canvas 2 times smaller: the canvas has 33 cells along axis 1, which 2 does not divide: the "
            "nearest that works is 32 or 34",
        ),
    ],
)
def test_a_canvas_that_holds_no_smaller_one_is_refused_before_the_run(
    tiny: Model, cpu: Runtime, size: dict[str, int], message: str
) -> None:
    with pytest.raises(SettingError) as refused:
        Sampler(tiny, guidances=["hiflow"], runtime=cpu).plan("a lake", **size).check()
    assert str(refused.value).startswith(message)
