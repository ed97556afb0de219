"""A head start: what it begins with, what guides the smaller canvas, and how it goes together with MSD."""

import hashlib
from typing import Any

import pytest
import torch
from torch import Tensor

from panokit import Guidance, Run, SettingError, enlarged
from panokit.testing.toys import Pull, ToyCodec, ToyDenoiser, ToyScheduler, toy_run
from panokit_msd import HeadStart, MSDGuidance, MSDPaper
from panokit_msd.guidance import Between
from panokit_syncdiffusion import SyncDiffusion


def _seed_of_head_start() -> int:
    """The seed of the smaller canvas, of 4 x 8 cells: of the run's seed, the level, the guidance, and the size."""
    return int.from_bytes(hashlib.sha256(b"0/0/HeadStart/0/(4, 8)").digest()[3:7])


def finished(run: Run) -> Tensor:
    while not run.done:
        run.step()
    return run.canvas


def forwards(run: Run) -> int:
    assert isinstance(run.parts.denoiser, ToyDenoiser)
    return sum(run.parts.denoiser.forwards)


def painted_below(monkeypatch: pytest.MonkeyPatch) -> list[list[Guidance]]:
    """What guides each smaller canvas, in the order in which they are begun."""
    guides: list[list[Guidance]] = []
    paint = Run.paint

    def spy(self: Run, grid: Any, guidances: Any, seed: int, watch: Any = None) -> Tensor:
        guides.append(list(guidances))
        return paint(self, grid, guidances, seed, watch)

    monkeypatch.setattr(Run, "paint", spy)
    return guides


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"until": 1.5}, "until is 1.5: it is a share of the steps, from 0 to 1"),
        ({"until": -0.1}, "until is -0.1"),
        ({"levels": 1}, "levels is 1: it must be 2 or more"),
        ({"factor": 1}, "factor is 1: it must be 2 or more"),
    ],
)
def test_a_setting_out_of_range_is_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        HeadStart(**setting)


def test_a_head_start_of_nothing_is_multidiffusion_bit_for_bit_and_costs_the_same() -> None:
    plain, begun = toy_run((8, 16)), toy_run((8, 16), guidances=[HeadStart(0.0)])
    assert torch.equal(finished(plain), finished(begun))
    assert forwards(plain) == forwards(begun)


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("guidance", [HeadStart(0.5), MSDGuidance(head_start=0.5)])
def test_it_is_the_finished_smaller_canvas_enlarged_under_the_runs_own_noise(guidance: Guidance, wrap: bool) -> None:
    run = toy_run((8, 16), guidances=[guidance], wrap=wrap, steps=4)
    noise = run.canvas / run.level.sigma
    run.step()
    assert forwards(run) == 4 * len(run.windows.scaled(2))
    run.step()
    assert forwards(run) == 4 * len(run.windows.scaled(2))  # it is painted once
    stream = "MSDGuidance" if isinstance(guidance, MSDGuidance) else "HeadStart"
    keys = f"0/0/{stream}/0/(4, 8)"  # the seed, the level, the guidance, and the size of its canvas
    others = [] if isinstance(guidance, HeadStart) else guidance.lowered(run.windows, run.windows.scaled(2))
    seed = int.from_bytes(hashlib.sha256(keys.encode()).digest()[3:7])
    smaller = finished(toy_run((4, 8), guidances=[*others], wrap=wrap, steps=4, seed=seed))
    expected = run.level.alpha * enlarged(smaller, (wrap, wrap), 2) + run.level.sigma * noise
    torch.testing.assert_close(run.canvas, expected, rtol=1e-12, atol=1e-12)


def test_the_picture_is_enlarged_and_not_its_latents() -> None:
    run = toy_run((8, 16), denoiser=ToyDenoiser(channels=4), codec=ToyCodec(), guidances=[HeadStart(0.5)], steps=4)
    run.step()
    kept = run.guided[0][1]["painted"]
    picture = ToyCodec().decode(kept[None])[0]
    assert kept.shape == (4, 8, 16)
    small = torch.nn.functional.avg_pool2d(picture, 2)
    painted = run.paint(run.windows.scaled(2), (), _seed_of_head_start())
    expected = ToyCodec().decode(painted[None])[0]
    assert float((small - expected).abs().mean()) < 0.35 * float((expected - expected.mean()).abs().mean())
    torch.testing.assert_close(kept, ToyCodec().encode(enlarged(expected, (False, False), 2)[None].clamp(0, 1))[0])


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("corrector", [False, True])
def test_the_smaller_canvas_is_a_run_of_its_own(monkeypatch: pytest.MonkeyPatch, wrap: bool, corrector: bool) -> None:
    """It is what the sampler makes of a canvas of that size, of the same prompt, and another seed."""
    seeds: list[int] = []
    paint = Run.paint
    monkeypatch.setattr(
        Run, "paint", lambda run, grid, guides, seed, _: (seeds.append(seed), paint(run, grid, guides, seed))[1]
    )
    scheduler = ToyScheduler(eta=0.5, corrector=corrector)
    run = toy_run((8, 16), guidances=[HeadStart(0.5)], scheduler=scheduler, wrap=wrap, steps=4)
    run.step()
    (seed,) = seeds
    assert seed != run.seed
    alone = toy_run((4, 8), scheduler=scheduler, wrap=wrap, steps=4, seed=seed)
    assert torch.equal(run.guided[0][1]["painted"], enlarged(finished(alone), (wrap, wrap), 2))


