"""DiffCollage against a literal sum over the factors of a graph, and the laws that make it that method."""

from collections.abc import Sequence
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, final

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from panokit import (
    Denoiser,
    Grid,
    Guidance,
    Lattice,
    Level,
    Model,
    Regions,
    Run,
    Runtime,
    Sampler,
    Scene,
    SettingError,
    Training,
    Union,
    Windows,
    load_model,
    recipe,
)
from panokit.cli import main
from panokit.testing import Check, conforms
from panokit.testing.families import tiny_controlnet, tiny_pipeline
from panokit.testing.tiny import tiny_model
from panokit.testing.toys import Pull, ToyDenoiser, toy_run
from panokit_diffcollage import Collage
from panokit_diffcollage.overlaps import Overlaps, pieces
from panokit_msd import MSDGuidance
from panokit_multidiffusion import MultiDiffusion
from panokit_syncdiffusion import SyncDiffusion

UNIFORM = {"plugin": "multidiffusion", "weights": "uniform"}


@conforms(lambda: Collage(ToyDenoiser()))
def test_diffcollage(check: Check) -> None:
    check()


@conforms(lambda: Collage(tiny_model(window=16).denoiser))
def test_diffcollage_of_stable_diffusion(check: Check) -> None:
    check()


@final
class Chain(Denoiser):
    r"""Predicts less the score of a chain, $C^{-1} x$, in which cells that are $k$ apart have the correlation $0.9^k$."""

    channels, window, training = 1, (6,), Training()

    def modules(self) -> Sequence[nn.Module]:
        return ()

    def encode(self, scene: Scene) -> None:
        return None

    def condition(self, embeddings: None, windows: Windows, index: Sequence[int]) -> None:
        return None

    def __call__(self, x: Tensor, level: Level, condition: None) -> Tensor:
        place = torch.arange(x.shape[-1], dtype=x.dtype)
        return x @ torch.linalg.inv(0.9 ** (place[:, None] - place).abs())


def finished(run: Run) -> Tensor:
    while not run.done:
        run.step()
    return run.canvas


def factors(size: int, window: int, starts: Sequence[int], wrap: bool) -> list[tuple[int, int, int]]:
    """The factors of a chain or a loop: where each starts, how many cells it has, and its sign."""
    chain = [(start, window, 1) for start in starts]
    for start, following in zip(starts, [*starts[1:], *([starts[0] + size] if wrap and len(starts) > 1 else [])], strict=False):
        chain.append((following % size, start + window - following, -1))
    return chain


def graph(canvas: Tensor, windows: Lattice, denoiser: Denoiser, level: Level, embeddings: Any) -> Tensor:
    """The sum over the factors of the canvas, each cut out, denoised alone, and added in its place with its sign."""
    total = torch.zeros_like(canvas)
    starts = [sorted(set(along)) for along in zip(*windows.origins, strict=True)]
    chains = [factors(*axis) for axis in zip(windows.size, windows.window, starts, windows.wrap, strict=True)]
    for factor in product(*chains):
        firsts, shape = tuple(first for first, _, _ in factor), tuple(cells for _, cells, _ in factor)
        along = (torch.arange(cells) + first for first, cells in zip(firsts, shape, strict=True))
        index = torch.meshgrid(*(place % size for place, size in zip(along, windows.size, strict=True)), indexing="ij")
        place: Any = (slice(None), *index)
        condition = denoiser.condition(embeddings, Overlaps(windows.size, shape, shape, windows.wrap, firsts=(firsts,)), [0])
        total[place] += prod(sign for _, _, sign in factor) * denoiser(canvas[place][None], level, condition)[0]
    return total


def by_factors(run: Run) -> Tensor:
    """The canvas of a run at its end, by DDIM steps with the sum over factors."""
    assert isinstance(run.windows, Lattice)
    assert isinstance(run.parts.denoiser, Collage)
    canvas = run.canvas
    for level, below in zip(run.solver.levels, run.solver.levels[1:], strict=False):
        eps = graph(canvas, run.windows, run.parts.denoiser.inner, level, run.parts.embeddings)
        canvas = below.alpha * (canvas - level.sigma * eps) / level.alpha + below.sigma * eps
    return canvas


