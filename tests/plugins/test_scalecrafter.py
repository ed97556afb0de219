"""ScaleCrafter against a literal re-dilated loop, and the laws that make it that method."""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache
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
    Level,
    Model,
    Region,
    Regions,
    Run,
    Runtime,
    Sampler,
    Scene,
    SettingError,
    Training,
    Windows,
    load_model,
    recipe,
)
from panokit.cli import main
from panokit.errors import FallbackWarning
from panokit.models import bytes_of
from panokit.settings import Execution
from panokit.testing import Check, conforms
from panokit.testing.families import tiny_pipeline
from panokit.testing.tiny import tiny_model
from panokit.testing.toys import toy_run
from panokit_msd import MSDGuidance
from panokit_scalecrafter import Redilated, ScaleCrafter
from panokit_syncdiffusion import SyncDiffusion


class ToyUNet(nn.Module):
    """Convolutions alone, in the places of a UNet of two levels: one in each block, and one before and after them."""

    def __init__(self) -> None:
        super().__init__()

        def convolution(seed: int) -> nn.Conv2d:
            made = nn.Conv2d(2, 2, 3, padding=1).double().requires_grad_(False)
            for weight in made.parameters():
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)) / 4)
            return made

        self.conv_in, self.mid_block, self.conv_out = convolution(0), convolution(3), convolution(6)
        self.down_blocks = nn.ModuleList([convolution(1), convolution(2)])
        self.up_blocks = nn.ModuleList([convolution(4), convolution(5)])

    def middle(self, x: Tensor) -> Tensor:
        for block in (*self.down_blocks, self.mid_block, *self.up_blocks):
            x = torch.tanh(block(x))
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.middle(self.conv_in(x)))


@final
class Convolutional(Denoiser):
    """A denoiser of a `ToyUNet`. Guidance of strength g adds g times the number of a text."""

    def __init__(self) -> None:
        self.channels, self.window, self.training, self.unet = 2, (4, 4), Training(), ToyUNet()
        self.fails = False

    def modules(self) -> Iterable[nn.Module]:
        return (self.unet,)

    def encode(self, scene: Scene) -> Any:
        return [len(text) / 10 for text in scene.texts][-1] * max(1.0, scene.guidance_scale)

    def condition(self, embeddings: Any, windows: Windows, index: Sequence[int]) -> Any:
        return embeddings

    def __call__(self, x: Tensor, level: Level, condition: Any) -> Tensor:
        if self.fails:
            raise ValueError("the network broke")
        return self.unet(x + condition) * (0.5 + level.sigma)


LEVEL = Level(0, 500, 0.8, 0.6, 0, 10)


@conforms(lambda: Redilated(tiny_model().denoiser, ScaleCrafter()))
def test_scalecrafter(check: Check) -> None:
    check()


@cache
def sdxl() -> Denoiser:
    return load_model(tiny_pipeline("sdxl")).denoiser


@conforms(lambda: Redilated(sdxl(), ScaleCrafter(scale=(1, 2), noise_damped=True)))
def test_scalecrafter_of_a_pipeline_and_one_axis(check: Check) -> None:
    check()


def finished(run: Run) -> Tensor:
    while not run.done:
        run.step()
    return run.canvas


def dilated(layer: nn.Conv2d, x: Tensor, dilation: tuple[int, int]) -> Tensor:
    """A convolution with taps apart, tap by tap."""
    high, wide = dilation
    around = nn.functional.pad(x, (wide, wide, high, high))
    total = layer.bias.view(-1, 1, 1).expand(len(x), -1, *x.shape[2:]) if layer.bias is not None else torch.zeros_like(x)
    for i in range(3):
        for j in range(3):
            part = around[..., i * high : i * high + x.shape[2], j * wide : j * wide + x.shape[3]]
            total = total + torch.einsum("oc,nchw->nohw", layer.weight[:, :, i, j], part)
    return total


