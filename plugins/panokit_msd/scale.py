"""From a fine canvas to a coarse one, with the noise level of what comes out, and back."""

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate, pad

from panokit import Level


def mean(x: Float[Tensor, "*fine"], factor: int, axes: int) -> Float[Tensor, "*coarse"]:
    r"""$D$: the mean of blocks of `factor` cells along each of the last `axes` axes; at factor 2, bilinear interpolation.

    Of independent noise it leaves the standard deviation times `factor ** (-axes / 2)`.
    """
    for axis in range(-axes, 0):
        x = x.unflatten(axis, (-1, factor)).mean(axis)
    return x


def renoised(
    x: Float[Tensor, "*fine"], factor: int, axes: int, level: Level, noise: Callable[[tuple[int, ...]], Tensor]
) -> Float[Tensor, "*coarse"]:
    r"""The mean, with as much fresh noise as it took away: $D x + \sigma \sqrt{1 - f^{-a}}\; \xi$."""
    coarse = mean(x, factor, axes)
    return coarse + level.sigma * (1 - factor**-axes) ** 0.5 * noise(tuple(coarse.shape))


def enlarged(x: Float[Tensor, "*coarse"], factor: int, wrap: Sequence[bool]) -> Float[Tensor, "*fine"]:
    """Linear interpolation to `factor` times the cells, along as many of the last axes as `wrap` has entries.

    It goes round the join of an axis that wraps; elsewhere what lies beyond the outermost cells' centres is as they are.
    """
    for axis, ring in enumerate(wrap, start=-len(wrap)):
        rows = x.movedim(axis, -1)
        lines = rows.reshape(1, -1, rows.shape[-1])
        lines = interpolate(pad(lines, (1, 1), mode="circular" if ring else "replicate"), scale_factor=factor, mode="linear")
        x = lines[..., factor:-factor].reshape(*rows.shape[:-1], -1).movedim(-1, axis)
    return x