@pytest.mark.parametrize(("steps", "until", "spared"), [(1, 0.3, 0), (2, 0.9, 1), (2, 1.0, 2), (10, 0.3, 3), (25, 0.3, 8)])
@pytest.mark.parametrize("levels", [2, 3])
def test_it_costs_all_steps_of_the_smallest_canvas_and_spares_the_others_theirs(
    levels: int, steps: int, until: float, spared: int
) -> None:
    run = toy_run((16, 24), guidances=[HeadStart(until, levels=levels)], steps=steps)
    fine, *smaller = [len(grid) for grid in (run.windows, run.windows.scaled(2), run.windows.scaled(4))[:levels]]
    finished(run)
    own = (steps - spared) * (fine + sum(smaller[:-1])) + steps * smaller[-1]
    assert forwards(run) == (own if spared else steps * fine)
    assert run.guided[0][1].keys() == ({"painted"} if spared == steps else set())


def test_the_runs_other_guidances_guide_the_smaller_canvas(monkeypatch: pytest.MonkeyPatch) -> None:
    guides = painted_below(monkeypatch)
    pull = Pull("identity", weight=0.5, to=3, until=2)  # it ends with the head start, so it guides the smaller canvas alone
    plain, pulled = (toy_run((8, 16), guidances=[*beside, HeadStart(0.5)], steps=4) for beside in ([], [pull]))
    assert not torch.allclose(finished(plain), finished(pulled))
    assert guides == [[], [pull]]


def test_it_works_beside_syncdiffusion(monkeypatch: pytest.MonkeyPatch) -> None:
    guides = painted_below(monkeypatch)
    sync = SyncDiffusion(1.0, until=1.0, metric=lambda images, other: (images - other).square().flatten(1).sum(1))
    canvases = []
    for guidances in ([sync, HeadStart(0.5)], [HeadStart(0.5), sync], [HeadStart(0.5)]):
        denoiser = ToyDenoiser(channels=4)
        canvases.append(finished(toy_run((8, 16), denoiser=denoiser, codec=ToyCodec(), guidances=guidances, steps=4)))
    assert torch.equal(canvases[0], canvases[1])
    assert not torch.allclose(canvases[0], canvases[2])
    assert guides == [[sync], [sync], []]


@pytest.mark.parametrize(
    ("other", "lowered"),
    [
        (MSDGuidance(3.0, head_start=0.0), Between(30.0, head_start=0.0, levels=2)),
        (MSDPaper(0.1), MSDPaper(0.1, levels=2)),
        (HeadStart(0.25), HeadStart(0.25, levels=2)),
    ],
)
def test_cross_scale_guidances_guide_the_smaller_canvas_where_it_has_a_smaller_one(
    monkeypatch: pytest.MonkeyPatch, other: Guidance, lowered: Guidance
) -> None:
    guides = painted_below(monkeypatch)
    finished(toy_run((16, 16), guidances=[HeadStart(0.5), other], steps=4))
    assert guides == [[HeadStart(0.5, levels=2), lowered], []]


@pytest.mark.parametrize("other", [MSDGuidance(head_start=0.0), MSDPaper(0.1), HeadStart(0.25)])
def test_another_factor_beside_it_is_no_obstacle(other: Guidance) -> None:
    """A third of 18 x 18 cells is one window, which has no smaller canvas by any factor; a third of 36 x 36 has one by 2."""
    denoiser = ToyDenoiser((6, 6))
    for size in ((18, 18), (36, 36)):
        run = toy_run(size, denoiser=denoiser, stride=6, guidances=[HeadStart(0.5, factor=3), other], steps=4)
        assert torch.isfinite(finished(run)).all()


@pytest.mark.parametrize("size", [(8, 16), (16, 24), (32, 32)])
def test_beside_msd_without_a_head_start_it_costs_what_msd_with_one_costs(size: tuple[int, int]) -> None:
    one = toy_run(size, guidances=[MSDGuidance(head_start=0.3)], steps=10)
    two = toy_run(size, guidances=[HeadStart(0.3), MSDGuidance(head_start=0.0)], steps=10)
    finished(one)
    finished(two)
    assert forwards(one) == forwards(two)


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("size", [(8, 16), (16, 24), (32, 32)])
def test_beside_msd_without_a_head_start_it_is_msd_with_one_but_for_its_own_noise(size: tuple[int, int], wrap: bool) -> None:
    """The smaller canvas has noise of its own, so it is another picture. From the same one both go on to the same bits."""
    one = toy_run(size, guidances=[MSDGuidance(head_start=0.3)], wrap=wrap, steps=10)
    two = toy_run(size, guidances=[HeadStart(0.3), MSDGuidance(head_start=0.0)], wrap=wrap, steps=10)
    one.step()
    two.guided[0][1]["painted"] = one.guided[0][1]["painted"]
    assert torch.equal(finished(two), finished(one))


@pytest.mark.parametrize("size", [(16, 24), (32, 32)])
def test_so_are_the_canvases_between(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]) -> None:
    """With one noise for all of them, every smaller canvas is the same, whichever of the two composes it."""
    paint = Run.paint
    monkeypatch.setattr(Run, "paint", lambda run, grid, guides, seed, _: paint(run, grid, guides, 7))
    one = toy_run(size, guidances=[MSDGuidance(head_start=0.3)], steps=10)
    two = toy_run(size, guidances=[HeadStart(0.3), MSDGuidance(head_start=0.0)], steps=10)
    assert torch.equal(finished(two), finished(one))


@pytest.mark.parametrize("size", [(8, 16), (16, 24)])
def test_where_two_begin_the_canvas_the_first_does(size: tuple[int, int]) -> None:
    both, alone = (
        toy_run(size, guidances=guidances, steps=4) for guidances in ([HeadStart(0.5), HeadStart(0.25)], [HeadStart(0.5)])
    )
    assert torch.equal(finished(both), finished(alone))