@pytest.mark.parametrize(("scale", "wrap"), [(2, False), ((1, 2), False), (2, True)])
def test_it_is_the_loop_of_the_paper(scale: Any, wrap: bool) -> None:
    """Dilate the inner level in the first half of the steps, tap by tap: windows, their mean, and DDIM."""
    settings, inner = ScaleCrafter(scale=scale, until=0.5), Convolutional()
    denoiser = Redilated(inner, settings)
    run = toy_run((9, 17), denoiser=denoiser, stride=3, wrap=wrap, steps=4, seed=3)
    canvas, unet, windows = run.canvas, inner.unet, run.windows
    assert windows.window == denoiser.window == tuple(4 * by for by in settings.scales)
    for level, below in zip(run.solver.levels, run.solver.levels[1:], strict=False):
        apart = settings.scales if level.step < 2 else (1, 1)
        x = dilated(unet.conv_in, windows.crop(canvas) + run.parts.embeddings, (1, 1))
        for block, inside in zip((*unet.down_blocks, unet.mid_block, *unet.up_blocks), (0, 1, 1, 1, 0), strict=True):
            x = torch.tanh(dilated(block, x, apart if inside else (1, 1)))
        pred = dilated(unet.conv_out, x, (1, 1)) * (0.5 + level.sigma)
        eps, count = torch.zeros_like(canvas), torch.zeros_like(canvas[0])
        for i in range(len(windows)):
            windows.put(eps, i, pred[i])
            windows.put(count, i, torch.ones_like(pred[i, 0]))
        eps /= count
        canvas = below.alpha * (canvas - level.sigma * eps) / level.alpha + below.sigma * eps
    torch.testing.assert_close(finished(run), canvas, rtol=0, atol=1e-9)


