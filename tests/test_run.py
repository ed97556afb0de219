"""The loop: guided windows against literal loops, runs that keep to themselves, and what is said when a part fails."""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from panokit import (
    ContractError,
    DiffusersScheduler,
    Estimate,
    Fuser,
    Guidance,
    Known,
    Level,
    Model,
    Run,
    Runtime,
    Sampler,
    Scene,
    Scheduler,
    SettingError,
    Step,
    Windows,
)
from panokit.denoiser import Denoiser
from panokit.errors import NotFiniteError
from panokit.grid import Grid
from panokit.guidance import Jacobian
from panokit.scheduler import Prediction
from panokit.testing.toys import Mean, Pull, ToyCodec, ToyDenoiser, ToyScheduler, toy_run
from panokit_multidiffusion import MultiDiffusion


def finished(run: Run) -> Tensor:
    while not run.done:
        run.step()
    return run.canvas


def relative(canvas: Tensor, expected: Tensor) -> float:
    return float((canvas - expected).abs().max() / expected.abs().max())


# --- the guidance pass --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Blind(Guidance):
    """Looks at an estimate that is not there."""

    jacobian = "none"

    def strength(self, level: Level) -> float:
        return 1.0

    def energy(self, seen: Estimate, index: Sequence[int], context: Any) -> Tensor:
        return (seen.x * seen.x0).flatten(1).sum(1)


def use(run: Run, **parts: Any) -> None:
    """Go on with other parts."""
    run.model_pass = replace(run.model_pass, parts=replace(run.parts, **parts))


def literal(run: Run, full: Sequence[Pull], identity: Sequence[Pull], none: Sequence[Pull] = ()) -> Tensor:
    """Guided MultiDiffusion as papers write it: window by window, moved, denoised, stepped by DDIM, averaged."""
    denoiser, grid, canvas = (
        ToyDenoiser(run.windows.window, prediction=run.parts.denoiser.training.prediction),
        run.windows,
        run.canvas,
    )
    levels = run.solver.levels

    def x0_and_eps(x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        pred, a, s = denoiser(x, level, run.parts.embeddings), level.alpha, level.sigma
        if denoiser.training.prediction == "v_prediction":
            x0 = a * x - s * pred
            return x0, (x - a * x0) / s
        return (x - s * pred) / a, pred

    def energy(pull: Pull, x: Tensor, x0: Tensor, i: int) -> Tensor:
        return pull.weight * (((x0 - i / 10 - pull.to) ** 2).sum() + (x * x0).sum() / 2)

    for level, below in pairwise(levels):
        value, count = torch.zeros_like(canvas), torch.zeros_like(canvas)
        for i in range(len(grid)):
            x = grid.crop(canvas, [i])
            x = (x - sum(pull.weight * 2 * (x - i / 10 - pull.to) for pull in none)).requires_grad_()
            if full:
                x0, _ = x0_and_eps(x, level)
                total = torch.stack([energy(pull, x, x0, i) for pull in full]).sum()
                x = (x - torch.autograd.grad(total, x)[0]).detach()
            x0, eps = (part.detach() for part in x0_and_eps(x, level))
            if identity:
                leaf = x0.clone().requires_grad_()
                total = torch.stack([energy(pull, x.detach(), leaf, i) for pull in identity]).sum()
                x0 = x0 - torch.autograd.grad(total, leaf)[0]
            grid.put(value, i, (below.alpha * x0 + below.sigma * eps)[0])
            grid.put(count, i, torch.ones_like(x0[0]))
        canvas = value / count
    return canvas


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("full", "identity", "none"),
    [
        ([Pull()], [], []),
        ([], [Pull("identity")], []),
        ([], [], [Pull("none")]),
        ([Pull(), Pull(to=-2.0, weight=0.02)], [Pull("identity"), Pull("identity", to=3.0)], []),
        ([Pull()], [Pull("identity")], [Pull("none"), Pull("none", to=-2.0)]),
    ],
)
@pytest.mark.parametrize(("size", "wrap"), [((5, 9), False), ((6, 8), True)])
def test_guided_windows_are_those_of_a_literal_loop(
    size: tuple[int, ...], wrap: bool, full: list[Pull], identity: list[Pull], none: list[Pull], prediction: Prediction
) -> None:
    denoiser = ToyDenoiser(prediction=prediction)
    run = toy_run(size, denoiser=denoiser, guidances=[*full, *identity, *none], wrap=wrap)
    expected = literal(run, full, identity, none)
    unguided = finished(toy_run(size, denoiser=denoiser, wrap=wrap))
    assert relative(unguided, expected) > 0.05  # the guidance did something
    assert relative(finished(run), expected) <= 1e-9


@pytest.mark.parametrize("size", [(9,), (5, 7), (5, 6, 7)])
def test_a_canvas_has_any_number_of_axes(size: tuple[int, ...]) -> None:
    run = toy_run(size, guidances=[Pull(), Pull("identity")], wrap=True)
    expected = literal(run, [Pull()], [Pull("identity")])
    assert finished(run).shape == (2, *size)
    assert relative(run.canvas, expected) <= 1e-9


