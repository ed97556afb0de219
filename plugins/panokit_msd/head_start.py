"""A head start: the canvas begins with a finished smaller picture of the whole."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor

from panokit import Estimate, Grid, Guidance, Level, Step
from panokit_msd.pyramid import CrossScale, Memory
from panokit_msd.scale import enlarged
from panokit_msd.settings import require_shares


@final
@dataclass(frozen=True)
class HeadStart(CrossScale):
    r"""Head start: the canvas begins with a smaller picture of the whole, finished, enlarged and noised.

    Windows of the smaller canvas see more of the scene at once, so the layout is decided there. The smaller canvas takes all
    steps of a run of its own, with noise of its own, and becomes $z_0$. Until a share of the steps is done the run's canvas is

    $$ x_t = \alpha_t\, U z_0 + \sigma_t\, \epsilon, $$

    with $U$ linear interpolation and $\epsilon$ the run's own noise, and its windows cost no pass. From there on they are
    denoised as ever. Meng et al. 2022 begin so with strokes of paint.

    It works alone and beside other guidances, which guide the smaller canvas too. Guidances of this package are there only if
    that canvas has a smaller one itself. With more than two levels, the smaller canvas has a head start of its own.

    Attributes:
        until: the share of the steps that the run's canvas is spared, in [0, 1]. The last step is spared at 1 alone.
        levels: how many canvases there are, 2 to 32; None: as many as the canvas holds.
        factor: how much smaller each is than the one above, 2 or more.

    Raises:
        SettingError: a setting is out of its range.
    """

    noise_key: ClassVar[str] = "HeadStart"

    until: float = 0.3
    levels: int | None = None
    factor: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_shares(until=self.until)

    def with_levels(self, levels: int) -> "HeadStart":
        return replace(self, levels=levels)

    def known(self, step: Step, memory: Memory) -> Float[Tensor, "*c_size"] | None:
        return enlarged_from_below(self, self.until, step, memory)

    def strength(self, level: Level) -> float:
        return 0.0  # it moves no window

    def energy(self, seen: Estimate, index: Sequence[int], context: Memory) -> Float[Tensor, " n"]:
        return seen.x0.new_zeros(len(index))


def enlarged_from_below(guidance: CrossScale, until: float, step: Step, memory: Memory) -> Float[Tensor, "*c_size"] | None:
    """The next smaller canvas, finished and enlarged, until a share of the steps is done; then None.

    Args:
        guidance: whose smaller canvas it is.
        until: the share of the steps, in [0, 1].
        step: of the run.
        memory: keeps the smaller canvas as long as it is needed.
    """
    level = step.level
    last = level.step + 1 == level.steps and until < 1  # a step of the canvas's own, however few there are
    if level.progress >= until or last:
        memory.pop("painted", None)
        return None
    if "painted" not in memory:
        below = guidance.below(step.grid)
        memory["painted"] = step.paint(below, _guides([guidance, *step.others], step.grid, below))
    return enlarged(memory["painted"], guidance.factor, step.grid.wrap)


def _guides(guidances: Sequence[Guidance], grid: Grid, below: Grid) -> list[Guidance]:
    """The guidances as they are on the smaller canvas."""
    guides: list[Guidance] = []
    for guidance in guidances:
        guides += guidance.lowered(grid, below) if isinstance(guidance, CrossScale) else [guidance]
    return guides
