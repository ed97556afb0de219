"""SyncDiffusion's settings, its metrics, what it costs and what it does."""

from typing import Any

import lpips
import pytest
import torch
from torch import Tensor, nn

from panokit import ContractError, Guidance, Model, Run, Runtime, Sampler, SettingError
from panokit.backbones.diffusers.codec import VAECodec
from panokit.backbones.diffusers.model import UNetDenoiser
from panokit.errors import NotFiniteError
from panokit.testing.toys import toy_run
from panokit_multidiffusion import MultiDiffusion
from panokit_syncdiffusion import LPIPS, EfficientNet, MetricError, Perceptual, SyncDiffusion


def squares(images: Tensor, other: Tensor) -> Tensor:
    return (images - other).square().mean((1, 2, 3))


def begun(model: Model, *guidances: Guidance, width: int = 48, height: int = 16, wrap: Any = False, steps: int = 2) -> Run:
    runtime = Runtime(accelerator="cpu", micro_batch=2)
    sampler = Sampler(model, fuser=MultiDiffusion(), guidances=guidances, runtime=runtime)
    return sampler.begin("a lake", height=height, width=width, wrap=wrap, steps=steps, guidance_scale=1.0, seed=1)


def finished(run: Run) -> Tensor:
    while not run.done:
        run.step()
    return run.canvas


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"weight": -1.0}, "weight is -1.0: it must be 0 or more"),
        ({"decay": 0.0}, "decay is 0.0: it is a factor a step, above 0 and up to 1"),
        ({"decay": 1.1}, "decay is 1.1"),
        ({"until": 2.0}, "until is 2.0: it is a share of the steps, from 0 to 1"),
        ({"metric": "ssim"}, "metric is 'ssim': it must be one of efficientnet, lpips-vgg, lpips-alex, or a function"),
    ],
)
def test_a_setting_out_of_range_is_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        SyncDiffusion(**setting)


def test_the_recipe_of_its_authors() -> None:
    guidance = SyncDiffusion()
    levels = toy_run(steps=50).solver.levels
    assert [guidance.strength(level) for level in levels] == pytest.approx([20 * 0.95**k for k in range(10)] + [0.0] * 41)


def test_a_model_without_a_codec_is_refused() -> None:
    run = toy_run(guidances=[SyncDiffusion(metric=squares, until=1.0)])
    with pytest.raises(SettingError, match="SyncDiffusion compares pictures, and this model has no codec"):
        run.step()


@pytest.mark.parametrize(
    ("metric", "what"),
    [
        (lambda a, b: (a - b).square().mean(), r"\(\)"),
        (lambda a, b: (a - b).square().mean((2, 3)), r"\(1, 3\)"),
        (lambda a, b: 0.0, "float"),
    ],
)
def test_a_metric_of_another_shape_is_named(tiny: Model, metric: Any, what: str) -> None:
    run = begun(tiny, SyncDiffusion(metric=metric))
    with pytest.raises(ContractError, match=rf"the metric <lambda> returned {what} for 1 pictures: .*\(1,\)"):
        run.step()


def test_a_metric_that_is_not_finite_is_named_with_its_windows(tiny: Model) -> None:
    run = begun(tiny, SyncDiffusion(metric=lambda a, b: squares(a, b) / 0))
    message = r"SyncDiffusion at step 1 of 2 \(level 0\) holds NaN, infinity or numbers near it in windows 0, 1, 3, 4"
    with pytest.raises(NotFiniteError, match=message):
        run.step()


@pytest.mark.parametrize("wrap", [False, "x", "xy"])
def test_it_costs_the_closed_form(tiny: Model, wrap: Any) -> None:
    """Guided steps: 2 N + 1 forwards; the anchor is decoded once, and so are its features made."""
    assert isinstance(tiny.denoiser, UNetDenoiser)
    assert isinstance(tiny.codec, VAECodec)
    rows, decoded, compared = [], [], []

    class Counted(Perceptual):
        def features(self, images: Tensor) -> list[Tensor]:
            compared.append(len(images))
            return [images]

        def distance(self, a: Any, b: Any) -> Tensor:
            return squares(a[0], b[0])

    def count(module: nn.Module, args: Any, kwargs: Any = None) -> None:
        rows.append(len(args[0]))

    run = begun(tiny, SyncDiffusion(1.0, metric=Counted(), until=0.5), height=24, wrap=wrap, steps=2)
    hooks = [
        tiny.denoiser.unet.register_forward_pre_hook(count),
        tiny.codec.vae.decoder.register_forward_pre_hook(lambda module, args: decoded.append(len(args[0]))),
    ]
    n = len(run.windows)
    finished(run)
    for hook in hooks:
        hook.remove()
    assert sum(rows) == (2 * n + 1) + n
    assert decoded[0] == compared[0] == 1
    assert sum(decoded) == sum(compared) == n


@pytest.mark.parametrize("wrap", [False, "x", "xy"])
def test_windows_come_to_look_like_the_anchor(tiny: Model, wrap: Any) -> None:
    """Down the gradient, the mean distance of the clean estimates to the anchor's falls."""
    distances = []
    for weight in (0.0, 60.0):
        run = begun(tiny, SyncDiffusion(weight, 1.0, 1.0, squares), height=24, wrap=wrap, steps=3)
        finished(run)
        assert run.seen is not None
        assert run.codec is not None
        pictures = run.codec.decode(run.windows.crop(run.seen.x0)).clamp(0, 1)
        distances.append(float(squares(pictures, pictures[run.windows.nearest(0.5, 0.5)][None]).mean()))
    assert distances[1] < 0.98 * distances[0]


def test_it_works_without_any_choice(tiny: Model) -> None:
    plain, guided = finished(begun(tiny, steps=5)), finished(begun(tiny, SyncDiffusion(), steps=5))
    assert torch.isfinite(guided).all()
    assert not torch.equal(plain, guided)


@pytest.mark.parametrize("metric", [EfficientNet(), LPIPS("alex", pretrained=False)])
def test_metrics_are_zero_of_the_same_and_more_of_others(metric: Perceptual) -> None:
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert metric(images, images).tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    noisy = (images[:1] + torch.tensor([0.05, 0.2, 0.5])[:, None, None, None] * torch.randn(1, 3, 64, 64)).clamp(0, 1)
    near, far, farther = metric(noisy, images[:1]).tolist()
    assert 0 < near < far < farther


def test_lpips_is_the_packages_own() -> None:
    torch.manual_seed(0)
    metric = LPIPS("alex", pretrained=False)
    a, b = torch.rand(2, 3, 64, 64), torch.rand(1, 3, 64, 64)
    expected = metric.net(a * 2 - 1, b * 2 - 1).flatten()
    torch.testing.assert_close(metric(a, b), expected, rtol=1e-5, atol=1e-6)


def test_weights_that_are_not_to_be_had_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(**settings: Any) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(lpips, "LPIPS", unreachable)
    with pytest.raises(MetricError, match=r"lpips-vgg needs torchvision's weights of vgg, .* choose the metric efficientnet"):
        LPIPS()
