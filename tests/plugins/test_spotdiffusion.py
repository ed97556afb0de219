"""SpotDiffusion against a literal loop, and the laws that make it that method."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from panokit import Guidance, Level, Model, Run, Runtime, Sampler, SettingError
from panokit.testing import Check, conforms
from panokit.testing.toys import Pull, ToyDenoiser, toy_run
from panokit_msd import MSDGuidance
from panokit_multidiffusion import MultiDiffusion
from panokit_spotdiffusion import SpotDiffusion, Spots
from panokit_syncdiffusion import SyncDiffusion


@conforms(SpotDiffusion)
def test_spotdiffusion(check: Check) -> None:
    check()


@conforms(lambda: SpotDiffusion(unit=1))
def test_spotdiffusion_with_any_shift(check: Check) -> None:
    check()


def finished(run: Run) -> Tensor:
    while not run.done:
        run.step()
    return run.canvas


def test_it_is_the_loop_of_the_paper() -> None:
    """Roll the canvas, denoise disjoint windows, roll it back, step: on a ring, with DDIM."""
    run = toy_run((8, 12), layout=SpotDiffusion(unit=1), stride=4, wrap=True, steps=5, seed=3)
    assert isinstance(run.windows, Spots)
    denoiser, canvas = ToyDenoiser(), run.canvas
    for level, below in zip(run.solver.levels, run.solver.levels[1:], strict=False):
        moved = run.windows.at(level)
        shift = list(moved.shift or ())
        rolled = canvas.roll(shift, (1, 2))
        eps = torch.zeros_like(canvas)
        for y in range(0, 8, 4):
            for x in range(0, 12, 4):
                window = rolled[None, :, y : y + 4, x : x + 4]
                eps[:, y : y + 4, x : x + 4] = denoiser(window, level, run.parts.embeddings)[0]
        eps = eps.roll([-s for s in shift], (1, 2))
        canvas = below.alpha * (canvas - level.sigma * eps) / level.alpha + below.sigma * eps
    torch.testing.assert_close(finished(run), canvas, rtol=0, atol=1e-9)


def test_on_a_ring_every_cell_is_computed_once_a_step() -> None:
    windows = SpotDiffusion().begin((8, 24), (8, 8), None, (True, True), 0)
    for k in range(20):
        moved, count = windows.at(Level(k, 500, 0.8, 0.6, k, 20)), torch.zeros(8, 24)
        for i in range(len(moved)):
            moved.put(count, i, torch.ones(8, 8))
        assert (count == 1).all()


def test_shifts_are_uniform_multiples_of_the_unit_and_another_seed_has_others() -> None:
    def shifts(seed: int, unit: int) -> list[tuple[int, ...]]:
        windows = SpotDiffusion(unit).begin((16, 24), (8, 8), None, (True, True), seed)
        return [windows.at(Level(k, 500, 0.8, 0.6, k, 400)).shift or () for k in range(400)]

    assert {x for shift in shifts(0, 2) for x in shift} == {0, 2, 4, 6}
    for axis in range(2):
        counts = torch.bincount(torch.tensor([shift[axis] for shift in shifts(0, 1)]), minlength=8)
        assert counts.min() > 25  # of 50
    assert shifts(0, 1) != shifts(1, 1)


def test_a_flat_canvas_has_its_border_windows_clamped() -> None:
    windows = SpotDiffusion().begin((8, 32), (8, 8), None, (False, False), 0)
    for k in range(10):
        moved = windows.at(Level(k, 500, 0.8, 0.6, k, 10))
        starts = [x for _, x in moved.origins]
        assert starts[0] == 0
        assert starts[-1] == 24
        assert len(starts) == (4 if (moved.shift or (0, 0))[1] == 0 else 5)


def test_seams_do_not_stay(tiny: Model) -> None:
    """Disjoint windows that stay where they are leave seams; those that move do not."""
    runtime = Runtime(accelerator="cpu")

    def seams(windows: Spots) -> float:
        run = Sampler(tiny, fuser=MultiDiffusion("uniform"), layout=SpotDiffusion(), runtime=runtime).begin(
            "a lake", height=16, width=64, steps=10, seed=1
        )
        run.windows = windows if not windows.seed else run.windows
        steps = finished(run).diff(dim=-1).abs().mean((0, 1))
        edge = torch.zeros(len(steps), dtype=torch.bool)
        edge[7::8] = True
        return float(steps[edge].mean() / steps[~edge].mean())

    moving = SpotDiffusion().begin((8, 32), (8, 8), None, (False, False), 1)
    assert isinstance(moving, Spots)
    still = replace(moving, seed=0, unit=(8, 8))  # every shift is 0
    assert seams(moving) < seams(still)


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize(
    "guidances",
    [[MSDGuidance()], [MSDGuidance(head_start=0.0, levels=2)], [SyncDiffusion(weight=0.1)], [Pull(), MSDGuidance()]],
    ids=str,
)
def test_every_guidance_works_with_it_and_a_resumed_run_has_the_same_bits(
    tiny: Model, cpu: Runtime, guidances: list[Guidance], wrap: bool
) -> None:
    def begin() -> Run:
        return Sampler(tiny, layout="spotdiffusion", guidances=guidances, runtime=cpu).begin(
            "a lake", height=32, width=64, steps=4, wrap=wrap, seed=2
        )

    run, resumed = begin(), begin()
    for _ in range(2):
        run.step()
    resumed.restore(run.state())
    assert torch.isfinite(finished(run)).all()
    assert torch.equal(finished(resumed), run.canvas)


def test_a_unit_that_the_guidance_does_not_divide_is_refused_before_the_run(tiny: Model, cpu: Runtime) -> None:
    sampler = Sampler(tiny, layout=SpotDiffusion(unit=1), guidances=[MSDGuidance()], runtime=cpu)
    with pytest.raises(SettingError, match=r"the unit of the shifts \(setting unit of the layout\) has 1 cells .* works is 2"):
        sampler.plan("a lake", height=32, width=64).check()
    with pytest.raises(SettingError, match="unit is 0: it must be 1 cell or more"):
        SpotDiffusion(unit=0)