@given(high=st.integers(1, 4), wide=st.integers(1, 4), seed=st.integers(0, 99))
def test_each_interleaved_lattice_of_cells_goes_through_the_network_as_it_was(high: int, wide: int, seed: int) -> None:
    """Cells that are `scale` apart see one another as neighbours did, and no others: what was learned holds for them."""
    inner, unet = Convolutional(), ToyUNet()
    unet.mid_block = nn.Sequential(*unet.down_blocks, *unet.up_blocks, unet.mid_block)  # where 4 levels dilate by all of it
    unet.down_blocks, unet.up_blocks = nn.ModuleList([nn.Identity()] * 4), nn.ModuleList()
    unet.conv_in = unet.conv_out = nn.Identity()  # those stay as they are, and would mix the lattices
    inner.unet = unet
    denoiser = Redilated(inner, ScaleCrafter(scale=(high, wide)))
    x = torch.randn(1, 2, 5 * high, 3 * wide, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    pred = denoiser(x, LEVEL, 0.1)
    for row in range(high):
        for column in range(wide):
            alone = inner(x[..., row::high, column::wide], LEVEL, 0.1)
            torch.testing.assert_close(pred[..., row::high, column::wide], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("scale", "outer", "expected"),
    [(2, 1, [1, 2, 2, 2]), (4, 1, [1, 2, 3, 4]), (4, 2, [1, 1, 2, 3]), (4, 0, [2, 3, 4, 4]), (2, 3, [1, 1, 1, 2])],
)
def test_inner_levels_are_dilated_more(scale: int, outer: int, expected: list[int]) -> None:
    """The first two rows are the authors' settings for Stable Diffusion 1.5, at 1024 and 2048 pixels."""
    inner = Convolutional()
    blocks = [nn.Conv2d(2, 2, 3, padding=1, stride=1 + (k < 3)) for k in range(4)]  # those that halve the cells are dilated too
    inner.unet.down_blocks = nn.ModuleList(blocks)
    inner.unet.mid_block, inner.unet.up_blocks = nn.Conv2d(2, 2, 1), nn.ModuleList()  # one tap cannot be dilated
    spreads = {
        spread.convolution: spread.dilation for spread in Redilated(inner, ScaleCrafter(scale=scale, outer=outer))._spreads
    }
    assert [spreads.get(block, (1, 1))[0] for block in blocks] == expected


def test_scale_1_is_the_model_itself_and_so_is_the_model_after_the_last_dilated_step(tiny: Model, cpu: Runtime) -> None:
    def made(denoiser: Denoiser, size: int) -> Tensor:
        sampler = Sampler(Model(denoiser, tiny.codec, "a"), runtime=cpu)
        return sampler("a lake", height=size, width=2 * size, steps=3, seed=2, progress=False).latents

    assert torch.equal(made(Redilated(tiny.denoiser, ScaleCrafter(scale=1)), 16), made(tiny.denoiser, 16))
    larger = tiny_model(window=16).denoiser  # of the same weights
    assert torch.equal(made(Redilated(tiny.denoiser, ScaleCrafter(until=0.0)), 32), made(larger, 32))
    assert not torch.equal(made(Redilated(tiny.denoiser, ScaleCrafter()), 32), made(larger, 32))


def test_the_network_is_restored_even_if_a_call_fails() -> None:
    inner = Convolutional()
    denoiser = Redilated(inner, ScaleCrafter())
    inner.fails = True
    with pytest.raises(ValueError, match="the network broke"):
        denoiser(torch.zeros(1, 2, 8, 8), LEVEL, 0.0)
    kinds = {(part.dilation, part.padding) for part in inner.unet.modules() if isinstance(part, nn.Conv2d)}
    assert kinds == {((1, 1), (1, 1))}


def test_noise_damped_guidance_is_that_of_the_paper() -> None:
    """The prediction for nothing is the network's own; what the text adds to it is that of the dilated one."""
    inner = tiny_model().denoiser
    settings = ScaleCrafter(noise_damped=True)
    denoiser, weak = Redilated(inner, settings), Redilated(inner, ScaleCrafter())
    windows = Grid((16, 24), (16, 16), (8, 8), (False, False))
    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    left = Region((0, 0, 0.5, 1), "a lake", negative_prompt="rain")

    def pred(denoiser: Denoiser, prompt: Any, scale: float) -> Tensor:
        with torch.no_grad():
            return denoiser(x, LEVEL, denoiser.condition(denoiser.encode(Scene(prompt, "fog", scale)), windows, [0, 1]))

    text, nothing = Regions((left,), "a city"), Regions((Region((0, 0, 0.5, 1), "rain"),), "fog")
    expected = pred(inner, nothing, 1.0) + 5 * (pred(weak, text, 1.0) - pred(weak, nothing, 1.0))
    torch.testing.assert_close(pred(denoiser, text, 5.0), expected, rtol=0, atol=1e-5)
    assert torch.equal(pred(denoiser, text, 1.0), pred(weak, text, 1.0))
    assert (pred(denoiser, text, 5.0) - pred(weak, text, 5.0)).abs().max() > 1e-3


def test_noise_damped_guidance_keeps_to_regions_and_ends_with_guidance(tiny: Model) -> None:
    damped, plain = (Redilated(tiny.denoiser, ScaleCrafter(noise_damped=on)) for on in (True, False))
    windows = Grid((16, 16), (16, 16), (16, 16), (False, False))
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))

    def pred(denoiser: Denoiser, scene: Scene) -> Tensor:
        with torch.no_grad():
            return denoiser(x, LEVEL, denoiser.condition(denoiser.encode(scene), windows, [0]))

    halves = tuple(Region((k / 2, 0, k / 2 + 0.5, 1), "a lake", guidance_scale=5.0) for k in range(2))
    own, common = Scene(Regions(halves, mix="windows"), "fog", 1.0), Scene("a lake", "fog", 5.0)
    torch.testing.assert_close(pred(damped, own), pred(damped, common), rtol=0, atol=1e-5)
    assert not torch.allclose(pred(damped, own), pred(plain, own), atol=1e-3)
    ended = replace(common, guidance_end=0.0)
    torch.testing.assert_close(pred(damped, ended), pred(plain, replace(common, guidance_scale=1.0)), rtol=0, atol=1e-5)


def test_a_copy_dilates_its_own_network(tiny: Model) -> None:
    """A sampler copies a model that is placed elsewhere."""
    copy = deepcopy(Redilated(tiny.denoiser, ScaleCrafter()))
    own = {part for network in copy.modules() for part in network.modules()}
    assert copy._spreads
    assert {spread.convolution for spread in copy._spreads} <= own


