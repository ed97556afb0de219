"""The guidance: an energy that compares clean estimates with those of a finished smaller canvas."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

from jaxtyping import Float
from torch import Tensor

from panokit import Estimate, Guidance, Known, Level, Projected, SettingError, Step, Windows
from panokit.scheduler import CLEAN
from panokit_hiflow.bands import enlarged, low_pass

Memory = dict[str, Any]


@final
class Reference(NamedTuple):
    """What the windows of one step follow.

    Attributes:
        windows: where the windows lie.
        x0: the enlarged clean estimate of the smaller canvas at this step, `c *size`.
        target: the clean estimate whose change since the step before is that of the reference; None at the first guided step.
    """

    windows: Windows
    x0: Float[Tensor, "*c_size"]
    target: Float[Tensor, "*c_size"] | None


@final
@dataclass(frozen=True)
class HiFlow(Guidance):
    r"""Flow-aligned guidance: the low frequencies, and the changes, of a canvas are those of a smaller one.

    A canvas `factor` times smaller is painted first. Its clean estimates $z_t$ at all steps, enlarged by linear interpolation
    $U$, are the reference. (1) The run's canvas starts from the enlarged finished canvas, noised: $x_t = \alpha_t U z_0 +
    \sigma_t \epsilon$ for the first share `start` of the steps. (2) *Direction*, for the clean estimate $\hat x_t$ of a window:

    $$ \hat x_t \leftarrow \hat x_t + a_t\, L (U z_t - \hat x_t) $$

    $L$ is an ideal low-pass. (3) *Acceleration*: the velocity $v = \hat\epsilon - \hat x$ changes as the reference's does,

    $$ v_t \leftarrow v_t + b_t \left(v_{t'} + (v^{ref}_t - v^{ref}_{t'}) - v_t\right), $$

    where $t'$ is the step before. A deterministic step from $t'$ to $t$ keeps $\hat x_{t'}$ and $\hat\epsilon_{t'}$. So two
    canvases determine both, and with $x_t$ given (3) says the same of the clean estimate, for flow matching and for diffusion:

    $$ \hat x_t \leftarrow \hat x_t + b_t \left(\hat x_{t'} + U z_t - U z_{t'} - \hat x_t\right). $$

    $a_t$ and $b_t$ fall linearly to 0 at the end. The paper keeps the noisy canvas where it is, while panokit moves it with the
    clean estimate. One deterministic step later both are at the same canvas, if the correction is multiplied by $1 - \alpha_t
    \sigma_s / (\sigma_t \alpha_s)$ with the next step $s$. So it is.

    Attributes:
        direction: $a$ at the first guided step, in [0, 1].
        acceleration: $b$ at the first guided step, in [0, 1]. Steps that draw noise make the step before no guide, so set it to
            0 for ancestral schedulers.
        cutoff: the share of the band that $L$ keeps along each axis, in [0, 1]; at 0 it keeps the mean.
        start: the share of the steps without passes over the run's canvas, in [0, 1]. The last step has passes unless it is 1.
        factor: how many times smaller the other canvas is, 2 or more.

    Raises:
        SettingError: a setting is out of its range.
    """

    jacobian = "identity"

    direction: float = 1.0
    acceleration: float = 0.5
    cutoff: float = 0.2
    start: float = 0.4
    factor: int = 2

    def __post_init__(self) -> None:
        for name in ("direction", "acceleration", "cutoff", "start"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingError(f"{name} is {getattr(self, name)}: it must be from 0 to 1")
        if self.factor < 2:
            raise SettingError(f"factor is {self.factor}: it must be 2 or more")

    @property
    def starts(self) -> bool:
        return self.start > 0

    def begin(self, windows: Windows, levels: Sequence[Level]) -> Memory:
        if isinstance(windows, Projected):
            raise SettingError("hiflow enlarges planes, and this canvas is none: leave it out, or choose the guidance msd")
        try:
            windows.scaled(self.factor)
        except SettingError as error:
            raise SettingError(f"hiflow first paints a canvas {self.factor} times smaller: {error}") from error
        return {}

    def known(self, step: Step, memory: Memory) -> Known | None:
        if self._follows(step.level):
            return None
        return Known(enlarged(self._path(step, memory)[step.level.steps], self.factor, step.windows.wrap))

    def prepare(self, step: Step, memory: Memory) -> Reference:
        level, path, wrap = step.level, self._path(step, memory), step.windows.wrap
        path.pop(level.steps, None)
        x0, target = enlarged(path[level.step], self.factor, wrap), None
        if before := memory.get("before"):
            canvas, alpha, sigma = before["canvas"], before["alpha"], before["sigma"]
            apart = sigma * level.alpha - level.sigma * alpha
            if apart > 0:  # some solvers pass a level twice
                kept = (sigma * step.canvas - level.sigma * canvas) / apart  # x = alpha x0 + sigma eps, at both levels
                target = kept + x0 - enlarged(path[before["step"]], self.factor, wrap)
            if before["step"] < level.step:
                del path[before["step"]]
        memory["before"] = {"canvas": step.canvas.clone(), "alpha": level.alpha, "sigma": level.sigma, "step": level.step}
        return Reference(step.windows, x0, target)

    def strength(self, level: Level) -> float:
        if self.start == 1 or self.direction == self.acceleration == 0:
            return 0.0
        return min(1.0, (1 - level.progress) / (1 - self.start))

    def energy(self, seen: Estimate, index: Sequence[int], context: Reference) -> Float[Tensor, " n"]:
        level, below, axes = seen.level, seen.below, len(context.windows.window)
        low = low_pass(seen.x0 - context.windows.crop(context.x0, index), self.cutoff, axes)
        energy = self.direction / 2 * low.square().flatten(1).sum(1)
        if context.target is not None:
            # Acceleration comes after direction, and leaves a share of what that did.
            apart = seen.x0 - context.windows.crop(context.target, index)
            energy = energy * (1 - self.strength(level) * self.acceleration)
            energy = energy + self.acceleration / 2 * apart.square().flatten(1).sum(1)
        return energy * (1 - level.alpha * below.sigma / (level.sigma * below.alpha))

    def _follows(self, level: Level) -> bool:
        """Whether the run's canvas is denoised at a step: the first ones only take the smaller canvas over."""
        last = level.step + 1 == level.steps and self.start < 1  # a step of the canvas's own, however few there are
        return level.progress >= self.start or last

    def _path(self, step: Step, memory: Memory) -> dict[int, Tensor]:
        """The clean estimates of the smaller canvas that are still needed, by their steps, and then the finished canvas."""
        path = memory.setdefault("path", {})
        if not memory.get("painted"):
            below = step.windows.scaled(self.factor)
            guides = [guidance for guidance in (self, *step.others) if _works_on(guidance, below, step.level)]

            def keep(seen: Estimate) -> None:
                if self._follows(seen.level):
                    path[seen.level.step] = seen.x0

            path[step.level.steps] = step.paint(below, guides, keep)
            memory["painted"] = True
        return path


def _works_on(guidance: Guidance, windows: Windows, level: Level) -> bool:
    """Whether a guidance of the run takes a smaller canvas, too. One that compares scales may need a larger one."""
    try:
        guidance.begin(windows, [level, CLEAN])
    except SettingError:
        return False
    return True
