"""The convolutions of a UNet, and how they are dilated for a while."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn

from panokit import SettingError

Scale = tuple[int, int]
"""A factor for the height, and one for the width."""


class Spread(NamedTuple):
    """A convolution, and how far apart its taps are while it is dilated."""

    convolution: nn.Conv2d
    dilation: Scale


@contextmanager
def dilated(some: Sequence[Spread]) -> Iterator[None]:
    """Inside, convolutions are dilated. Their network may be another sampler's too, so they are restored whatever happens."""
    try:
        for convolution, dilation in some:
            convolution.dilation = convolution.padding = dilation
        yield
    finally:
        for convolution, _ in some:
            convolution.dilation = convolution.padding = (1, 1)


def spreads(networks: Iterable[nn.Module], scale: Scale, outer: int, name: str) -> list[Spread]:
    """The convolutions of 3 x 3 taps in the levels of a UNet that are to be dilated, those that halve its cells too.

    Args:
        networks: all networks of a model.
        scale: the largest dilation.
        outer: the number of outer levels that stay as they are.
        name: what the user calls the model, for errors.

    Raises:
        SettingError: there is no UNet, or it has too few levels.
    """
    networks = list(networks)
    unets: list[Any] = [part for part in networks if getattr(part, "down_blocks", None) and hasattr(part, "up_blocks")]
    if not unets:
        kinds = ", ".join(type(network).__name__ for network in networks) or "no network that panokit may change"
        raise SettingError(
            f"ScaleCrafter re-dilates the convolutions of a UNet, and the model {name} has none: it has {kinds}; take a model "
            "of the kind of Stable Diffusion or SDXL"
        )
    some = []
    for unet in unets:
        last = len(unet.down_blocks) - 1
        if outer > last:
            raise SettingError(
                f"outer is {outer}, and the UNet of {name} has {last + 1} levels: leave {last} or fewer as they are"
            )
        blocks = [*enumerate(unet.down_blocks), (last, unet.mid_block)]
        blocks += [(last - place, block) for place, block in enumerate(unet.up_blocks)]
        for level, block in blocks:
            high, wide = (min(by, max(1, level + 2 - outer)) for by in scale)
            if (high, wide) != (1, 1):
                some += [Spread(convolution, (high, wide)) for convolution in _convolutions(block)]
    return some


def _convolutions(block: Any) -> Iterator[nn.Conv2d]:
    """The convolutions of a block that keep, or halve, the size of their input."""
    for part in block.modules() if block is not None else ():
        if isinstance(part, nn.Conv2d) and (part.kernel_size, part.padding, part.dilation) == ((3, 3), (1, 1), (1, 1)):
            yield part
