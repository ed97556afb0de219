"""Progressive upscaling and the skip residual: the canvas follows the enlarged one of the phase before."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, final

from jaxtyping import Bool, Float
from torch import Tensor, where

from panokit import Estimate, Guidance, Level, Projected, SettingError, Step, Windows, enlarged
from panokit_demofusion.canvas import filtered
from panokit_demofusion.layout import Phased
from panokit_demofusion.phases import base_of, dilated, fading, most, require_at_least_0, require_phases

Memory = dict[str, Tensor]


@final
class Target(NamedTuple):
    """Where the windows of one step are moved to.

    Attributes:
        windows: where they lie.
        dilated: for each, whether it is dilated.
        canvas: the canvas with the skip residual: the local windows are its crops.
        smooth: the same canvas, filtered: the dilated windows are its crops.
    """

    windows: Windows
    dilated: Bool[Tensor, " n"]
    canvas: Float[Tensor, "*c_size"]
    smooth: Float[Tensor, "*c_size"]


@final
@dataclass(frozen=True)
class DemoFusion(Guidance):
    r"""Paint a smaller canvas first, and let this one follow it: less and less from step to step.

    The canvas is the last of $S$ phases. The canvas of phase $S - 1$ has $(S - 1) / S$ times the cells along every axis. It is
    painted in the same way, down to the first phase, which no DemoFusion guides. Enlarged by bicubic interpolation it is
    $z'_0$. Before each step the canvas $z_t$ becomes

    $$ \hat z_t = c_1 z'_t + (1 - c_1) z_t, \qquad z'_t = \alpha_t z'_0 + \sigma_t \epsilon, \qquad
    c_1 = \left(\tfrac12 (1 + \cos \pi \tau)\right)^{\alpha_1} $$

    where $\epsilon$ is the noise of the run, the same at all steps, and $\tau$ is the share of the steps that is done. At the
    first step $c_1 = 1$: the canvas starts from the smaller one, noised. Local windows are crops $F_i$ of $\hat z_t$. Dilated
    windows are crops of $\hat z_t$ after a Gaussian filter, with the mean and the standard deviation that it had before. The
    filter reaches $2 s - 2$ cells in phase $s$, and its standard deviation falls with the steps:

    $$ c_2 (\sigma_1 - \sigma_2) + \sigma_2, \qquad c_2 = \left(\tfrac12 (1 + \cos \pi \tau)\right)^{\alpha_2} $$

    As an energy: $E_i = \tfrac12 \lVert x_i - F_i(\hat z_t) \rVert^2$ with strength 1, of the noisy window alone. It costs no
    pass.

    Attributes:
        phases: $S$, 2 or more; None for that of the layout, or as many as the canvas holds in another layout.
        alpha1: $\alpha_1$ of the skip residual, 0 or more: the larger, the sooner the canvas is free.
        alpha2: $\alpha_2$ of the filter, 0 or more: the larger, the sooner it is weak.
        sigma1: $\sigma_1$, the standard deviation of the filter at the first step, in cells, 0 or more.
        sigma2: $\sigma_2$, the one that it falls to, in cells, 0 or more; 0 for both is no filter.

    Raises:
        SettingError: a setting is out of its range.
    """

    jacobian = "none"

    phases: int | None = None
    alpha1: float = 3.0
    alpha2: float = 1.0
    sigma1: float = 1.0
    sigma2: float = 0.01

    def __post_init__(self) -> None:
        require_phases(self.phases, 2)
        require_at_least_0(alpha1=self.alpha1, alpha2=self.alpha2, sigma1=self.sigma1, sigma2=self.sigma2)

    def begin(self, windows: Windows, levels: Sequence[Level]) -> Memory:
        if isinstance(windows, Projected):
            raise SettingError(
                "demofusion enlarges planes in phases, and this canvas is none: leave it out, or choose the guidance msd"
            )
        base_of(windows.size, windows.window, self._phases(windows))
        return {}

    @property
    def starts(self) -> bool:
        return True

    def prepare(self, step: Step, memory: Memory) -> Target:
        level, wrap, far = step.level, step.windows.wrap, dilated(step.windows)
        phases = self._phases(step.windows)
        if not memory:
            memory |= self._start(step, phases)
        c1, c2 = fading(level, self.alpha1), fading(level, self.alpha2)
        before = level.alpha * memory["enlarged"] + level.sigma * memory["noise"]
        canvas = c1 * before + (1 - c1) * step.canvas
        sigma = c2 * (self.sigma1 - self.sigma2) + self.sigma2
        return Target(step.windows, far, canvas, filtered(canvas, sigma, 2 * phases - 2, wrap) if far.any() else canvas)

    def strength(self, level: Level) -> float:
        return 1.0

    def energy(self, seen: Estimate, index: Sequence[int], context: Target) -> Float[Tensor, " n"]:
        far = context.dilated[list(index)].to(seen.x.device).view(-1, *(1,) * (seen.x.ndim - 1))
        local, smooth = (context.windows.crop(canvas, index) for canvas in (context.canvas, context.smooth))
        return (seen.x - where(far, smooth, local)).square().flatten(1).sum(1) / 2

    def _phases(self, windows: Windows) -> int:
        """The number of phases: the guidance's own, the layout's, or as many as the canvas holds, but 2 at least."""
        laid = windows.phases if isinstance(windows, Phased) else None
        if None not in (self.phases, laid) and self.phases != laid:
            raise SettingError(f"DemoFusion has {self.phases} phases, and its layout {laid}: set them in the layout alone")
        return self.phases or max(2, laid or most(windows.size, windows.window))

    def _start(self, step: Step, phases: int) -> Memory:
        """The finished canvas of the phase before, enlarged, and the noise of the run.

        Raises:
            SettingError: the canvas is no noise any more, because the run starts from a picture with a strength below 1.
        """
        if step.level.index:
            raise SettingError(
                "DemoFusion starts from a smaller canvas that it paints, and this run from a picture: leave out demofusion, or "
                "set strength to 1"
            )
        size = tuple(cells // phases * (phases - 1) for cells in step.windows.size)
        guides = [replace(self, phases=phases - 1)] if phases > 2 else []
        small = step.paint(step.windows.on(size), [*guides, *step.others])
        return {"enlarged": enlarged(small, step.windows.wrap, phases, phases - 1), "noise": step.canvas / step.level.sigma}
