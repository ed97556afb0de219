"""The checks of denoisers: sound ones pass them all, and each is the first to fail on one that breaks its rule."""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from panokit import Denoiser, Level, Scene, Training, Windows
from panokit.scene import Mixture
from panokit.scheduler import Prediction
from panokit.testing import Check, checks, conforms, denoisers, run_checks
from panokit.testing.tiny import tiny_model
from panokit.testing.toys import ToyDenoiser
from panokit.testing.worlds import Gaussian


@cache
def unet() -> Denoiser:
    return tiny_model().denoiser


@conforms(unet)
def test_a_unet_with_classifier_free_guidance(check: Check) -> None:
    check()


@conforms(lambda: ToyDenoiser((4, 6)))
def test_a_formula(check: Check) -> None:
    check()


@pytest.mark.parametrize("prediction", ["epsilon", "flow_prediction"])
@pytest.mark.parametrize("window", [(5,), (4, 4), (2, 3, 4)])
def test_windows_of_any_number_of_axes(window: tuple[int, ...], prediction: Prediction) -> None:
    world = Gaussian(mean=0.5, variance=0.3, window=window, training=Training(prediction))
    assert [outcome for outcome in run_checks(lambda: world) if outcome.problem] == []


class Network(Denoiser):
    """A small network with dropout, told one number by the prompt of each window: sound, for others to differ from."""

    channels, window, training = 2, (6, 6), Training()

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Tanh(), nn.Dropout())

    def modules(self) -> Iterable[nn.Module]:
        return (self.net,)

    def encode(self, scene: Scene) -> Scene:
        return scene

    def condition(self, embeddings: Scene, windows: Windows, index: Sequence[int]) -> tuple[Mixture, Tensor]:
        mixture = self.mixture(embeddings, windows, index)
        return mixture, torch.tensor([float(len(embeddings.texts[k])) for k in mixture.texts]).view(-1, 1, 1, 1)

    def mixture(self, scene: Scene, windows: Windows, index: Sequence[int]) -> Mixture:
        return scene.mixture(scene.maps(windows), windows, index)

    def __call__(self, x: Tensor, level: Level, condition: Any) -> Tensor:
        mixture, numbers = condition
        return mixture.mix(self.net(x[mixture.rows]) + numbers / 100)


class Controlled(Network):
    """Adds the mean brightness of a control picture to each cell: sound."""

    fields = frozenset({"control"})

    def condition(self, embeddings: Scene, windows: Windows, index: Sequence[int]) -> Any:
        control = torch.zeros(len(index), 1, *windows.window)
        if "control" in embeddings.fields:
            control = self.control(embeddings, windows, index)
        return super().condition(embeddings, windows, index), control

    def control(self, scene: Scene, windows: Windows, index: Sequence[int]) -> Tensor:
        return scene.crop("control", windows, index).mean(1, keepdim=True)

    def __call__(self, x: Tensor, level: Level, condition: Any) -> Tensor:
        texts, control = condition
        return super().__call__(x, level, texts) + control


@conforms(Controlled)
def test_a_network_with_a_control_picture(check: Check) -> None:
    check()


@conforms(Network)
def test_a_network(check: Check) -> None:
    check()


# --- denoisers that break one rule each ---------------------------------------------------------------------


class OneMoreChannel(Network):
    def __call__(self, x: Tensor, level: Level, condition: Any) -> Tensor:
        return torch.cat([super().__call__(x, level, condition), x[:, :1]], dim=1)


class InHalf(Network):
    def __call__(self, x: Tensor, level: Level, condition: Any) -> Tensor:
        return super().__call__(x, level, condition).bfloat16()


class Trainable(Network):
    """Keeps its network to itself, in eval mode."""

    def modules(self) -> Iterable[nn.Module]:
        self.net.eval()
        return ()


class InTraining(Network):
    """Keeps its network to itself, without a gradient."""

    def modules(self) -> Iterable[nn.Module]:
        self.net.requires_grad_(False)
        return ()


class Cut(Network):
    def __call__(self, x: Tensor, level: Level, condition: Any) -> Tensor:
        return super().__call__(x.detach(), level, condition)


