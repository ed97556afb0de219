"""From a fine canvas to a coarse one, with the noise level of what comes out."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from panokit import Level, Windows
from panokit.windows import Factor, pooled


def mean(x: Float[Tensor, "*fine"], factor: Factor, axes: int) -> Float[Tensor, "*coarse"]:
    r"""$D$: the mean of blocks of `factor` cells along each of the last `axes` axes; at factor 2, bilinear interpolation.

    Of independent noise it leaves the standard deviation times $m^{-1/2}$, for blocks of $m$ cells.
    """
    return pooled(x, (factor,) * axes if isinstance(factor, int) else factor)


def renoised(
    windows: Windows, canvas: Float[Tensor, "*fine"], factor: Factor, level: Level, noise: Callable[[tuple[int, ...]], Tensor]
) -> Float[Tensor, "*coarse"]:
    r"""A shrunk canvas, with as much fresh noise as the mean took away: $D x + \sigma \sqrt{1 - 1 / m}\; \xi$.

    $m$ is how many cells become one, $f^a$ on a plane of $a$ axes.
    """
    coarse, count = windows.shrunk(canvas, factor)
    return coarse + level.sigma * (1 - 1 / count) ** 0.5 * noise(tuple(coarse.shape))
