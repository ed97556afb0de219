"""Mixture of Diffusers (Jiménez 2023): windows with texts and strengths of guidance of their own, fused by their weights.

Every window predicts the noise for its own text, with its own strength of guidance. The predictions, and not the denoised
windows, are averaged with weights that fade towards a window's border, and the canvas makes one step. That is how panokit
treats windows anyhow. So this package has the method's weights, and `Regions(..., mix="windows")` gives each window one text.

Source: Jiménez, "Mixture of Diffusers for scene composition and high resolution image generation", arXiv:2302.02412.
"""

import math
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from panokit import Level, SettingError, WeightedFuser, Windows

FLOOR = 1e-12
"""The least weight, for cells that only the very border of a window covers."""


@final
@dataclass(frozen=True)
class MixtureOfDiffusers(WeightedFuser):
    r"""The mean of the windows' predictions over each cell, with the weights of the paper (section 3.2).

    $$ \hat\epsilon = \frac{\sum_i W_i\, \hat\epsilon_i}{\sum_i W_i}, \qquad W_i(u) = \prod_a k(u_a), $$

    where the product is over the axes, and $m = (w - 1) / 2$ is the middle of a window of $w$ cells. There are three kernels:

    * `gaussian`, with the variance $v$ in windows: $k = \exp\left(-(u - m)^2 / (2 v w^2)\right)$
    * `quartic`: $k = (1 - r^2)^2$, with $r = (u - m) / (w / 2)$
    * `constant`: $k = 1$

    Constant factors cancel out. `gaussian` at variance $v$ is MultiDiffusion with a `spread` of $\sqrt v$.

    Attributes:
        kernel: `gaussian`, `quartic` or `constant`.
        variance: $v$, above 0: the smaller it is, the more the middle of a window counts. The paper's is 0.01.

    Raises:
        SettingError: there is no such kernel, or the variance is not above 0.
    """

    kernel: Literal["gaussian", "quartic", "constant"] = "gaussian"
    variance: float = 0.01

    def __post_init__(self) -> None:
        if self.kernel not in ("gaussian", "quartic", "constant"):
            raise SettingError(f"kernel is {self.kernel!r}: it must be gaussian, quartic or constant")
        if not 0 < self.variance < math.inf:
            raise SettingError(f"variance is {self.variance}: it must be above 0, in windows; the paper's is 0.01")

    def weight(self, windows: Windows, level: Level) -> Float[Tensor, "1 *window"]:
        """The weight of each cell of a window, in (0, 1]; see `WeightedFuser.weight`."""
        weight = torch.ones(1, *windows.window)
        for axis, cells in enumerate(windows.window):
            apart = torch.arange(cells) - (cells - 1) / 2
            weight = weight * self._kernel(apart / cells).view(-1, *(1,) * (len(windows.window) - axis - 1))
        return weight.clamp(min=FLOOR)

    def _kernel(self, apart: Tensor) -> Tensor:
        """The weight at a distance from the middle, in windows."""
        if self.kernel == "gaussian":
            return torch.exp(-(apart**2) / (2 * self.variance))
        return (1 - (2 * apart) ** 2) ** 2 if self.kernel == "quartic" else torch.ones_like(apart)
