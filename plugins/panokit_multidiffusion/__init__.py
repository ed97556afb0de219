"""MultiDiffusion (Bar-Tal et al. 2023, arXiv:2302.08113): the fused canvas is the weighted mean of the windows."""

from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from panokit import Level, SettingError, WeightedFuser, Windows

FLOOR = 1e-12
"""The least weight. Without it, a narrow Gaussian would give 0 / 0 at a cell that only the corner of one window covers."""


@final
@dataclass(frozen=True)
class MultiDiffusion(WeightedFuser):
    r"""The weighted mean of the windows over each cell, the closed form of the paper's eq. 5.

    `uniform` weights are the paper's, $W = 1$. `gaussian` weights fade towards the border, so that no window ends abruptly:

    $$ W(u) = \prod_a \exp\left(-\tfrac{1}{2} \left(\frac{u_a - (w_a - 1) / 2}{\varsigma\, w_a}\right)^2\right) $$

    with cells $u_a = 0, \dots, w_a - 1$ along axis $a$. They are symmetric about the centre of the window.

    Attributes:
        weights: `gaussian` or `uniform`.
        spread: $\varsigma$, the standard deviation of the Gaussian, in windows, above 0.

    Raises:
        SettingError: `weights` is another text, or `spread` is not above 0.
    """

    weights: Literal["gaussian", "uniform"] = "gaussian"
    spread: float = 0.2

    def __post_init__(self) -> None:
        if self.weights not in ("gaussian", "uniform"):
            raise SettingError(f'weights is {self.weights!r}: it must be "gaussian" or "uniform"')
        if not self.spread > 0:
            raise SettingError(f"spread is {self.spread}: it must be positive, in windows; 0.2 is a good one")

    def weight(self, windows: Windows, level: Level) -> Float[Tensor, "1 *window"]:
        """The weight of each cell of a window, in (0, 1]; see `WeightedFuser.weight`."""
        weight = torch.ones(1, *windows.window)
        if self.weights == "uniform":
            return weight
        for axis, cells in enumerate(windows.window):
            u = (torch.arange(cells) - (cells - 1) / 2) / (self.spread * cells)
            fade = torch.exp(-0.5 * u**2)
            weight = weight * fade.view(-1, *(1,) * (len(windows.window) - axis - 1))
        return weight.clamp(min=FLOOR)
