"""Fusers: they join overlapping windows into one canvas."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from panokit.errors import ContractError
from panokit.moved import require_arguments
from panokit.scheduler import CLEAN, Level
from panokit.windows import Windows


class Fuser(ABC):
    """Joins overlapping windows into one canvas.

    A fuser gets all windows at once, in the order of their numbers, on every rank. It must return the same canvas on each of
    them.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        require_arguments(cls, "fuse", "rows", "windows", "level")

    def begin(self, windows: Windows, levels: Sequence[Level]) -> None:
        """Check, before a run, that the fuser works with its windows. The default takes all.

        Called by the sampler, on every rank, for the canvas that the user asked for. Smaller canvases of guidances are fused
        without a question.

        Args:
            windows: where the windows of the canvas lie. A layout may move them at each level: see `Windows.at`.
            levels: the noise levels of the run, with the terminal one.

        Raises:
            SettingError: the fuser cannot join such windows.
        """
        return

    @abstractmethod
    def fuse(self, rows: Float[Tensor, "n *c_window"], windows: Windows, level: Level) -> Float[Tensor, "*c_size"]:
        """Join the windows of one canvas.

        The run fuses guided windows and predictions this way, and steps the fused canvas once.

        Args:
            rows: the content of all windows, `n c *window`, in the order of their numbers.
            windows: where they lie on the canvas.
            level: the noise level of the canvas, for fusers that change with it.

        Returns:
            The canvas, `c *size`. Windows cropped from one canvas must give that canvas back, up to rounding.
        """


class WeightedFuser(Fuser):
    r"""The weighted mean of the windows that cover a cell.

    $$ z = \sum_i \frac{F_i^{-1}(W_i)}{\sum_j F_j^{-1}(W_j)} F_i^{-1}(x_i) $$

    $F_i$ crops window $i$ out of the canvas, $x_i$ is that window, and $W_i$ is its weight (Bar-Tal et al. 2023, eq. 5). The
    sum is computed in float32 or float64, window by window in the order of their numbers. So it has the same bits wherever the
    windows were computed.
    """

    constant: ClassVar[bool] = True
    """Whether `weight` depends on the settings and the windows alone, so that its result can be kept. Set it to False if the
    weights change with the level; they are then computed at each fusion."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        require_arguments(cls, "weight", "windows", "level")

    @abstractmethod
    def weight(self, windows: Windows, level: Level) -> Float[Tensor, "#n *window"]:
        """The weight of each cell of a window.

        Args:
            windows: where the windows lie; `windows.window` is the shape of a weight.
            level: the noise level of the canvas. Use it only if `constant` is False.

        Returns:
            The weights $W$: `1 *window` if all windows share one, or `n *window`. They are finite and of any sign, and their
            sum over each cell of the canvas is above 0. Only ratios count: the mean divides by that sum.
        """

    @final
    def fuse(self, rows: Float[Tensor, "n *c_window"], windows: Windows, level: Level) -> Float[Tensor, "*c_size"]:
        """Join the windows by their weighted mean.

        Args:
            rows: the content of all windows, `n c *window`, in the order of their numbers.
            windows: where they lie on the canvas.
            level: the noise level of the canvas.

        Returns:
            The canvas, `c *size`, in float64 if the windows are, and in float32 otherwise.

        Raises:
            ContractError: `weight` returned another shape, a number that is not finite, or weights whose sum over a cell is
                not above 0.
        """
        dtype = torch.promote_types(rows.dtype, torch.float32)
        weigh = _kept_weights if self.constant else _weights
        # Weights that depend on no level are computed at one, so that the result serves all.
        weights, norm = weigh(self, windows, CLEAN if self.constant else level, dtype, rows.device)
        canvas = rows.new_zeros((*rows.shape[1 : rows.ndim - len(windows.window)], *windows.size), dtype=dtype)
        for i, row in enumerate(rows.to(dtype).unbind()):
            windows.put(canvas, i, row, weights[i % len(weights)])
        return canvas.mul_(norm)


def _weights(
    fuser: WeightedFuser, windows: Windows, level: Level, dtype: torch.dtype, device: torch.device
) -> tuple[tuple[Tensor, ...], Tensor]:
    """One weight for all windows or one for each, and the inverse of each cell's total weight."""
    # They are checked where they are made, which is the CPU for most fusers: so nothing waits for a device.
    weight, name = fuser.weight(windows, level).to(dtype), f"{type(fuser).__name__}.weight"
    if weight.shape[1:] != windows.window or len(weight) not in (1, len(windows)) or not weight.isfinite().all():
        raise ContractError(
            f"{name} returned shape {tuple(weight.shape)} for {len(windows)} windows of {windows.window}; it must return "
            f"{(1, *windows.window)} or {(len(windows), *windows.window)}, all finite"
        )
    weights, total = weight.unbind(), torch.zeros(windows.size, dtype=dtype, device=weight.device)
    for i in range(len(windows)):
        windows.put(total, i, weights[i % len(weights)])
    if not (total > 0).all():
        wrong = (total <= 0).nonzero()
        raise ContractError(
            f"{name} sums to {float(total.min()):.3g} over {len(wrong)} of {total.numel()} cells, the first at "
            f"{tuple(wrong[0].tolist())}; the weights over each cell must sum to more than 0"
        )
    return weight.to(device).unbind(), (1 / total).to(device)


_kept_weights = lru_cache(maxsize=32)(_weights)