class Flat(Network):
    def __call__(self, x: Tensor, level: Level, condition: Any) -> Tensor:
        return super().__call__(x.round(), level, condition)


class Explosive(Network):
    def __call__(self, x: Tensor, level: Level, condition: Any) -> Tensor:
        return super().__call__(x, level, condition) + (x - x).abs().sqrt()


class BatchNorm(Network):
    def __call__(self, x: Tensor, level: Level, condition: Any) -> Tensor:
        return super().__call__(x - x.mean(0), level, condition)


class ByPosition(Network):
    """Takes the texts of the first windows for those that it is asked for."""

    def mixture(self, scene: Scene, windows: Windows, index: Sequence[int]) -> Mixture:
        return super().mixture(scene, windows, range(len(index)))


class OneText(Network):
    """Takes the text of most cells for the whole window."""

    def mixture(self, scene: Scene, windows: Windows, index: Sequence[int]) -> Mixture:
        maps = scene.maps(windows)
        texts = [0] * len(index) if maps is None else windows.crop(maps, index).mean((2, 3)).argmax(1).tolist()
        return Mixture([*range(len(index))], texts, None, [1.0] * len(index))


class WholeControl(Controlled):
    """Shrinks the whole control picture into each window."""

    def control(self, scene: Scene, windows: Windows, index: Sequence[int]) -> Tensor:
        shown = nn.functional.interpolate(scene.fields["control"][None], size=windows.window, mode="area")
        return shown.mean(1, keepdim=True).expand(len(index), -1, -1, -1)


class ScalesInPlace(Network):
    def __call__(self, x: Tensor, level: Level, condition: Any) -> Tensor:
        prediction = super().__call__(x, level, condition)
        x.data.mul_(level.alpha)
        return prediction


@pytest.mark.parametrize(
    ("broken", "check", "advice"),
    [
        (OneMoreChannel, denoisers.shape_and_dtype, r"returned shape torch.Size\(\[3, 3, 6, 6\]\).*remove other outputs"),
        (
            InHalf,
            denoisers.shape_and_dtype,
            r"returned dtype torch.bfloat16 for windows of dtype torch.float32.*with `.to\(x\)`",
        ),
        (Trainable, denoisers.frozen, "a network has trainable parameters. Return all networks in `modules`"),
        (InTraining, denoisers.frozen, "a network is in training mode.*Return all networks in `modules`"),
        (Cut, denoisers.differentiable, "has no gradient.*without no_grad, inference_mode or detach"),
        (Flat, denoisers.differentiable, "is 0 everywhere, and guidances need one"),
        (Explosive, denoisers.differentiable, "is not finite, and guidances need one"),
        (BatchNorm, denoisers.batch_split_invariance, "differently than alone.*windows may not share anything along the batch"),
        (
            ByPosition,
            denoisers.condition_per_window,
            r"conditions the windows \[2, 0\] differently alone.*must give window index",
        ),
        (OneText, denoisers.regions_are_mixed, "otherwise than each of their texts in its own cells .*Mixture.mix"),
        (WholeControl, denoisers.fields_are_cropped, "does not follow a field that is moved by a window .*Scene.crop"),
        (ScalesInPlace, denoisers.leaves_x_alone, "wrote to its windows.*without a trailing underscore"),
    ],
    ids=lambda value: getattr(value, "__name__", "says"),
)
def test_the_check_of_a_rule_is_the_first_to_fail_where_the_rule_is_broken(
    broken: Callable[[], Denoiser], check: Callable[..., None], advice: str
) -> None:
    name, problem = next(outcome for outcome in run_checks(broken) if outcome.problem)
    assert name == check.__name__
    assert re.search(advice, problem), problem
    assert "\n" not in problem


def test_every_check_is_tried_by_a_broken_denoiser() -> None:
    (mark,) = test_the_check_of_a_rule_is_the_first_to_fail_where_the_rule_is_broken.pytestmark
    tried = {check.__name__ for _, check, _ in mark.args[1]}
    assert tried == {check.name for check in checks(Controlled)}