def test_identity_moves_x0_and_leaves_the_noise() -> None:
    """x0 -= d and x -= alpha d, so (x - alpha x0) / sigma is what it was."""
    plain, guided = toy_run((4, 4)), toy_run((4, 4), guidances=[Pull("identity", weight=0.1)])
    plain.step()
    guided.step()
    assert plain.seen is not None
    assert guided.seen is not None
    d = 0.1 * (2 * (plain.seen.x0 - 1.0) + plain.seen.x / 2)
    torch.testing.assert_close(guided.seen.x0, plain.seen.x0 - d)
    torch.testing.assert_close(guided.seen.x, plain.seen.x - plain.seen.level.alpha * d)
    torch.testing.assert_close(guided.seen.eps, plain.seen.eps)


def test_a_guidance_of_the_noisy_window_costs_no_pass_and_sees_no_estimate() -> None:
    denoiser = ToyDenoiser()
    run = toy_run(denoiser=denoiser, guidances=[Pull("none")], steps=3)
    finished(run)
    assert sum(denoiser.forwards) == 3 * len(run.windows)
    with pytest.raises(NotFiniteError, match="the gradient of Blind"):
        toy_run(guidances=[Blind()]).step()


@pytest.mark.parametrize("jacobian", get_args(Jacobian))
def test_the_order_of_guidances_does_not_matter(jacobian: Jacobian) -> None:
    pulls = [Pull(jacobian, to=1.0), Pull(jacobian, to=-2.0), Pull("full", to=0.3), Pull("identity", weight=0.01), Pull("none")]
    orders = [pulls, pulls[::-1], [*pulls[2:], *pulls[:2]]]
    first, *others = (finished(toy_run(guidances=order)) for order in orders)
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("jacobian", get_args(Jacobian))
def test_strength_zero_is_bit_for_bit_no_guidance(jacobian: Jacobian) -> None:
    plain = finished(toy_run())
    assert torch.equal(finished(toy_run(guidances=[Pull(jacobian, weight=0.0)])), plain)
    assert not torch.equal(finished(toy_run(guidances=[Pull(jacobian)])), plain)


def test_inner_stages_are_never_guided() -> None:
    run = toy_run(scheduler=ToyScheduler(corrector=True), guidances=[Probe(lambda step: step.level)])
    assert [level.main for level in run.solver.levels] == [True, False, True, False, True, True]
    finished(run)
    assert [level.index for level in probe(run).answers] == [0, 2, 4]


@dataclass(frozen=True)
class Linear(Guidance):
    """A gradient at x0 of one magnitude a window."""

    magnitudes: tuple[float, ...]

    def strength(self, level: Level) -> float:
        return 1.0

    def energy(self, seen: Estimate, index: Sequence[int], context: Any) -> Tensor:
        return seen.x0.flatten(1).sum(1) * torch.tensor([self.magnitudes[i] for i in index], dtype=seen.x0.dtype)


class Half(Denoiser):
    """A network in half precision: its prediction is 3 x between -1 and 1."""

    channels, window, training = 1, (4, 4), ToyDenoiser().training

    def modules(self) -> tuple[()]:
        return ()

    def encode(self, scene: Scene) -> None:
        return None

    def condition(self, embeddings: None, grid: Grid, index: Sequence[int]) -> None:
        return None

    def __call__(self, x: Tensor, level: Level, condition: None) -> Tensor:
        return (3 * x.clamp(-1, 1).half()).to(x.dtype)


def test_gradients_of_any_magnitude_come_through_half_precision() -> None:
    """Half precision ends at 6e-8 and 65504; each window's gradient has a scale of its own."""
    magnitudes = (1e-30, 1.0, 0.0, 1e30)
    run = toy_run((4, 16), denoiser=Half(), guidances=[Linear(magnitudes)], stride=4)
    run.canvas = torch.zeros_like(run.canvas)  # where even 1e-30 moves something
    level = run.level
    run.step()
    assert run.seen is not None
    moved = run.windows.crop(run.seen.x).flatten(1)
    through = (1 - 3 * level.sigma) / level.alpha  # the derivative of x0 = (x - sigma 3 x) / alpha
    expected = -through * torch.tensor(magnitudes, dtype=torch.float64)
    torch.testing.assert_close(moved, expected[:, None].expand_as(moved), rtol=1e-3, atol=0)


# --- what a guidance may ask for ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Probe(Guidance):
    """Asks a step something, writes the answer down, and moves nothing."""

    ask: Callable[[Step], Any] = field(repr=False, compare=False)
    answers: list[Any] = field(default_factory=list, repr=False, compare=False)

    def prepare(self, step: Step, memory: Any) -> None:
        self.answers.append(self.ask(step))

    def strength(self, level: Level) -> float:
        return 1.0

    def energy(self, seen: Estimate, index: Sequence[int], context: Any) -> Tensor:
        return torch.zeros(len(index))


def probe(run: Run) -> Probe:
    (found,) = (guidance for guidance, _ in run.guided if isinstance(guidance, Probe))
    return found


