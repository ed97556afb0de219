"""From a fine canvas to a coarse one, with the noise level of what comes out."""

from collections.abc import Callable
from math import prod

from jaxtyping import Float
from torch import Tensor, nn

from panokit import Level, SettingError

Factor = int | tuple[int, ...]
"""A factor for all axes, or one for each."""


def mean(x: Float[Tensor, "*fine"], factor: Factor, axes: int) -> Float[Tensor, "*coarse"]:
    r"""$D$: the mean of blocks of `factor` cells along each of the last `axes` axes; at factor 2, bilinear interpolation.

    Of independent noise it leaves the standard deviation times $n^{-1/2}$, for blocks of $n$ cells.
    """
    match axes:
        case 1:
            return nn.functional.avg_pool1d(x, factor)
        case 2:
            return nn.functional.avg_pool2d(x, factor)
        case 3:
            return nn.functional.avg_pool3d(x, factor)
    raise SettingError(f"a canvas of {axes} axes cannot be shrunk: MSD works with 1, 2 or 3")


def renoised(
    x: Float[Tensor, "*fine"], factor: Factor, axes: int, level: Level, noise: Callable[[tuple[int, ...]], Tensor]
) -> Float[Tensor, "*coarse"]:
    r"""The mean, with as much fresh noise as it took away: $D x + \sigma \sqrt{1 - 1 / n}\; \xi$, for blocks of $n$ cells."""
    coarse, n = mean(x, factor, axes), factor**axes if isinstance(factor, int) else prod(factor)
    return coarse + level.sigma * (1 - 1 / n) ** 0.5 * noise(tuple(coarse.shape))
