"""A head start: the canvas starts from a finished smaller picture of the whole scene."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor

from panokit import Estimate, Guidance, Known, Level, Step, Windows
from panokit_msd.pyramid import CrossScale, Memory
from panokit_msd.settings import require_shares


@final
@dataclass(frozen=True)
class HeadStart(CrossScale):
    r"""Head start: the canvas starts from a smaller picture of the whole scene, which is finished, enlarged and noised.

    A window of the smaller canvas sees more of the scene, so this canvas decides the layout. It takes all steps in a run of its
    own, with noise of its own, and becomes $z_0$. For the first share `until` of the steps, the run's canvas is

    $$ x_t = \alpha_t\, \mathcal E(U \mathcal D(z_0)) + \sigma_t\, \epsilon, $$

    where $\mathcal D$ decodes, $U$ is cubic interpolation of the picture, $\mathcal E$ encodes, and $\epsilon$ is the run's own
    noise. These steps need no passes. The later steps denoise the windows as usual. Meng et al. 2022 start from strokes of
    paint in the same way.

    It works alone and together with other guidances, which also guide the smaller canvas. Other guidances of this package do so
    only if that canvas has a smaller one itself. With more than two levels, the smaller canvas has a head start of its own.

    Attributes:
        until: the share of the steps without passes over the run's canvas, in [0, 1]. The last step has passes unless it is 1.
        levels: number of canvases, 2 to 32; None for as many as the canvas holds.
        factor: how many times smaller each canvas is than the one above, 2 or more. A film keeps its time; or give a factor for
            each axis, such as (1, 2, 2).

    Raises:
        SettingError: a setting is out of its range.
    """

    noise_key: ClassVar[str] = "HeadStart"

    until: float = 0.3
    levels: int | None = None
    factor: int | tuple[int, ...] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_shares(until=self.until)

    def with_levels(self, levels: int) -> "HeadStart":
        return replace(self, levels=levels)

    @property
    def starts(self) -> bool:
        return self.until > 0

    def known(self, step: Step, memory: Memory) -> Known | None:
        return enlarged_from_below(self, self.until, step, memory)

    def strength(self, level: Level) -> float:
        return 0.0  # it moves no window

    def energy(self, seen: Estimate, index: Sequence[int], context: Memory) -> Float[Tensor, " n"]:
        return seen.x0.new_zeros(len(index))


def enlarged_from_below(guidance: CrossScale, until: float, step: Step, memory: Memory) -> Known | None:
    """The finished and enlarged smaller canvas, for the first share of the steps; None for later steps.

    Args:
        guidance: the guidance to which the smaller canvas belongs.
        until: the share of the steps, in [0, 1].
        step: the current step of the run.
        memory: the memory of the guidance. It keeps the enlarged canvas while it is needed.
    """
    level = step.level
    last = level.step + 1 == level.steps and until < 1  # a step of the canvas's own, however few there are
    if level.progress >= until or last:
        memory.pop("painted", None)
        return None
    if "painted" not in memory:
        below = guidance.below(step.windows)
        painted = step.paint(below, _guides([guidance, *step.others], step.windows, below))
        memory["painted"] = step.magnify(painted, guidance.by(step.windows))
    return Known(memory["painted"])


def _guides(guidances: Sequence[Guidance], windows: Windows, below: Windows) -> list[Guidance]:
    """The guidances of the smaller canvas."""
    guides: list[Guidance] = []
    for guidance in guidances:
        guides += guidance.lowered(windows, below) if isinstance(guidance, CrossScale) else [guidance]
    return guides