class OtherProbe(Probe):
    """A guidance of another class."""


def noises(probes: Sequence[type[Probe]] = (Probe,), **settings: Any) -> list[Tensor]:
    """What the last of some guidances gets, step by step."""
    guidances = [kind(lambda step: step.noise((2, 3))) for kind in probes]
    finished(toy_run(guidances=guidances, **settings))
    return guidances[-1].answers


def test_noise_depends_on_seed_level_size_and_guidance_and_on_nothing_else() -> None:
    first = noises()
    for again in (noises(micro_batch=1), noises((OtherProbe, Probe))):
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    one, two, three = first
    others = [
        two,
        three,
        *(each[0] for each in (noises(seed=1), noises((OtherProbe,)), noises((Probe, Probe)), noises(size=(7, 9)))),
    ]
    assert not any(torch.allclose(one, other) for other in others)


def test_noise_asked_for_twice_is_new_and_normal() -> None:
    run = toy_run(guidances=[Probe(lambda step: (step.noise((50, 50)), step.noise((50, 50))))], steps=1)
    finished(run)
    ((one, two),) = probe(run).answers
    assert not torch.allclose(one, two)
    assert one.dtype == run.canvas.dtype
    assert abs(float(one.mean())) < 0.1
    assert abs(float(one.std()) - 1) < 0.1


def test_asking_for_noise_leaves_the_runs_own_noise_alone() -> None:
    scheduler = ToyScheduler(eta=1.0)
    asked = toy_run(scheduler=scheduler, guidances=[Probe(lambda step: step.noise((7,)))])
    torch.testing.assert_close(finished(asked), finished(toy_run(scheduler=scheduler)), rtol=1e-12, atol=1e-12)


def test_an_estimate_of_the_runs_own_canvas_is_what_the_run_makes_of_it() -> None:
    asking, plain = toy_run(guidances=[Probe(lambda step: step.estimate(step.canvas, step.windows))]), toy_run()
    asking.step()
    plain.step()
    (estimate,) = probe(asking).answers
    assert plain.seen is not None
    assert torch.equal(estimate.x, plain.seen.x)
    assert torch.equal(estimate.x0, plain.seen.x0)
    assert (estimate.level, estimate.below) == (plain.seen.level, plain.seen.below)
    torch.testing.assert_close(estimate.prev, plain.canvas)


@pytest.mark.parametrize("pull", [Pull(), Pull("identity")])
def test_a_guided_estimate_is_what_a_guided_run_makes_of_it(pull: Pull) -> None:
    asking = toy_run(guidances=[Probe(lambda step: step.estimate(step.canvas, step.windows, [(pull, None)]))])
    guided = toy_run(guidances=[pull])
    asking.step()
    guided.step()
    (estimate,) = probe(asking).answers
    assert guided.seen is not None
    assert torch.equal(estimate.x, guided.seen.x)
    assert torch.equal(estimate.x0, guided.seen.x0)


def test_an_estimate_takes_any_canvas_and_grid() -> None:
    small = Grid((4, 6), (4, 4), (1, 1), (True, True))
    canvas = torch.full((2, 4, 6), 0.3, dtype=torch.float64)
    asking = toy_run(guidances=[Probe(lambda step: step.estimate(canvas, small))])
    asking.step()
    alone = toy_run((4, 6), stride=1, wrap=True)
    alone.canvas = canvas
    alone.step()
    (estimate,) = probe(asking).answers
    assert alone.seen is not None
    assert torch.equal(estimate.x0, alone.seen.x0)


def test_a_look_at_windows_is_unguided_and_without_graph() -> None:
    asking = toy_run(guidances=[Pull(), Probe(lambda step: (step.look([2, 0]), step.canvas, step.windows))])
    level = asking.level
    asking.step()
    ((seen, canvas, grid),) = probe(asking).answers
    windows = grid.crop(canvas, [2, 0])
    eps = ToyDenoiser()(windows, level, asking.parts.embeddings)
    assert torch.equal(seen.x, windows)
    torch.testing.assert_close(seen.eps, eps)
    assert not seen.x0.requires_grad


def test_below_is_the_next_main_level() -> None:
    run = toy_run(scheduler=ToyScheduler(corrector=True), guidances=[Probe(lambda step: step.look([0]).below)])
    finished(run)
    assert [below.index for below in probe(run).answers] == [2, 4, 5]


# --- canvases that are known, and painted beside the run ----------------------------------------------------


@dataclass(frozen=True)
class Knowing(Guidance):
    """Knows the clean canvas, a constant, in the first steps, and pulls strongly in all of them."""

    constant: float = 2.0
    steps: int = 2

    def known(self, step: Step, memory: Any) -> Known | None:
        return Known(torch.full_like(step.canvas, self.constant)) if step.level.step < self.steps else None

    def strength(self, level: Level) -> float:
        return 10.0

    def energy(self, seen: Estimate, index: Sequence[int], context: Any) -> Tensor:
        return seen.x0.square().flatten(1).sum(1)


