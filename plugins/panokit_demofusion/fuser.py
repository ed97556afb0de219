"""How local and dilated windows become one canvas."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from panokit import Level, Projected, SettingError, WeightedFuser, Windows
from panokit_demofusion.phases import dilated, fading, require_at_least_0

FLOOR = 1e-12
"""The least weight and the least share, so that a cell under windows of one kind alone is never 0 / 0."""
SPREAD = 0.2
"""The standard deviation of Gaussian weights, in windows."""


@final
@dataclass(frozen=True)
class DemoFusionFuser(WeightedFuser):
    r"""From the mean of the dilated windows, at the first step, to the mean of the local ones, at the last.

    $$ z = c_3 \operatorname{mean}(\text{dilated}) + (1 - c_3) \operatorname{mean}(\text{local}), \qquad
    c_3 = \left(\tfrac12 (1 + \cos \pi \tau)\right)^{\alpha_3} $$

    for each cell, where $\tau$ is the share of the steps that is done. A window is dilated if it spans more cells than it has.
    On canvases without such windows this is the plain weighted mean.

    Attributes:
        alpha3: $\alpha_3$, 0 or more: the larger, the sooner the local windows count alone.
        weights: `gaussian`, which fades towards the border of a window, or `uniform` as in the paper, which leaves faint seams
            where windows lie half a window apart.

    Raises:
        SettingError: a setting is out of its range.
    """

    constant: ClassVar[bool] = False

    alpha3: float = 1.0
    weights: Literal["gaussian", "uniform"] = "gaussian"

    def __post_init__(self) -> None:
        require_at_least_0(alpha3=self.alpha3)
        if self.weights not in ("gaussian", "uniform"):
            raise SettingError(f'weights is {self.weights!r}: it must be "gaussian" or "uniform"')

    def begin(self, windows: Windows, levels: Sequence[Level]) -> None:
        """Check that the canvas is a plane.

        Raises:
            SettingError: it is none.
        """
        if isinstance(windows, Projected):
            raise SettingError(
                "demofusion fuses dilated and local windows of a plane, and this canvas is none: choose another fuser, such as "
                "multidiffusion"
            )

    def weight(self, windows: Windows, level: Level) -> Float[Tensor, "#n *window"]:
        """The weight of each cell of a window; see `WeightedFuser.weight`."""
        far = dilated(windows)
        if not far.any() or far.all():
            return _profile(self.weights, windows.window)[None]
        c3 = fading(level, self.alpha3)
        share = torch.tensor([max(1 - c3, FLOOR), max(c3, FLOOR)], dtype=torch.float64)[far.long()]
        return _by_kind(self.weights, windows) * share.view(-1, *(1,) * len(windows.window))


@lru_cache(maxsize=2)
def _by_kind(weights: str, windows: Windows) -> Float[Tensor, "n *window"]:
    """Weights that sum to 1 over each cell, among the dilated windows and among the local ones."""
    profile, far = _profile(weights, windows.window), dilated(windows)
    normed = profile.new_zeros(len(windows), *windows.window)
    for kind in (far, ~far):
        numbers, total = kind.nonzero().flatten().tolist(), profile.new_zeros(windows.size)
        for i in numbers:
            windows.put(total, i, profile)
        normed[kind] = profile / windows.crop(total, numbers)
    return normed


def _profile(weights: str, window: tuple[int, ...]) -> Float[Tensor, "*window"]:
    """The weight of each cell, in (0, 1]."""
    profile = torch.ones(window, dtype=torch.float64)
    if weights == "uniform":
        return profile
    for axis, cells in enumerate(window):
        u = (torch.arange(cells) - (cells - 1) / 2) / (SPREAD * cells)
        profile = profile * torch.exp(-0.5 * u**2).view(-1, *(1,) * (len(window) - axis - 1))
    return profile.clamp(min=FLOOR)
