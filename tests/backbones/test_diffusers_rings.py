"""A window that is a ring: rolled noise makes the rolled prediction and the rolled picture, family by family."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from panokit import Grid, Model, Runtime, Sampler, Scene, SettingError, load_model
from panokit.backbones.diffusers import rotary
from panokit.backbones.diffusers.rotary import Rounding, turns_around
from panokit.errors import FallbackWarning, ModelError
from panokit.rings import Ring, circular
from panokit.settings import Execution
from panokit.testing.families import tiny_controlnet, tiny_pipeline
from panokit_diffcollage import DiffCollage
from panokit_msd import MSDGuidance

Made = Callable[..., Any]
Leave = Callable[[bool], None]
BY_CONVOLUTIONS = ("sd", "sd2", "sdxl", "sana", "wan")
"""Families whose texts have no places. The places of Wan's cells are rotary, and its texts are read by another attention."""
WITH_TEXTS = ("flux", "chroma", "flux2", "klein", "krea2", "z_image", "lumina2", "qwen_image")
"""Families whose texts lie in one row with the cells."""


def window(name: str) -> tuple[int, int]:
    return (32, 32) if name == "sana" else (16, 32)


def error(x: Tensor, y: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((x - y).abs().max() / y.abs().max())


def predict(model: Model, x: Tensor, wrap: tuple[bool, bool] = (False, True)) -> Tensor:
    """The prediction for a canvas of one window."""
    denoiser: Any = model.denoiser
    size = denoiser.window
    windows = Grid(size, size, size, (False,) * (len(size) - 2) + wrap)
    with torch.no_grad():
        embeddings = denoiser.encode(Scene("a lake", "", denoiser.guidance_scale))
        level = denoiser.training.own(4, torch.device("cpu")).levels[1]
        return denoiser(x, level, denoiser.condition(embeddings, windows, [0]))


def noise(model: Model, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, model.denoiser.channels, *model.denoiser.window, generator=generator)


# --- predictions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BY_CONVOLUTIONS)
def test_rolled_noise_makes_the_rolled_prediction(name: str, pipeline: Made, leave_to_sweeps: Leave) -> None:
    leave_to_sweeps(name in ("sd2", "sana"))
    settings: dict[str, Any] = {"window": window(name), **({"num_frames": 5} if name == "wan" else {})}
    model = load_model(pipeline(name), **settings)
    x = noise(model)
    for wrap, by in (((False, True), (0, 4)), ((True, True), (8, 12))):
        assert error(predict(model, x.roll(by, (-2, -1)), wrap), predict(model, x, wrap).roll(by, (-2, -1))) < 1e-5
    plane = predict(model, x, (False, False))
    assert error(predict(model, x.roll(4, -1), (False, False)), plane.roll(4, -1)) > 1e-2
    fresh = load_model(pipeline(name), ring="windows", **settings)
    assert torch.equal(predict(fresh, x, (False, True)), plane)


def test_a_controlnet_goes_around_too() -> None:
    model = load_model(tiny_controlnet("sdxl"), window=(16, 32))
    denoiser: Any = model.denoiser
    grid = Grid((16, 32), (16, 32), (16, 32), (False, True))
    x, picture = noise(model), torch.rand(3, 16 * model.factor, 32 * model.factor, generator=torch.Generator().manual_seed(1))
    preds = []
    for by in (0, 4):
        scene = Scene("a lake", "", 5.0, {"control_image": picture.roll(by * model.factor, -1)})
        with torch.no_grad():
            condition = denoiser.condition(denoiser.encode(scene), grid, [0])
            preds.append(denoiser(x.roll(by, -1), denoiser.training.own(4, torch.device("cpu")).levels[1], condition))
    assert error(preds[1], preds[0].roll(4, -1)) < 1e-5


@pytest.mark.parametrize("name", WITH_TEXTS)
def test_attention_depends_on_the_distance_around_the_ring(
    name: str, pipeline: Made, monkeypatch: pytest.MonkeyPatch, leave_to_sweeps: Leave
) -> None:
    """Texts have places in the same table of positions as cells. Noise and texts, rolled together, roll the prediction."""
    leave_to_sweeps(name in ("chroma", "klein", "krea2"))
    shift = [0]  # tokens by which texts are rolled
    by_ids, qwen = rotary._Turn.by_ids, rotary._BY_CLASS["QwenEmbedRope"]

    def ids_rolled(self: Any, table: Any, ids: Tensor) -> Any:
        there = torch.zeros_like(ids[..., :1, :])
        there[..., 2] = shift[0]
        turned, turn = by_ids(self, table, ids), by_ids(self, table, there)
        if name in ("z_image", "lumina2"):  # the rows of a picture lie behind its text, along the first axis
            text = ids[..., 0] < ids[..., 0].amax() if ids[..., 2].any() else torch.ones_like(ids[..., 0], dtype=torch.bool)
            return torch.where(text[..., None], turned * turn, turned)
        first = len(ids) - 8 * 16 * bool(ids[..., 2].any())  # FLUX.2 calls for its texts apart
        (cos, sin), (c, s) = turned, turn
        (real, imaginary) = cos * c - sin * s, sin * c + cos * s
        return torch.cat([real[:first], cos[first:]]), torch.cat([imaginary[:first], sin[first:]])

    def grid_rolled(*args: Any, **kwargs: Any) -> Any:
        cells, text = qwen(*args, **kwargs)
        return cells, text * (cells[shift[0]] / cells[0])

    monkeypatch.setattr(rotary._Turn, "by_ids", ids_rolled)
    monkeypatch.setitem(rotary._BY_CLASS, "QwenEmbedRope", grid_rolled)
    model = load_model(pipeline(name), window=(16, 32))
    x = noise(model)
    once = predict(model, x)
    assert error(once, predict(model, x, (False, False))) > 1e-3
    for tokens in (1, 7):
        shift[0] = tokens
        assert error(predict(model, x.roll(2 * tokens, -1)), once.roll(2 * tokens, -1)) < 1e-5
    shift[0] = 0
    assert error(predict(model, x.roll(2, -1)), once.roll(2, -1)) > 1e-5  # where a text stands is a place, too


def test_a_window_with_a_place_may_begin_anywhere_on_the_ring(pipeline: Made) -> None:
    """FLUX is told where the window begins. On a ring that changes nothing but which end is where."""
    x = {}
    for ring in ("all", "high", "windows"):
        denoiser: Any = load_model(pipeline("flux"), window=(16, 32), positions="offset", ring=ring).denoiser
        canvas = torch.randn(denoiser.channels, 16, 32, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            embeddings = denoiser.encode(Scene("a lake", "", 3.5))
            level = denoiser.training.own(4, torch.device("cpu")).levels[1]
            for shift in (0, 10):
                grid = Grid((16, 32), (16, 32), (16, 32), (False, True), (0, shift))
                pred = denoiser(grid.crop(canvas), level, denoiser.condition(embeddings, grid, [0]))
                x[ring, shift] = pred.roll(-shift, -1)
    assert error(x["all", 10], x["all", 0]) < 1e-5
    assert error(x["high", 10], x["high", 0]) > 1e-3  # slow frequencies have a seam
    assert error(x["windows", 10], x["windows", 0]) > 1e-3
    assert error(x["high", 0], x["windows", 0]) > 1e-3


# --- positions --------------------------------------------------------------------------------------------------


class Holding(torch.nn.Module):
    """A network with rotary positions."""

    def __init__(self, part: Any) -> None:
        super().__init__()
        self.rope_embedder = part


def _ids(axes: int, batch: tuple[int, ...] = ()) -> Tensor:
    """Positions of a text of three tokens and a picture of 4 x 6."""
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    ids = torch.zeros(27, axes, dtype=torch.long)
    ids[:3, 0] = torch.arange(3)
    ids[3:, 1], ids[3:, 2] = rows.flatten(), columns.flatten()
    return ids.expand(*batch, 27, axes)


def _angles(table: Any) -> Tensor:
    """The angles of the picture, `4 6 features`."""
    if isinstance(table, tuple):
        table = torch.complex(*table)
    table = table if table.is_complex() else torch.polar(torch.ones_like(table), table)
    return table.reshape(-1, table.shape[-1])[-24:].unflatten(0, (4, 6)).angle()


def _cases() -> dict[str, tuple[Callable[[], Any], tuple[Any, ...]]]:
    from diffusers.models.transformers import (
        transformer_bria,
        transformer_ernie_image,
        transformer_longcat_image,
        transformer_nucleusmoe_image,
        transformer_ovis_image,
        transformer_qwenimage21,
        transformer_wan,
    )

    axes, mask = (8, 12, 12), torch.tensor([False] * 3 + [True] * 24)
    return {
        "bria": (lambda: transformer_bria.BriaEmbedND(10000, list(axes)), (_ids(3),)),
        "ernie": (lambda: transformer_ernie_image.ErnieImageEmbedND3(32, 256, axes), (_ids(3, (1,)),)),
        "longcat": (lambda: transformer_longcat_image.LongCatImagePosEmbed(10000, list(axes)), (_ids(3),)),
        "ovis": (lambda: transformer_ovis_image.OvisImagePosEmbed(10000, list(axes)), (_ids(3),)),
        "nucleus": (
            lambda: transformer_nucleusmoe_image.NucleusMoEEmbedRope(10000, list(axes), scale_rope=True),
            ((1, 4, 6), torch.device("cpu"), 3),
        ),
        "qwen 2.1": (
            lambda: transformer_qwenimage21.QwenImage21Rope(10000, list(axes)),
            ([(1, 4, 6)], mask, torch.device("cpu")),
        ),
        "wan": (lambda: transformer_wan.WanRotaryPosEmbed(32, (1, 2, 2), 64), (torch.zeros(1, 1, 1, 8, 12),)),
    }


@pytest.mark.parametrize("name", ["bria", "ernie", "longcat", "ovis", "nucleus", "qwen 2.1", "wan"])
def test_angles_go_around(name: str) -> None:
    """From each token to the next one, and over the join, a feature turns by the same whole part of a cycle."""
    make, args = _cases()[name]
    inner, network = make(), Holding(make())
    assert turns_around(network, 2, "all")
    pick = (lambda table: table[0]) if name == "nucleus" else (lambda table: table)
    plain = _angles(pick(inner(*args)))
    assert torch.equal(_angles(pick(network.rope_embedder(*args))), plain)
    for axis, wrap in ((0, (True, False)), (1, (False, True))):
        with circular(Ring((8, 12), wrap)):
            angles = _angles(pick(network.rope_embedder(*args)))
        steps = torch.polar(torch.ones_like(angles), angles.roll(-1, axis) - angles)
        torch.testing.assert_close(steps, steps[:1, :1].expand_as(steps), rtol=0, atol=1e-5)
        cycles = steps[0, 0].angle() * (4, 6)[axis] / (2 * torch.pi)
        torch.testing.assert_close(cycles, cycles.round(), rtol=0, atol=1e-5)
        assert cycles.abs().amax() == pytest.approx(1, abs=1e-4)  # of one radian a token, 4 and 6 of them
        other = torch.polar(torch.ones_like(angles), angles.roll(-1, 1 - axis) - angles)
        before = torch.polar(torch.ones_like(plain), plain.roll(-1, 1 - axis) - plain)
        torch.testing.assert_close(other, before, rtol=0, atol=1e-5)


def test_slow_frequencies_stay_with_high() -> None:
    make, (ids,) = _cases()["bria"]
    expected: dict[Rounding, float] = {"all": 0.0, "high": 1e-2}
    for rounding, kept in expected.items():
        network = Holding(make())
        assert turns_around(network, 2, rounding)
        with circular(Ring((8, 12), (False, True))):
            angles = _angles(network.rope_embedder(ids))
        steps = (angles[0, 1] - angles[0, 0]).abs()
        assert float(steps[-2]) == pytest.approx(float((make()(ids)[1][4, -2]).arcsin().abs()) if kept else 0.0, abs=1e-6)


# --- pictures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd", "sana", "wan"])
def test_rolled_noise_makes_the_rolled_picture(name: str, pipeline: Made, cpu: Runtime, leave_to_sweeps: Leave) -> None:
    leave_to_sweeps(name == "wan")
    sampler = Sampler(load_model(pipeline(name), window=window(name)), runtime=cpu)
    factor, (height, width) = sampler.model.factor, window(name)
    pictures = []
    for by in (0, 4):
        frames = {"frames": 5} if name == "wan" else {}
        run = sampler.begin("a lake", height=height * factor, width=width * factor, steps=2, seed=3, wrap=True, **frames)
        assert len(run.windows) == 1
        run.canvas.copy_(run.canvas.roll(by, -1))
        while not run.done:
            run.step()
        pictures.append(sampler.decode(run))
    torch.testing.assert_close(pictures[1], pictures[0].roll(4 * factor, -1), rtol=0, atol=1e-4)


def test_one_window_suffices_where_the_model_sees_a_ring(pipeline: Made, cpu: Runtime) -> None:
    """Two did before. A stride that is chosen stays, and so do windows on longer rings."""
    counts: dict[str, list[int]] = {}
    for ring in ("all", "windows"):
        sampler = Sampler(load_model(pipeline("sd"), window=8, ring=ring), runtime=cpu)
        cases: list[dict[str, Any]] = [
            {"width": 16, "wrap": True},
            {"width": 16, "wrap": True, "stride": 8},
            {"width": 16, "wrap": "xy"},
            {"width": 16},
            {"width": 32, "wrap": True},
        ]
        counts[ring] = [len(sampler.plan("a lake", **{"height": 16, **case}).windows) for case in cases]
    assert counts == {"all": [1, 2, 1, 1, 4], "windows": [2, 2, 4, 1, 4]}


def test_longer_rings_stay_what_they_were(pipeline: Made, cpu: Runtime) -> None:
    canvases = []
    for ring in ("all", "windows"):
        sampler = Sampler(load_model(pipeline("flux"), window=8, ring=ring), runtime=cpu)
        run = sampler.begin("a lake", height=16, width=32, steps=2, wrap=True)
        while not run.done:
            run.step()
        canvases.append(run.canvas)
    assert torch.equal(*canvases)


def test_guidances_and_other_models_go_around(pipeline: Made, cpu: Runtime) -> None:
    """The smaller canvas of MSD is a ring of one window here. DiffCollage has no overlap to take off."""
    sampler = Sampler(load_model(pipeline("sd"), window=8), guidances=[MSDGuidance()], runtime=cpu)
    run = sampler.begin("a lake", height=32, width=32, steps=2, wrap=True)
    assert len(run.windows.scaled(2)) == 1
    while not run.done:
        run.step()
    assert run.canvas.isfinite().all()
    collage = Sampler(DiffCollage().load("diffcollage", "diffcollage"), runtime=cpu)
    plain = Sampler(runtime=cpu)
    canvases = []
    for sampler in (collage, plain):
        run = sampler.begin("a lake", height=128, width=128, steps=2, wrap=True)
        run.step()
        canvases.append(run.canvas)
    torch.testing.assert_close(*canvases, rtol=0, atol=1e-5)


def test_gradients_go_around_with_checkpointing(pipeline: Made) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = load_model(tiny_pipeline("sdxl"), window=16)
        model.configure(Execution(checkpointing=checkpointing))
        denoiser: Any = model.denoiser
        grid = Grid((16, 16), (16, 16), (16, 16), (False, True))
        with torch.no_grad():
            embeddings = denoiser.encode(Scene("a lake", "", 5.0))
        x = noise(model).requires_grad_()
        level = denoiser.training.own(4, torch.device("cpu")).levels[1]
        pred = denoiser(x, level, denoiser.condition(embeddings, grid, [0]))
        gradients.append(torch.autograd.grad(pred.square().sum(), x)[0])
    assert error(gradients[1], gradients[0]) < 1e-5


# --- what cannot be ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd3", "pixart_sigma"])
def test_places_with_ends_are_no_ring(name: str, pipeline: Made, cpu: Runtime) -> None:
    sampler = Sampler(load_model(pipeline(name), window=8), runtime=cpu)
    side = 8 * sampler.model.factor
    with pytest.warns(FallbackWarning, match="does not see a window as a ring .* have ends.: windows that overlap go around"):
        plan = sampler.plan("a lake", height=side, width=side, wrap=True)
    assert len(plan.windows) == 2
    assert len(sampler.plan("a lake", height=side, width=2 * side, wrap=True).windows) == 4
    quiet = Sampler(load_model(pipeline(name), window=8, ring="windows"), runtime=cpu)
    assert len(quiet.plan("a lake", height=side, width=side, wrap=True).windows) == 2


def test_a_network_whose_weights_are_moved_is_no_ring() -> None:
    """A hook that moves them has set a `forward` that calls the user's own network, whose positions stay."""
    network = Holding(_cases()["bria"][0]())
    vars(network)["forward"] = lambda *args: None
    assert not turns_around(network, 2, "all")
    assert type(network.rope_embedder).__name__ == "BriaEmbedND"


def test_the_pipeline_stays_what_it_is(pipeline: Made) -> None:
    for name in ("flux", "z_image", "lumina2"):
        pipe = pipeline(name)
        parts = dict(vars(pipe.transformer))
        modules = dict(pipe.transformer.named_modules())
        model = load_model(pipe, window=16)
        predict(model, noise(model))
        assert vars(pipe.transformer) == parts
        assert dict(pipe.transformer.named_modules()) == modules


@pytest.mark.parametrize("settings", [{"ring": "half"}, {"ring": True}, {"window": (16, 16, 16)}, {"window": "16x32"}])
def test_wrong_settings_are_refused_in_one_line(settings: dict[str, Any], pipeline: Made) -> None:
    with pytest.raises((SettingError, ModelError)) as caught:
        load_model(pipeline("sd"), **settings)
    assert "\n" not in str(caught.value)
    assert next(iter(settings)) in str(caught.value)


def test_a_window_may_be_wider_than_high(pipeline: Made) -> None:
    for name in ("sd", "flux"):
        assert load_model(pipeline(name), window=(8, 16)).denoiser.window == (8, 16)
    assert load_model("landscapes", window=[16, 64]).denoiser.window == (16, 64)
    with pytest.raises(SettingError, match="window is 6: it must be a multiple of 4 cells"):
        load_model("landscapes", window=(16, 6))