@pytest.mark.parametrize("guidances", [[MSDGuidance()], [SyncDiffusion(weight=0.1)]], ids=str)
def test_guidances_work_with_it_and_a_resumed_run_has_the_same_bits(
    tiny: Model, cpu: Runtime, guidances: list[Guidance]
) -> None:
    model = Model(Redilated(tiny.denoiser, ScaleCrafter(scale=(1, 2))), tiny.codec, "scaled")

    def begin() -> Run:
        return Sampler(model, guidances=guidances, runtime=cpu).begin("a lake", height=32, width=64, steps=4, wrap="x", seed=2)

    run, resumed = begin(), begin()
    for _ in range(2):
        run.step()
    resumed.restore(run.state())
    assert torch.isfinite(finished(run)).all()
    assert torch.equal(finished(resumed), run.canvas)


def test_it_does_not_checkpoint_because_that_would_compute_again_without_dilation(tiny: Model) -> None:
    model = Model(Redilated(tiny.denoiser, ScaleCrafter()), None, "scaled")
    with pytest.warns(FallbackWarning, match="the model scaled does not support checkpointing, which is True"):
        model.configure(Execution(checkpointing=True))
    (unet, _) = tiny.denoiser.modules()
    assert not unet.is_gradient_checkpointing


def test_a_pipeline_is_told_the_larger_size() -> None:
    """SDXL is conditioned on it."""
    denoiser = Redilated(sdxl(), ScaleCrafter())
    windows = Grid((32, 48), (32, 32), (16, 16), (False, False))
    (call,) = denoiser.condition(denoiser.encode(Scene("a lake", guidance_scale=5.0)), windows, [0, 1]).calls
    assert (call.options["height"], call.options["width"]) == (64, 64)


def test_a_picture_is_made_again_from_its_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--model", "scalecrafter", "--model.model", "landscapes", "--model.scale=[1, 2]", "--steps", "2"]
    assert main(["generate", "a lake", *words, "--height", "128", "--width", "256", "--out", "a.png"]) == 0
    assert recipe.read("a.png")["model"] == {"plugin": "scalecrafter", "model": "landscapes", "scale": [1, 2]}
    assert main(["rerun", "a.png", "--out", "b.png"]) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert main(["rerun", "a.png", "--set", "model.model.plugin=nowhere", "--out", "c.png"]) == 2
    assert main(["plugins", "scalecrafter"]) == 0
    assert "\nscalecrafter: A model with a UNet" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_a_model_without_a_unet_is_refused_when_it_is_loaded(tmp_path: Path, name: str) -> None:
    tiny_pipeline(name).save_pretrained(tmp_path / name)
    with pytest.raises(
        SettingError, match=rf"convolutions of a UNet, and the model \S*{name} has none: it has .*Transformer2D"
    ):
        load_model("scalecrafter", model=str(tmp_path / name))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": 0}, "scalecrafter: scale is 0: it must be 1 or more, such as 2"),
        ({"scale": 1.5}, "scale of scalecrafter came as 1.5: it must be a whole number or a list"),
        ({"until": 2}, "until is 2.0: it must be a share of the steps, from 0 to 1"),
        ({"outer": -1}, "outer is -1: it must be a number of levels, 0 or more"),
        ({"outer": 3}, "outer is 3, and the UNet of landscapes has 3 levels: leave 2 or fewer as they are"),
        ({"scales": 2}, "scalecrafter has no setting 'scales': did you mean 'scale'"),
        ({"model": {"window": 16}}, "the model came as {'window': 16}: give its name"),
        ({"model": {"plugin": "landscapes", "window": 18}}, "window is 18: it must be a multiple of 4 cells"),
    ],
)
def test_what_cannot_work_is_said_in_a_line(cpu: Runtime, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError) as error:
        Sampler({"plugin": "scalecrafter", **settings}, runtime=cpu)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_its_weights_are_those_of_the_model_inside() -> None:
    assert bytes_of("scalecrafter") == bytes_of({"plugin": "scalecrafter", "model": "landscapes"}) == bytes_of("landscapes") > 0
