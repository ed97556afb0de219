"""Guidance: an energy per window, whose gradient moves noisy windows before they are denoised.

Two rules hold for every guidance, and `panokit.testing` checks both. Windows never see each other in `energy`: what they
share is made in `prepare`, the same on every rank. And a guidance object never changes: what it must remember is what its
`begin` returned.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from panokit.denoiser import Codec
from panokit.grid import Grid
from panokit.scheduler import Level


@dataclass(frozen=True)
class Estimate:
    r"""What the denoiser makes of noisy windows, `n c *window`, or of a canvas, `c *size`.

    Attributes:
        x: the noisy one, $x = \alpha x_0 + \sigma \epsilon$.
        x0: the clean estimate.
        level: the noise level of `x`.
        below: the next main level down.
    """

    x: Float[Tensor, "*shape"]
    x0: Float[Tensor, "*shape"]
    level: Level
    below: Level

    @property
    def eps(self) -> Float[Tensor, "*shape"]:
        r"""The noise, $(x - \alpha x_0) / \sigma$."""
        return (self.x - self.level.alpha * self.x0) / self.level.sigma

    @property
    def prev(self) -> Float[Tensor, "*shape"]:
        r"""One deterministic step down, whatever the solver: $\alpha' x_0 + \sigma' \epsilon$ (Song et al. 2021, eq. 12)."""
        return self.at(self.below)

    def at(self, level: Level) -> Float[Tensor, "*shape"]:
        r"""The same at any level: $\alpha' x_0 + \sigma' \epsilon$."""
        return level.alpha * self.x0 + level.sigma * self.eps


@runtime_checkable
class Step(Protocol):
    """All that a guidance may touch: one canvas at one noise level."""

    @property
    def canvas(self) -> Float[Tensor, "*c_size"]:
        """The noisy canvas."""

    @property
    def grid(self) -> Grid:
        """Where its windows lie."""

    @property
    def level(self) -> Level:
        """Its noise level."""

    @property
    def codec(self) -> Codec | None:
        """Between latents and images; None if the model has none."""

    def look(self, index: Sequence[int]) -> Estimate:
        """What the denoiser makes of some windows of this canvas, unguided and without a graph."""

    def estimate(self, canvas: Float[Tensor, "*c_size"], grid: Grid, guided: "Sequence[tuple[Guidance, Any]]" = ()) -> Estimate:
        """What the sampler makes of any canvas at this noise level: cropped, guided, denoised, fused; not stepped.

        Args:
            canvas: `c *size`, at this noise level.
            grid: where its windows lie.
            guided: pairs of a guidance and its memory.
        """

    @property
    def others(self) -> "Sequence[Guidance]":
        """The run's other guidances: a canvas that this one paints may want some of them."""

    def paint(self, grid: Grid, guidances: "Sequence[Guidance]" = ()) -> Float[Tensor, "*c_size"]:
        """A finished canvas of other windows: a run of its own, of the same prompt and all steps.

        Its noise is keyed by the run's seed, the level, this guidance and the size of that canvas.

        Args:
            grid: where its windows lie.
            guidances: what guides it, exactly these; `others` are the run's.

        Raises:
            KeyboardInterrupt: the run was asked to stop.
        """

    def noise(self, shape: Sequence[int]) -> Float[Tensor, "*shape"]:
        """Standard normal noise, the same on every rank.

        It is keyed by the run's seed, the level, the canvas's size, the guidance's `noise_key`, the number of guidances with
        the same key that stand before it, and the hook, `known` or `prepare`. So guidances of different classes may change
        places, and others may come and go, without a change of this one's noise.

        Args:
            shape: of the noise. A second call in one step draws fresh noise.
        """


class Guidance(ABC):
    """Moves noisy windows down the gradient of an energy before they are denoised."""

    jacobian: Literal["full", "identity"] = "full"
    """`full`: the gradient goes through the denoiser to the noisy window. `identity`: it corrects the clean estimate after
    the last pass, with no backward through the denoiser; the noise estimate stays what it was."""

    noise_key: ClassVar[str] = ""
    """What keys the noise that the guidance draws; its module and class unless given. A key of its own keeps pictures the same
    when the class moves or is renamed."""

    def begin(self, grid: Grid, levels: Sequence[Level]) -> Any:
        """The memory of one run, called once: nested dicts of tensors and numbers, so that a checkpoint can hold it.

        Smaller canvases, which another guidance paints for the run, are runs too.
        """
        return None

    def known(self, step: Step, memory: Any) -> Float[Tensor, "*c_size"] | None:
        """The clean estimate of the whole canvas, where the denoiser need not be asked for it; the same on every rank.

        Asked before each model call of the run's own canvas; of several guidances the first that knows is believed. Then
        there is no pass, and nothing is guided. At the run's first level the estimate is laid under the noise. So it should
        be known from there on, and stay what it was: what changes is taken for noise. May write to the memory.

        Returns:
            The estimate, `c *size`, or None.
        """
        return None

    def prepare(self, step: Step, memory: Any) -> Any:
        """What the windows of one step share; the same on every rank. May write to the memory. Called without grad.

        Returns:
            The context that `energy` gets; the memory unless overridden.
        """
        return memory

    @abstractmethod
    def strength(self, level: Level) -> float:
        """The factor of the gradient at a level. At 0 the guidance is asleep: `prepare` and `energy` are not called.

        A guidance that only knows the canvas (`known`) moves no window, and is asleep at every level.
        """

    @abstractmethod
    def energy(self, seen: Estimate, index: Sequence[int], context: Any) -> Float[Tensor, " n"]:
        """One number a window, for the windows `index`, differentiable in `seen.x` and `seen.x0`."""
