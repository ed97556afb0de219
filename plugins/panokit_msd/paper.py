"""Multi-Scale Diffusion as in its paper."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

from jaxtyping import Float
from torch import Tensor

from panokit import Estimate, Level, Step, Windows
from panokit_msd.pyramid import CrossScale, Memory, Target
from panokit_msd.settings import require_at_least, require_shares


@final
@dataclass(frozen=True)
class MSDPaper(CrossScale):
    r"""Algorithm 1 of the MSD paper (Zhang et al. 2024).

    At a guided step the canvas $z_t$ is shrunk and denoised by MultiDiffusion. Then each window $x_i$ moves by

    $$ x_i \leftarrow x_i - \omega_t \nabla_{x_i} \lVert D(\Phi(x_i)) - F'_i(\Phi(D z_t)) \rVert^2, \qquad
    \omega_t = \omega \left(\tfrac{1}{2} (1 + \cos \pi \tau)\right)^k $$

    (eq. 8 and 9). $D$ is the mean over blocks of `factor` cells. $\Phi$ is one deterministic step down, and the gradient goes
    through the denoiser. $F'_i$ crops the part of the coarse canvas that window $i$ covers, and $\tau$ is the share of the
    steps that is done. With more than two levels, the coarse canvas is guided by a coarser one in the same way.

    A guided window costs two passes forward and one backward. `MSDGuidance` costs one forward, and makes better pictures.

    Attributes:
        weight: $\omega$, 0 or more; 0 is MultiDiffusion bit for bit. It multiplies a sum of squares, so its effect depends on
            the size of the window and the number of steps.
        decay: $k$, 0 or more: how fast the weight falls with the cosine; 0 keeps it constant.
        until: $T'$, the share of the steps after which the guidance ends, in [0, 1].
        levels: $S$, the number of canvases, 2 to 32; None for as many as the canvas holds.
        factor: how many times smaller each canvas is than the one above, 2 or more. A film keeps its time; or give a factor for
            each axis, such as (1, 2, 2).

    Raises:
        SettingError: a setting is out of its range.
    """

    weight: float = 10.0
    decay: float = 1.0
    until: float = 0.5
    levels: int | None = None
    factor: int | tuple[int, ...] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(0, weight=self.weight, decay=self.decay)
        require_shares(until=self.until)

    def with_levels(self, levels: int) -> "MSDPaper":
        return replace(self, levels=levels)

    def begin(self, windows: Windows, levels: Sequence[Level]) -> Memory:
        return {**super().begin(windows, levels), "coarse": self.begin_below(windows, levels)}

    def prepare(self, step: Step, memory: Memory) -> Target:
        by = self.by(step.windows)
        coarse, _ = step.windows.shrunk(step.canvas, by)
        return Target(self.estimate_below(step, coarse, memory["coarse"]).prev, step.windows.coarsened(by), by)

    def strength(self, level: Level) -> float:
        return faded(self.weight, self.decay, self.until, level)

    def energy(self, seen: Estimate, index: Sequence[int], context: Target) -> Float[Tensor, " n"]:
        return context.distance(seen.prev, index)


def faded(weight: float, decay: float, until: float, level: Level) -> float:
    r"""The weight at a level, $\omega_t$ of eq. 9; 0 from `until` on."""
    if level.progress >= until:
        return 0.0
    return weight * (0.5 * (1 + math.cos(math.pi * level.progress))) ** decay