@pytest.mark.parametrize(
    ("size", "stride", "wrap"),
    [
        ((4, 10), 2, False),  # a chain
        ((4, 10), 2, True),  # a loop
        ((7, 9), 3, False),  # a grid; its last windows are moved back to the border
        ((8, 9), 2, True),  # a torus, of nine windows of which the last two overlap more
        ((6, 11), 1, False),  # up to sixteen windows over a cell
        ((4, 4), 2, False),  # one window
        ((4, 6, 6), 2, False),  # three axes
    ],
)
def test_it_is_the_sum_over_a_factor_graph(size: tuple[int, ...], stride: int, wrap: bool) -> None:
    run = toy_run(size, denoiser=Collage(ToyDenoiser((4,) * len(size))), stride=stride, wrap=wrap, steps=4, seed=3)
    expected = by_factors(run)
    torch.testing.assert_close(finished(run), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("wrap", [False, True])
def test_a_factor_takes_the_texts_of_its_own_cells(wrap: bool) -> None:
    prompt = Regions((((0, 0, 0.5, 1), "a lake"),), elsewhere="a city")
    run = toy_run((4, 12), denoiser=Collage(ToyDenoiser()), stride=2, wrap=wrap, steps=4, prompt=prompt)
    expected = by_factors(run)
    torch.testing.assert_close(finished(run), expected, rtol=0, atol=1e-4)  # shares of texts are in float32


@given(st.data())
def test_each_factor_counts_once_in_the_mean_and_the_counts_of_a_window_sum_to_1(data: st.DataObject) -> None:
    """On any axis: a cell that d windows cover has d windows and d - 1 overlaps of neighbours."""
    window = data.draw(st.integers(2, 9))
    size = data.draw(st.integers(window, 4 * window))
    wrap = data.draw(st.booleans())
    stride, shift = data.draw(st.integers(1, window - 1)), data.draw(st.integers(0, window))
    starts = tuple(start for (start,) in Grid((size,), (window,), (stride,), (wrap,), shift=(shift,)).origins)
    cover, total = torch.zeros(size), torch.zeros(size)
    for start in starts:
        cover[(torch.arange(window) + start) % size] += 1
    mean: dict[tuple[int, int], Tensor] = {}
    for start in starts:
        own = torch.zeros(window)
        for cells, counts in pieces(size, window, tuple(sorted(starts)), start, wrap):
            own[cells] += counts
            place = (torch.arange(window)[cells] + start) % size
            factor = mean.setdefault((int(place[0]), len(place)), torch.zeros(size))
            factor[place] += counts / cover[place]
            total[place] += counts / cover[place]
        assert (own == 1).all()
    torch.testing.assert_close(total, torch.ones(size))
    assert len(mean) == len(starts) + (len(starts) - (not wrap) if len(starts) > 1 else 0)
    for (first, cells), factor in mean.items():
        place = (torch.arange(cells) + first) % size
        torch.testing.assert_close(factor[place], torch.full((cells,), 1.0 if cells == window else -1.0))


def test_it_is_the_model_where_one_window_is_the_canvas(tiny: Model, cpu: Runtime) -> None:
    kwargs: dict[str, Any] = {"height": 16, "width": 16, "steps": 3, "seed": 2, "progress": False}
    one = Sampler(Model(Collage(tiny.denoiser), tiny.codec, "collage"), runtime=cpu)("a lake", **kwargs)
    assert torch.equal(one.latents, Sampler(tiny, runtime=cpu)("a lake", **kwargs).latents)


def test_it_is_exact_where_the_picture_is_a_chain() -> None:
    """Numbers of which each depends on the one before it are a chain: its score is that of the factors, no mean of windows."""

    grid, level = Grid((15,), (6,), (4,), (False,)), Level(0, 0, 1.0, 0.0, 0, 1)  # no noise: noise would link all cells
    x = torch.randn(1, 15, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def fused(denoiser: Denoiser) -> Tensor:
        pred = denoiser(grid.crop(x), level, denoiser.condition(None, grid, range(len(grid))))
        return MultiDiffusion("uniform").fuse(pred, grid, level)

    exact = Chain()(x[None], level, None)[0]
    torch.testing.assert_close(fused(Collage(Chain())), exact, rtol=0, atol=1e-9)
    assert (fused(Chain()) - exact).abs().max() > 0.1


@pytest.mark.parametrize("guidances", [[MSDGuidance()], [SyncDiffusion(weight=0.1)], [Pull(), MSDGuidance()]], ids=str)
def test_guidances_work_with_it_and_a_resumed_run_has_the_same_bits(
    tiny: Model, cpu: Runtime, guidances: list[Guidance]
) -> None:
    model = Model(Collage(tiny.denoiser), tiny.codec, "collage")

    def begin() -> Run:
        return Sampler(model, fuser=UNIFORM, guidances=guidances, runtime=cpu).begin(
            "a lake", height=32, width=48, steps=4, wrap="x", seed=2
        )

    run, resumed = begin(), begin()
    for _ in range(2):
        run.step()
    resumed.restore(run.state())
    assert torch.isfinite(finished(run)).all()
    assert torch.equal(finished(resumed), run.canvas)


def test_overlaps_of_a_pipeline_are_pictures_of_their_own_size() -> None:
    """The call of a pipeline is told the size of what it denoises, which SDXL is conditioned on."""
    inner = load_model(tiny_pipeline("sdxl"), window=16).denoiser
    embeddings = inner.encode(Scene("a lake", guidance_scale=5.0))
    part = Overlaps((16, 32), (16, 8), (16, 8), (False, False), firsts=((0, 8),))
    (call,) = inner.condition(embeddings, part, [0]).calls
    assert (call.options["height"], call.options["width"]) == (32, 16)
    (call,) = inner.condition(embeddings, Grid((16, 32), (16, 16), (8, 8), (False, False)), [0]).calls
    assert (call.options["height"], call.options["width"]) == (32, 32)


def test_overlaps_are_shown_their_part_of_a_control_picture() -> None:
    """On a ring all windows have the same factors: what is shown to one of them is shown to another where it is moved."""
    denoiser = Collage(load_model(tiny_controlnet("sd"), window=8).denoiser)
    windows, level = Grid((8, 16), (8, 8), (4, 4), (False, True)), Level(0, 500, 0.8, 0.6, 0, 1)
    picture = torch.rand(3, 16, 32, generator=torch.Generator().manual_seed(0))
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))

    def pred(shown: Tensor, i: int) -> Tensor:
        embeddings = denoiser.encode(Scene("a lake", guidance_scale=5.0, fields={"control_image": shown}))
        with torch.no_grad():
            return denoiser(x, level, denoiser.condition(embeddings, windows, [i]))

    torch.testing.assert_close(pred(picture, 1), pred(picture.roll(16, -1), 3), rtol=0, atol=1e-5)
    assert (pred(picture, 1) - pred(picture, 3)).abs().max() > 1e-3


