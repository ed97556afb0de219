"""Multi-Scale Diffusion, as panokit does it: cheaper than in the paper, and better by the measures of the paper."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, NoReturn, final

from jaxtyping import Float
from torch import Tensor

from panokit import Estimate, Known, Level, SettingError, Step, Windows, former_settings
from panokit_msd.head_start import enlarged_from_below
from panokit_msd.paper import faded
from panokit_msd.pyramid import CrossScale, Memory, Target
from panokit_msd.scale import renoised
from panokit_msd.settings import require_at_least, require_shares

LEAD = 10.0
"""How many times the weight guides a canvas between two others.

Such a canvas must follow the one below before it can lead the one above, and there are few steps to do it in. At ten times the
rate it takes on nearly all of the smaller picture at once. At the plain rate it takes on a third, and the finest canvas a third
of that: too late for three levels without a head start, as docs/evaluate.md shows."""


@dataclass(frozen=True)
class Projection(CrossScale):
    """Moves clean estimates a share of the way to the coarse canvas; `MSDGuidance` says how, and what its settings are."""

    jacobian = "identity"
    noise_key: ClassVar[str] = "MSDGuidance"

    weight: float = 10.0
    decay: float = 2.0
    until: float = 0.5
    head_start: float = 0.3
    levels: int | None = None
    factor: int | tuple[int, ...] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(0, weight=self.weight, decay=self.decay)
        require_shares(until=self.until, head_start=self.head_start)

    def begin(self, windows: Windows, levels: Sequence[Level]) -> Memory:
        return {**super().begin(windows, levels), "coarse": self.begin_below(windows, levels)}

    @property
    def starts(self) -> bool:
        return self.weight != 0 and self.head_start > 0

    def known(self, step: Step, memory: Memory) -> Known | None:
        return None if self.weight == 0 else enlarged_from_below(self, self.head_start, step, memory)

    def prepare(self, step: Step, memory: Memory) -> Target:
        by = self.by(step.windows)
        coarse = renoised(step.windows, step.canvas, by, step.level, step.noise)
        return Target(self.estimate_below(step, coarse, memory["coarse"]).x0, step.windows.coarsened(by), by)

    def strength(self, level: Level) -> float:
        return -math.expm1(-faded(self.weight, self.decay, self.until, level) / level.steps)

    def energy(self, seen: Estimate, index: Sequence[int], context: Target) -> Float[Tensor, " n"]:
        return context.block / 2 * context.distance(seen.x0, index)


@final
@former_settings(
    {
        "coarse": "renoise",
        "space": "x0",
        "norm": "projection",
        "jacobian": "identity",
        "lead": LEAD,
        "density": 1,
        "coarse_guidances": [],
    },
    coarse="MSDGuidance always gives the coarse canvas fresh noise up to its level; MSDPaper (msd_paper) gives it none",
    space="MSDGuidance always compares clean estimates; MSDPaper (msd_paper) compares one step down",
    norm="MSDGuidance's weight is always a rate; MSDPaper (msd_paper) weighs a sum of squares",
    jacobian="MSDGuidance always corrects the clean estimate; MSDPaper (msd_paper) takes gradients through the denoiser",
    lead=f"it is always {LEAD:g}, so leave it out",
    density="coarse windows lie as far apart as fine ones; closer ones changed nothing, so leave it out",
    coarse_guidances="name these guidances beside MSDGuidance in the run's guidances, and they guide its smaller canvas too",
)
@dataclass(frozen=True)
class MSDGuidance(Projection):
    r"""Cross-scale guidance: a denoised window, shrunk, should equal its piece of a smaller picture of the whole scene.

    The finest canvas starts from a smaller picture of the whole scene (`head_start`), as with `HeadStart`. From there to
    `until`, at every step, the canvas is shrunk, gets new noise up to its noise level, and is denoised by MultiDiffusion. Then
    the clean estimate $\hat x_i$ of each window moves by a share towards its piece of the coarse estimate, $F'_i \hat z'$:

    $$ E_i = \tfrac{1}{2} f^a\, \lVert D \hat x_i - F'_i \hat z' \rVert^2, \qquad
    \hat x_i \leftarrow \hat x_i - (1 - e^{-\omega_t / T}) \nabla E_i, \qquad
    \omega_t = \omega \left(\tfrac{1}{2} (1 + \cos \pi \tau)\right)^k $$

    $D$ is the mean over blocks of $f$ cells (`factor`) along each of $a$ axes, $T$ the number of steps, and $\tau$ the share of
    them that is done. So the weight is a rate: it means the same for all models, window sizes, noise levels and numbers of
    steps. A guided window costs one pass forward and none backward.

    With more levels, the coarse canvas has a head start and is guided by a coarser one in the same way, with `LEAD` times the
    weight. The canvas must hold one window at the coarsest level; `factor` to the power of `levels` - 1 must divide
    its cells, and `factor` the window's and the stride's.

    Attributes:
        weight: $\omega$, 0 or more; 0 is MultiDiffusion bit for bit.
        decay: $k$, 0 or more: how fast the weight falls with the cosine; 0 keeps it constant.
        until: $T'$, the share of the steps after which the guidance ends, in [0, 1]. It begins after `head_start`.
        head_start: the share of the steps without passes over the finer canvas, in [0, 1], as in `HeadStart`; 0 starts from
            noise, as the paper does.
        levels: $S$, the number of canvases, 2 to 32; None for as many as the canvas holds.
        factor: how many times smaller each canvas is than the one above, 2 or more. A film keeps its time; or give a factor for
            each axis, such as (1, 2, 2).

    Raises:
        SettingError: a setting is out of its range.
    """

    def with_levels(self, levels: int) -> "Between":
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        return Between(**{**settings, "levels": levels, "weight": self.weight * LEAD})

    @classmethod
    def paper(cls, *args: Any, **settings: Any) -> NoReturn:
        """Refuse: the paper's algorithm is a class of its own, `MSDPaper`.

        Raises:
            SettingError: always.
        """
        raise SettingError("MSDGuidance.paper is a class of its own now: write MSDPaper, or msd_paper as a plugin's name")

    @classmethod
    def full(cls, *args: Any, **settings: Any) -> NoReturn:
        """Refuse: the gradient through the denoiser made no better pictures.

        Raises:
            SettingError: always.
        """
        raise SettingError(
            "MSDGuidance.full is gone, as it was no better than MSDGuidance: write MSDGuidance(head_start=0), or MSDPaper "
            "(msd_paper) for gradients through the denoiser"
        )


@final
@dataclass(frozen=True)
class Between(Projection):
    """MSD on a canvas between two others, with its weight multiplied by `LEAD` once, however many such canvases there are."""

    def with_levels(self, levels: int) -> "Between":
        return replace(self, levels=levels)
