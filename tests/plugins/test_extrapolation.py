"""Image extrapolation against a literal loop, and the laws that make it that method."""

from dataclasses import dataclass
from itertools import product
from typing import Any, final

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from panokit import Fuser, Grid, Guidance, Layout, Model, Region, Regions, Run, Runtime, Sampler, SettingError, Union, registry
from panokit.composition import build
from panokit.scheduler import Prediction, x0_from
from panokit.testing.toys import Drift, Mean, Pull, ToyCodec, ToyDenoiser, ToyScheduler, toy_run
from panokit_extrapolation import Extrapolation
from panokit_extrapolation.tiles import Tiles
from panokit_msd import HeadStart
from panokit_syncdiffusion import SyncDiffusion


def finished(run: Run) -> Tensor:
    while not run.done:
        run.step()
    return run.canvas


def forwards(run: Run) -> int:
    assert isinstance(run.parts.denoiser, ToyDenoiser)
    return sum(run.parts.denoiser.forwards)


@pytest.fixture
def seeds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seed of each window that is painted, in order."""
    painted: list[int] = []
    paint = Run.paint

    def spy(run: Run, windows: Any, guidances: Any, seed: int, watch: Any = None) -> Tensor:
        painted.append(seed)
        return paint(run, windows, guidances, seed, watch)

    monkeypatch.setattr(Run, "paint", spy)
    return painted


SIZES = [(4, 13), (9, 6), (8, 8), (10, 13)]
"""One row, one and a half windows, two by two, and more; most are no multiples of the stride of 2 or of the window of 4."""


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("wrap", [False, True])
def test_it_is_the_literal_loop(size: tuple[int, int], wrap: bool, seeds: list[int]) -> None:
    """Window after window, in a dozen lines; with fewer steps than windows, and with more."""
    prediction: Prediction = "flow_prediction" if wrap else "epsilon"
    steps = 9 if size == (4, 13) else 3
    denoiser = ToyDenoiser(prediction=prediction)
    run = toy_run(size, denoiser=denoiser, guidances=[Extrapolation()], wrap=wrap, steps=steps)
    ours, painted = finished(run), sum(denoiser.forwards)
    picture, there, numbers = torch.zeros(2, *size, dtype=torch.float64), torch.zeros(size, dtype=torch.bool), iter(seeds)
    for top, left in run.windows.cells()[:, :, 0, 0].tolist():
        at = torch.meshgrid((torch.arange(4) + top) % size[0], (torch.arange(4) + left) % size[1], indexing="ij")
        new = ~there[at]
        if not new.any():
            continue
        noise = toy_run(size, seed=next(numbers)).canvas[:, *at] / run.solver.levels[0].sigma
        known, x = picture[:, *at], run.solver.levels[0].sigma * noise
        for level, below in zip(run.solver.levels, run.solver.levels[1:], strict=False):
            x = torch.where(new, x, level.alpha * known + level.sigma * noise)
            x0 = x0_from(prediction, denoiser(x[None], level, run.parts.embeddings)[0], x, level)
            x = below.alpha * x0 + below.sigma * (x - level.alpha * x0) / level.sigma
        picture[:, *at] = torch.where(new, x, known)
        there[at] = True
    torch.testing.assert_close(ours, picture, rtol=0, atol=1e-9)
    assert painted == len(seeds) * steps  # a window with new cells is computed once a step, and no other one is
    assert next(numbers, None) is None


@pytest.mark.parametrize("wrap", [False, True])
def test_what_is_painted_stays_bit_for_bit(wrap: bool) -> None:
    run = toy_run((4, 13), guidances=[Extrapolation()], wrap=wrap, steps=6, scheduler=ToyScheduler(eta=0.7, corrector=True))
    memory, before, covered = run.guided[0][1], torch.zeros(0), torch.zeros(4, 13, dtype=torch.bool)
    while not run.done:
        run.step()
        if covered.any():
            assert torch.equal(memory["canvas"][:, covered], before)
        covered = memory["covered"]
        before = memory["canvas"][:, covered]
    assert covered.all()
    assert torch.equal(run.canvas, memory["canvas"])
    assert run.computed == 0


@pytest.mark.parametrize("name", [plugin.name for plugin in registry.plugins("fusers")])
def test_every_fuser_makes_the_same_picture(name: str) -> None:
    fusers = Mean(), build(Fuser, name)
    plain, other = (finished(toy_run((9, 6), guidances=[Extrapolation()], fuser=fuser)) for fuser in fusers)
    torch.testing.assert_close(plain, other, rtol=0, atol=1e-10)


axis = st.integers(1, 4).flatmap(lambda window: st.integers(window, 3 * window + 1).map(lambda size: (size, window)))


@given(axes=st.lists(axis, min_size=1, max_size=2), place=st.integers(0, 13))
def test_tiles_cover_a_canvas_and_the_first_one_alone_covers_its_cells(axes: list[tuple[int, int]], place: int) -> None:
    size, window = tuple(cells for cells, _ in axes), tuple(cells for _, cells in axes)
    tiles = Tiles(size, window, (True,) * len(axes), tuple(place % cells for cells in size))
    canvas = torch.arange(float(torch.tensor(size).prod())).view(1, *size)
    crops, count = tiles.crop(canvas), torch.zeros(size)
    for i, cells in enumerate(tiles.cells()):
        assert torch.equal(crops[i, 0], canvas[0][tuple(at % n for at, n in zip(cells, size, strict=True))])
        tiles.put(count, i, torch.ones(window))
    assert (count > 0).all()
    first = torch.zeros(size)
    tiles.put(first, 0, torch.ones(window))
    assert (count[first > 0] == 1).all()
    finer = tiles.refined(2)
    assert finer.coarsened(2) == tiles
    assert finer.size == tuple(2 * cells for cells in size)


@pytest.mark.parametrize(
    "guidances",
    [
        [Pull(), Extrapolation()],
        [
            Extrapolation(),
            SyncDiffusion(1.0, until=1.0, metric=lambda images, other: (images - other).square().mean((1, 2, 3))),
        ],
        [Extrapolation(), HeadStart(0.5)],
    ],
    ids=lambda guidances: "-".join(type(guidance).__name__ for guidance in guidances),
)
def test_a_run_that_is_resumed_in_the_middle_of_the_sweep_has_the_same_bits(guidances: list[Guidance]) -> None:
    def begin() -> Run:
        denoiser = ToyDenoiser(channels=4)
        return toy_run((8, 10), denoiser=denoiser, codec=ToyCodec(), layout=Drift(2), guidances=guidances, steps=3)

    run, resumed = begin(), begin()
    run.step()
    resumed.restore(run.state())
    assert torch.isfinite(finished(run)).all()
    assert torch.equal(finished(resumed), run.canvas)


def test_other_guidances_guide_each_window() -> None:
    pull = Pull("identity", weight=0.5, to=9)
    plain, pulled = (finished(toy_run((4, 8), guidances=[*more, Extrapolation()])) for more in ([], [pull]))
    assert ((pulled - plain).mean((0, 1)) > 1).all()


def test_a_guidance_that_knows_a_canvas_or_compares_windows_changes_nothing() -> None:
    sync = SyncDiffusion(1.0, until=1.0, metric=lambda images, other: (images - other).square().mean((1, 2, 3)))
    canvases = [
        finished(toy_run((8, 12), denoiser=ToyDenoiser(channels=4), codec=ToyCodec(), guidances=[Extrapolation(), *more]))
        for more in ([], [sync, HeadStart(0.5)])
    ]
    assert torch.equal(*canvases)


def test_a_stop_in_the_middle_of_the_sweep_ends_it() -> None:
    run = toy_run((4, 16), guidances=[Extrapolation()], steps=5)
    run.step()
    before = forwards(run)
    run.stop()
    with pytest.raises(KeyboardInterrupt, match="stopped after step 1 of 5"):
        run.step()
    assert forwards(run) == before + 1


@pytest.mark.parametrize(("at", "windows"), [((0, 0), 4), ((32, 0), 3)])
def test_a_picture_is_continued_and_its_windows_cost_nothing(
    tiny: Model, cpu: Runtime, monkeypatch: pytest.MonkeyPatch, at: tuple[int, int], windows: int
) -> None:
    """Windows of 8 cells, 4 apart, on 32 cells. Only those are computed that hold new cells beside the picture."""
    computed: list[int] = []
    step = Run.step

    def spy(run: Run) -> None:
        step(run)
        if run.done:
            computed.append(run.computed)

    monkeypatch.setattr(Run, "step", spy)
    picture = torch.rand(3, 16, 32, generator=torch.Generator().manual_seed(0))
    sampler = Sampler(tiny, guidances=["extrapolation"], runtime=cpu)
    run = sampler.begin("a lake", image=picture, at=at, height=16, width=64, stride=8, steps=2, seed=1)
    assert run.start is not None
    assert torch.equal(finished(run)[:, run.start.stays], run.start.x0[:, run.start.stays])
    assert sum(computed) == 2 * windows


def test_regions_are_where_they_are_on_the_canvas(tiny: Model, cpu: Runtime) -> None:
    mask = torch.zeros(16, 64)
    mask[:, 48:] = 1
    prompts = ["a lake", Regions((Region(mask, "a volcano"),), elsewhere="a lake")]
    lake, both = (
        Sampler(tiny, guidances=["extrapolation"], runtime=cpu).begin(prompt, height=16, width=64, stride=16, steps=2, seed=1)
        for prompt in prompts
    )
    apart = (finished(lake) - finished(both)).abs().amax((0, 1))
    assert (apart[:24] < 1e-4).all()
    assert (apart[24:] > 1e-3).any()


@final
@dataclass(frozen=True)
class Dilated(Layout):
    """Plain windows, and windows with gaps."""

    def begin(
        self, size: tuple[int, ...], window: tuple[int, ...], stride: tuple[int, ...] | None, wrap: tuple[bool, ...], seed: int
    ) -> Union:
        plain = Grid(size, window, window, wrap)
        return Union((plain, Grid(size, window, (1,) * len(size), wrap, dilation=(2,) * len(size))))


def test_a_window_with_gaps_is_refused_before_the_run(tiny: Model, cpu: Runtime) -> None:
    with pytest.raises(SettingError) as refused:
        Sampler(tiny, layout=Dilated(), guidances=["extrapolation"], runtime=cpu).plan("a lake", height=32, width=64).check()
    assert str(refused.value).startswith(
        "window 8 of this layout has gaps or is bent, and extrapolation continues blocks of cells: choose the layout overlap"
    )


@pytest.mark.parametrize(("rows", "columns"), [*product([1, 2], [3])])
def test_the_first_window_is_a_picture_of_its_own(rows: int, columns: int, seeds: list[int]) -> None:
    """What MultiDiffusion would never do: the first window sees nothing of the others."""
    size = (4 * rows, 4 * columns)
    run = toy_run(size, guidances=[Extrapolation()], steps=3)
    canvas = finished(run)
    alone = toy_run((4, 4), steps=3)
    alone.canvas = toy_run(size, seed=seeds[0]).canvas[:, :4, :4].clone()
    torch.testing.assert_close(canvas[:, :4, :4], finished(alone), rtol=0, atol=1e-12)