def test_overlaps_have_finer_and_coarser_cells() -> None:
    part = Overlaps((8, 16), (4, 2), (4, 2), (False, True), firsts=((4, 14), (0, 2)))
    assert part.refined(2).coarsened(2) == part
    assert part.refined(2).origins == ((8, 28), (0, 4))
    canvas = torch.arange(128).view(1, 8, 16)
    assert part.crop(canvas)[0, 0, 0].tolist() == [78, 79]


def test_a_picture_is_made_again_from_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--model", "diffcollage", "--model.model", "landscapes", "--fuser.weights=uniform"]
    words += ["--height", "128", "--width", "192", "--steps", "2"]
    assert main(["generate", "a lake", *words, "--out", "a.png"]) == 0
    assert recipe.read("a.png")["model"] == {"plugin": "diffcollage", "model": "landscapes"}
    assert main(["rerun", "a.png", "--out", "b.png"]) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stride": 128}, "two neighbours of 16 cells lie 16 cells apart: choose a smaller stride, such as half a window"),
        ({"stride": 40}, r"overlaps of 16 x 11 cells, .* a multiple of 4 cells; the nearest is 12\): choose another stride"),
        ({"layout": "spotdiffusion"}, "lie 16 cells apart"),
        (
            {"model": {"plugin": "diffcollage", "model": "scalecrafter"}},
            "scalecrafter is made of another model already, and DiffCollage takes a plain one: name that",
        ),
        (
            {"model": {"plugin": "diffcollage", "modle": "landscapes"}},
            "diffcollage has no setting 'modle': did you mean 'model'",
        ),
    ],
)
def test_what_cannot_work_is_said_in_a_line(cpu: Runtime, settings: dict[str, Any], message: str) -> None:
    parts = {name: settings.pop(name) for name in ("model", "layout") if name in settings}
    with pytest.raises(SettingError, match=message) as error:
        Sampler(**{"model": "diffcollage", **parts}, fuser=UNIFORM, runtime=cpu)(
            "a lake", height=128, width=512, steps=1, progress=False, **settings
        )
    assert "\n" not in str(error.value)


def test_windows_without_rows_and_columns_are_refused() -> None:
    grid = Grid((4, 8), (4, 4), (2, 2), (False, False))
    with pytest.raises(SettingError, match="needs windows in rows and columns, and the layout made a Union: use the layout"):
        Collage(ToyDenoiser()).condition(0.5, Union((grid,)), [0])
    dilated = Grid((7, 7), (4, 4), (1, 1), (False, False), dilation=(2, 2))
    with pytest.raises(SettingError, match="the layout made a dilated Grid"):
        Collage(ToyDenoiser()).condition(0.5, dilated, [0])