def test_a_known_canvas_lies_under_the_first_noise_and_asks_no_denoiser() -> None:
    run = toy_run(guidances=[Knowing()], steps=4)
    noise = run.canvas / run.level.sigma
    seen = []
    for _ in range(2):
        run.step()
        torch.testing.assert_close(run.canvas, 2 * run.level.alpha + run.level.sigma * noise, rtol=1e-12, atol=1e-12)
        assert run.seen is not None
        seen.append(run.seen.x0)
        assert run.scalars == {}
    torch.testing.assert_close(torch.stack(seen), torch.full((2, *noise.shape), 2.0).to(noise), rtol=1e-12, atol=1e-12)
    assert isinstance(run.parts.denoiser, ToyDenoiser)
    assert run.parts.denoiser.forwards == []
    run.step()
    assert run.scalars
    assert sum(run.parts.denoiser.forwards) == 2 * len(run.windows)


@pytest.mark.parametrize("scheduler", [ToyScheduler(eta=1.0), ToyScheduler(corrector=True)])
@pytest.mark.parametrize("prediction", get_args(Prediction))
def test_under_any_solver_a_canvas_that_is_known_to_the_end_is_what_comes_out(
    scheduler: ToyScheduler, prediction: Prediction
) -> None:
    run = toy_run(denoiser=ToyDenoiser(prediction=prediction), scheduler=scheduler, guidances=[Knowing(steps=9)], steps=3)
    torch.testing.assert_close(finished(run), torch.full_like(run.canvas, 2.0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", DiffusersScheduler.names())
def test_from_any_scheduler_of_diffusers_the_denoiser_gets_what_is_known_and_noise_of_its_level(name: str) -> None:
    denoiser = ToyDenoiser(prediction="flow_prediction" if name.startswith("flow") else "epsilon")
    parts = {"denoiser": denoiser, "scheduler": DiffusersScheduler(name), "guidances": [Knowing(steps=3)]}
    run = toy_run((40, 40), **parts, stride=4, steps=8, micro_batch=50)
    while not denoiser.forwards:
        canvas, level = run.canvas, run.level
        run.step()
    noise = (canvas - 2 * level.alpha) / level.sigma
    assert level.step == 3
    assert abs(float(noise.mean())) < 0.1
    assert abs(float(noise.std()) - 1) < 0.05


@pytest.mark.parametrize("steps", [4, 10])
@pytest.mark.parametrize("name", DiffusersScheduler.names())
def test_from_any_scheduler_of_diffusers_what_is_known_lies_under_the_noise_of_the_first_level(name: str, steps: int) -> None:
    """The canvas is alpha x0 + sigma noise, although solvers start from noise alone, which is 1 or more of it."""
    denoiser = ToyDenoiser(prediction="flow_prediction" if name.startswith("flow") else "epsilon")
    run = toy_run(denoiser=denoiser, scheduler=DiffusersScheduler(name), guidances=[Knowing()], steps=steps)
    noise, level = denoiser.noise(run.windows.size, torch.Generator().manual_seed(run.seed)).to(run.canvas), run.level
    run._stage()
    assert run.seen is not None
    torch.testing.assert_close(run.seen.x, 2 * level.alpha + level.sigma * noise, rtol=1e-12, atol=1e-12)


def test_seeds_that_differ_begin_with_other_noise() -> None:
    """Seeds have 64 bits, and torch's generator reads the last 32 of them."""
    seeds = [5, 5 + (1 << 32), 5 + (2 << 32), 5 + (1 << 63), 5 << 32, (1 << 64) - 1, (1 << 32) - 1]
    canvases = [toy_run(seed=seed).canvas for seed in seeds]
    assert not any(torch.equal(one, other) for one, other in combinations(canvases, 2))
    assert torch.equal(canvases[0], toy_run(seed=5).canvas)


@dataclass(frozen=True)
class Draws(Guidance):
    """Keeps whatever noise it can draw in a run: in both of its methods, and on canvases of its own, painted and estimated."""

    drawn: list[Tensor]
    inner: "Draws | None" = None

    def known(self, step: Step, memory: Any) -> Known | None:
        self.drawn.append(step.noise((8,)))
        if not step.level.index:
            self.drawn.append(step.canvas.flatten()[:8] / step.level.sigma)
            if self.inner:
                step.paint(step.windows, [self.inner])
        return None

    def prepare(self, step: Step, memory: Any) -> Any:
        self.drawn.append(step.noise((8,)))
        if self.inner:
            step.estimate(step.canvas, step.windows, [(self.inner, None)])
        return None

    def strength(self, level: Level) -> float:
        return 1.0

    def energy(self, seen: Estimate, index: Sequence[int], context: Any) -> Tensor:
        return seen.x0.new_zeros(len(index))


def test_no_two_draws_of_a_run_are_the_same() -> None:
    """Not those of two guidances of one class, nor of two methods, nor of canvases as large as the run's own."""
    drawn: list[Tensor] = []
    finished(toy_run(guidances=[Draws(drawn, Draws(drawn)), Draws(drawn, Draws(drawn))], steps=2))
    assert len(drawn) == 2 * (1 + 2 * 3) + 2 * (1 + 2 * 2)  # of both guidances, and of those on the canvases they paint
    alike = [torch.allclose(one, other) for one, other in combinations(drawn, 2)]
    assert sum(alike) == 1  # both guidances are shown the first canvas


def test_the_first_of_several_that_know_is_believed() -> None:
    found = finished(toy_run(guidances=[Pull(), Knowing(3.0, steps=9), Knowing(steps=9)]))
    torch.testing.assert_close(found, torch.full_like(found, 3.0), rtol=1e-9, atol=1e-9)


def test_a_known_canvas_of_another_shape_is_told() -> None:
    class Wrong(Knowing):
        def known(self, step: Step, memory: Any) -> Known | None:
            return Known(step.canvas[:, 1:])

    with pytest.raises(ContractError, match=r"Wrong.known returned shape \(2, 5, 9\), expected \(2, 6, 9\)"):
        toy_run(guidances=[Wrong()]).step()


def test_a_known_canvas_takes_the_runs_type_and_must_be_finite() -> None:
    class Double(Knowing):
        def known(self, step: Step, memory: Any) -> Known | None:
            return Known(torch.full(step.canvas.shape, self.constant, dtype=torch.float64))

    single = Runtime(accelerator="cpu")
    run = toy_run(guidances=[Double(steps=9)], runtime=single)
    run.step()
    assert run.canvas.dtype == torch.float32
    with pytest.raises(NotFiniteError, match=r"the canvas that Double\.known returned at step 1 holds NaN or infinity"):
        toy_run(guidances=[Double(float("nan"))], runtime=single).step()


@dataclass(frozen=True)
class Left(Guidance):
    """Knows the first columns to the end."""

    columns: int = 5
    constant: float = 2.0

    def known(self, step: Step, memory: Any) -> Known | None:
        where = torch.zeros(step.windows.size, dtype=torch.bool)
        where[:, : self.columns] = True
        return Known(torch.full_like(step.canvas, self.constant), where)

    def strength(self, level: Level) -> float:
        return 0.0

    def energy(self, seen: Estimate, index: Sequence[int], context: Any) -> Tensor:
        return seen.x0.new_zeros(len(index))


@pytest.mark.parametrize("scheduler", [ToyScheduler(), ToyScheduler(eta=1.0), ToyScheduler(corrector=True)])
def test_what_is_known_is_known_after_every_stage_and_comes_out_exactly(scheduler: ToyScheduler) -> None:
    run = toy_run((6, 12), scheduler=scheduler, guidances=[Left(), Pull()], steps=4)
    while not run.done:
        run._stage()
        noise = (run.canvas - 2.0 * run.level.alpha)[:, :, :5] / max(run.level.sigma, 1e-9)
        assert run.done or 0.5 < float(noise.std()) < 1.5  # noise of its level lies over what is known
    assert torch.equal(run.canvas[:, :, :5], torch.full_like(run.canvas[:, :, :5], 2.0))
    assert not torch.isclose(run.canvas[:, :, 5:], torch.tensor(2.0).to(run.canvas)).any()


@pytest.mark.parametrize("guidances", [[], [Pull()], [Pull("identity")]], ids=["plain", "full", "identity"])
def test_windows_that_are_known_all_over_are_not_computed(guidances: list[Guidance]) -> None:
    """Of windows of 4 columns at 0, 2, 4, 6 and 8, those at 0 and 2 lie in the first 6 columns."""
    run = toy_run((4, 12), guidances=[Left(6), *guidances], steps=2)
    denoiser = run.parts.denoiser
    assert isinstance(denoiser, ToyDenoiser)
    finished(run)
    passes = 2 if guidances and guidances[0].jacobian == "full" else 1
    assert sum(denoiser.forwards) == 2 * 3 * passes


def test_what_is_unknown_is_painted_as_if_its_windows_were_alone() -> None:
    """A literal loop: the known cells are given, the others are the mean of DDIM's windows."""
    run = toy_run((4, 12), guidances=[Left(6)], steps=3)
    denoiser, windows = ToyDenoiser(), run.windows
    noise = run.canvas / run.level.sigma
    x = run.canvas + run.level.alpha * 2.0 * (torch.arange(12) < 6).double()
    for level, below in pairwise(run.solver.levels):
        value, count = torch.zeros_like(x), torch.zeros_like(x)
        for i in range(len(windows)):
            windows.put(value, i, denoiser(windows.crop(x, [i]), level, run.parts.embeddings)[0])
            windows.put(count, i, torch.ones(2, 4, 4, dtype=x.dtype))
        eps = value / count
        x = below.alpha * (x - level.sigma * eps) / level.alpha + below.sigma * eps
        x[:, :, :6] = 2.0 * below.alpha + below.sigma * noise[:, :, :6]
    x[:, :, :6] = 2.0
    torch.testing.assert_close(finished(run), x, rtol=1e-9, atol=1e-9)


def test_where_several_know_a_cell_the_first_counts() -> None:
    run = toy_run((6, 12), guidances=[Left(4, 1.0), Left(8, 3.0)], steps=2)
    canvas = finished(run)
    assert (canvas[:, :, :4] == 1).all()
    assert (canvas[:, :, 4:8] == 3).all()
    assert not (canvas[:, :, 8:] == 3).any()
    run = toy_run((6, 12), guidances=[Left(4, 1.0), Knowing(3.0, steps=9)], steps=2)
    canvas = finished(run)
    assert torch.equal(canvas, torch.where(torch.arange(12) < 4, 1.0, 3.0).expand_as(canvas).to(canvas))


def test_painting_ends_when_the_run_is_asked_to_stop() -> None:
    def asked(step: Step) -> Tensor:
        run.stop()
        return step.paint(Grid((4, 6), (4, 4), (2, 2), (False, False)), ())

    run = toy_run(guidances=[Probe(asked)], steps=5)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 1 of 5 of a smaller canvas"):
        run.step()
    assert run.level.step == 0


@pytest.mark.parametrize("scheduler", [ToyScheduler(eta=1.0), ToyScheduler(corrector=True)])
def test_what_is_painted_is_a_run_of_its_own_that_leaves_this_one_alone(scheduler: ToyScheduler) -> None:
    grid, pull = Grid((4, 6), (4, 4), (2, 2), (True, True)), Pull("identity")
    asking = toy_run(guidances=[Probe(lambda step: step.paint(grid, [pull]))], scheduler=scheduler)
    plain = finished(toy_run(scheduler=scheduler))
    torch.testing.assert_close(finished(asking), plain, rtol=1e-12, atol=1e-12)
    first, second, _ = probe(asking).answers
    assert not torch.allclose(first, second)
    alone = toy_run((4, 6), guidances=[pull], scheduler=scheduler, wrap=True, seed=7)
    assert torch.equal(asking.paint(grid, [pull], seed=7), finished(alone))


def test_what_is_painted_is_guided_by_exactly_what_is_given_which_may_be_the_runs_other_guidances() -> None:
    grid, pull = Grid((4, 6), (4, 4), (2, 2), (False, False)), Pull("identity", to=3)
    asking = toy_run(guidances=[pull, Probe(lambda step: step.paint(grid, step.others))], steps=1)
    given = toy_run(guidances=[Probe(lambda step: step.paint(grid, [pull]))], steps=1)
    asking.step()
    given.step()
    assert torch.equal(probe(asking).answers[0], probe(given).answers[0])


def test_painting_without_guidances_says_what_changed() -> None:
    run = toy_run(guidances=[Probe(lambda step: step.paint(Grid((4, 6), (4, 4), (2, 2), (False, False))))])  # type: ignore[call-arg]
    with pytest.raises(ContractError, match=r"write step.paint\(windows, step.others\)"):
        run.step()


# --- runs that keep to themselves ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Remembering(Guidance):
    """Pulls to the mean of what it has seen so far: its memory decides what it does."""

    def begin(self, grid: Grid, levels: Sequence[Level]) -> dict[str, Any]:
        return {"mean": torch.zeros((), dtype=torch.float64), "steps": 0, "log": []}

    def prepare(self, step: Step, memory: dict[str, Any]) -> Tensor:
        memory["steps"] += 1
        memory["log"].append(step.level.index)
        memory["mean"] += (step.canvas.mean() - memory["mean"]) / memory["steps"]
        return memory["mean"] * len(memory["log"])

    def strength(self, level: Level) -> float:
        return 0.1

    def energy(self, seen: Estimate, index: Sequence[int], context: Tensor) -> Tensor:
        return ((seen.x0 - context) ** 2).flatten(1).sum(1)


SCHEDULERS: list[Scheduler] = [
    ToyScheduler(eta=0.8, corrector=True),
    DiffusersScheduler("ddpm"),
    DiffusersScheduler("dpm++_2m"),
    DiffusersScheduler("dpm++_2m_sde"),
    DiffusersScheduler("euler_a"),
    DiffusersScheduler("heun"),
    DiffusersScheduler("unipc"),
    DiffusersScheduler("pndm"),
]


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=repr)
@pytest.mark.parametrize("broken_at", [0, 2, 3])
def test_a_restored_run_goes_on_to_the_same_bits(scheduler: Scheduler, broken_at: int) -> None:
    def fresh() -> Run:
        return toy_run(scheduler=scheduler, guidances=[Remembering()], steps=5, seed=3)

    unbroken, broken, resumed = fresh(), fresh(), fresh()
    expected = finished(unbroken)
    for _ in range(broken_at):
        broken.step()
    state = broken.state()
    assert torch.equal(finished(broken), expected)  # ...and going on does not change the state that was taken
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    resumed.step()  # what it did before is forgotten
    resumed.restore(torch.load(file, weights_only=True))
    assert resumed.level.step == broken_at
    assert torch.equal(finished(resumed), expected)
    for _ in range(2):  # nor does restoring it
        resumed.restore(state)
        assert torch.equal(finished(resumed), expected)


@pytest.mark.parametrize("name", ["dpm++_2m", "euler_a"])
def test_two_interleaved_runs_of_one_sampler_do_not_touch_each_other(tiny: Model, cpu: Runtime, name: str) -> None:
    sampler = Sampler(
        tiny,
        scheduler=DiffusersScheduler(name),
        fuser=MultiDiffusion(),
        guidances=[Remembering()],
        runtime=cpu,
    )

    def begin(prompt: str, width: int, seed: int) -> Run:
        return sampler.begin(prompt, height=16, width=width, steps=3, seed=seed)

    lake, city = begin("a lake", 24, 1), begin("a city", 20, 2)
    while not (lake.done and city.done):
        lake.step()
        city.step()
    assert torch.equal(lake.canvas, finished(begin("a lake", 24, 1)))
    assert torch.equal(city.canvas, finished(begin("a city", 20, 2)))


@pytest.mark.parametrize("guidances", [[], [Pull(), Pull("identity")]], ids=["plain", "guided"])
def test_the_split_into_micro_batches_does_not_matter(guidances: list[Pull]) -> None:
    whole = finished(toy_run((7, 11), guidances=guidances, micro_batch=100))
    for micro_batch in (1, 2, 3, 7):
        split = finished(toy_run((7, 11), guidances=guidances, micro_batch=micro_batch))
        torch.testing.assert_close(split, whole, rtol=1e-12, atol=1e-12)


def test_a_steps_canvas_is_not_written_to_afterwards() -> None:
    run = toy_run(guidances=[Pull(), Pull("identity")], scheduler=ToyScheduler(corrector=True))
    before, copy = run.canvas, run.canvas.clone()
    run.step()
    assert torch.equal(before, copy)


# --- parts that fail ----------------------------------------------------------------------------------------


class Spy(Denoiser):
    """A denoiser whose predictions pass through a function."""

    def __init__(self, denoiser: Denoiser, change: Callable[[Tensor], Any]) -> None:
        self.denoiser, self.change = denoiser, change
        self.channels, self.window, self.training = denoiser.channels, denoiser.window, denoiser.training

    def modules(self) -> tuple[()]:
        return ()

    def encode(self, scene: Scene) -> Any:
        return self.denoiser.encode(scene)

    def condition(self, embeddings: Any, grid: Grid, index: Sequence[int]) -> Any:
        return self.denoiser.condition(embeddings, grid, index)

    def __call__(self, x: Tensor, level: Level, condition: Any) -> Any:
        return self.change(self.denoiser(x, level, condition))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("guidances", [[], [Pull()]], ids=["plain", "guided"])
def test_a_prediction_that_is_not_finite_stops_the_run_and_names_the_step(bad: float, guidances: list[Pull]) -> None:
    def spoil(prediction: Tensor) -> Tensor:
        return prediction.index_fill(-1, torch.tensor([2]), bad)  # one column of each window

    run = toy_run((4, 8), guidances=guidances)
    run.step()
    use(run, denoiser=Spy(run.parts.denoiser, spoil))
    level = run.level
    message = f"the prediction at step 2 of 3 (level 1, t = {level.t}) holds NaN or infinity"
    with pytest.raises(NotFiniteError, match=re.escape(message)):
        run.step()
    assert run.level == level  # nothing was stepped


def test_a_denoiser_that_returns_another_shape_is_named() -> None:
    run = toy_run((4, 8), denoiser=Spy(ToyDenoiser(), lambda prediction: prediction[:, :1]))
    message = "Spy returned shape (3, 1, 4, 4), expected (3, 2, 4, 4); a prediction has the shape of its windows"
    with pytest.raises(ContractError, match=re.escape(message)):
        run.step()


def test_a_denoiser_that_returns_no_tensor_is_named() -> None:
    run = toy_run((4, 8), denoiser=Spy(ToyDenoiser(), lambda prediction: (prediction,)))
    message = "Spy returned tuple, expected a tensor (3, 2, 4, 4); a prediction has the shape of its windows"
    with pytest.raises(ContractError, match=re.escape(message)):
        run.step()


def test_a_solver_that_returns_another_shape_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    run = toy_run()
    step = run.solver.step
    monkeypatch.setattr(run.solver, "step", lambda *arguments: step(*arguments)[None])
    message = f"{type(run.solver).__name__}.step returned shape (1, 2, 6, 9), expected (2, 6, 9); it must return the canvas"
    with pytest.raises(ContractError, match=re.escape(message)):
        run.step()


@dataclass(frozen=True)
class Broken(Guidance):
    """An energy of another shape."""

    reduce: Callable[[Tensor], Any]
    jacobian: Jacobian = "full"

    def strength(self, level: Level) -> float:
        return 1.0

    def energy(self, seen: Estimate, index: Sequence[int], context: Any) -> Any:
        return self.reduce(seen.x0)


@pytest.mark.parametrize("jacobian", ["full", "identity"])
@pytest.mark.parametrize(
    ("reduce", "message"),
    [
        (
            torch.sum,
            "Broken.energy returned shape () for 3 windows at level 0; "
            "it must return one number a window, (3,): sum over all axes but the first",
        ),
        (lambda x0: x0.flatten(1), "Broken.energy returned shape (3, 32) for 3 windows at level 0; it must return one number"),
        (lambda x0: 1.0, "Broken.energy returned float at level 0; it must return a tensor"),
    ],
)
def test_an_energy_of_another_shape_is_named(reduce: Callable[[Tensor], Any], message: str, jacobian: Jacobian) -> None:
    run = toy_run((4, 8), guidances=[Broken(reduce, jacobian)])
    with pytest.raises(ContractError, match=re.escape(message)):
        run.step()


@pytest.mark.parametrize("wrap", [False, True])
def test_a_step_decodes_and_encodes_canvases_of_any_size(wrap: bool) -> None:
    small = torch.randn(4, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def there_and_back(step: Step) -> tuple[Tensor, Tensor]:
        picture = step.decode(small)
        return picture, step.encode(picture)

    asked = Probe(there_and_back)
    run = toy_run((8, 8), denoiser=ToyDenoiser(channels=4), codec=ToyCodec(), guidances=[asked], wrap=wrap)
    run.step()
    ((picture, back),) = asked.answers
    torch.testing.assert_close(picture, ToyCodec().decode(small[None])[0])
    torch.testing.assert_close(back, small)
    plain = Probe(there_and_back)
    toy_run((8, 8), guidances=[plain]).step()  # without a codec the canvas is the picture
    assert all(torch.equal(part, small) for part in plain.answers[0])


def test_a_fuser_is_asked_before_a_run_and_not_for_smaller_canvases(tiny: Model, cpu: Runtime) -> None:
    asked: list[int] = []

    class Choosy(Fuser):
        def begin(self, windows: Windows, levels: Sequence[Level]) -> None:
            assert levels[-1].progress == 1
            asked.append(len(windows))
            if len(windows) < 3:
                raise SettingError(f"{len(windows)} windows came")

        def fuse(self, rows: Tensor, windows: Windows, level: Level) -> Tensor:
            return Mean().fuse(rows, windows, level)

    sampler = Sampler(tiny, fuser=Choosy(), guidances=["head_start"], runtime=cpu)
    with pytest.raises(SettingError, match="1 windows came"):
        sampler.plan("a lake", height=16, width=16).check()
    with pytest.raises(SettingError, match="2 windows came"):
        Sampler(tiny, fuser=Choosy(), runtime=cpu).begin("a lake", height=16, width=24, steps=2)
    asked.clear()
    finished(sampler.begin("a lake", height=32, width=32, steps=2))
    assert asked == [9]


def test_a_canvas_that_is_painted_is_watched_step_by_step() -> None:
    run, path = toy_run((8, 8), scheduler=ToyScheduler(corrector=True)), list[Estimate]()
    windows = run.windows.on((4, 6))
    painted = run.paint(windows, [Pull("identity")], 5, path.append)
    alone = toy_run((4, 6), scheduler=ToyScheduler(corrector=True), guidances=[Pull("identity")], seed=5)
    for estimate in path:  # those of the main stages, and not of the corrector's
        passed = alone.pass_over(alone.canvas, alone.windows, alone.guided, alone.level)
        expected = alone.model_pass.read(passed.x, passed.pred, alone.level)
        assert torch.equal(estimate.x0, expected.x0)
        assert estimate.level == alone.level
        alone.step()
    assert torch.equal(painted, alone.canvas)
    assert len(path) == 3
    assert torch.equal(painted, run.paint(windows, [Pull("identity")], 5))


def test_a_fuser_that_returns_no_canvas_is_named() -> None:
    class Flat(Fuser):
        def fuse(self, rows: Tensor, windows: Windows, level: Level) -> Tensor:
            return rows.new_zeros((1, *windows.size))

    run = toy_run()
    use(run, fuser=Flat())
    with pytest.raises(
        ContractError, match=r"Flat.fuse returned shape \(1, 6, 9\), expected \(2, 6, 9\); it must return one canvas"
    ):
        run.step()


@pytest.mark.parametrize(
    ("tilt", "message"),
    [
        (-1.0, r"Mean.weight sums to -50 over 53 of 54 cells, the first at \(0, 1\); the weights over each cell must sum to"),
        (float("inf"), r"Mean.weight returned shape \(1, 4, 4\) for 8 windows of \(4, 4\); .*, all finite"),
    ],
)
def test_weights_that_are_not_finite_or_cancel_are_named(tilt: float, message: str) -> None:
    run = toy_run()
    use(run, fuser=Mean(tilt=tilt))
    with pytest.raises(ContractError, match=message):
        run.step()


def test_memories_are_restored_to_the_runs_device(monkeypatch: pytest.MonkeyPatch) -> None:
    run = toy_run(guidances=[Remembering()])
    run.step()
    state = run.state()
    monkeypatch.setattr(Runtime, "device", torch.device("meta"))
    run.restore(state)
    ((_, memory),) = run.guided
    assert run.canvas.device == memory["mean"].device == torch.device("meta")
    assert (memory["steps"], memory["log"]) == (1, [0])
