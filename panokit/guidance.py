"""Guidance: an energy for each window. Its gradient moves noisy windows before they are denoised.

Two rules hold for every guidance, and `panokit.testing` checks both. Windows never see each other in `energy`; `prepare` makes
what they share, the same on every rank. A guidance object never changes; the object that its `begin` returns is its memory.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, final, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from panokit.denoiser import Codec
from panokit.errors import SettingError
from panokit.scheduler import Level
from panokit.windows import Factor, Windows

Jacobian = Literal["full", "identity", "none"]
"""What the gradient of an energy moves: see `Guidance.jacobian`."""


@dataclass(frozen=True)
class Estimate:
    r"""Noisy windows, `n c *window`, or a noisy canvas, `c *size`, with the denoiser's clean estimate.

    Attributes:
        x: the noisy windows or canvas, $x = \alpha x_0 + \sigma \epsilon$.
        x0: the clean estimate $\hat x_0$, of the same shape.
        level: the noise level of `x`.
        below: the next main level after `level`, or the terminal one.
    """

    x: Float[Tensor, "*shape"]
    x0: Float[Tensor, "*shape"]
    level: Level
    below: Level

    @property
    def eps(self) -> Float[Tensor, "*shape"]:
        r"""The estimate of the noise, $\hat\epsilon = (x - \alpha \hat x_0) / \sigma$."""
        return (self.x - self.level.alpha * self.x0) / self.level.sigma

    @property
    def prev(self) -> Float[Tensor, "*shape"]:
        r"""The estimate after one deterministic step to `below`, for any solver (Song et al. 2021, eq. 12)."""
        return self.at(self.below)

    def at(self, level: Level) -> Float[Tensor, "*shape"]:
        r"""The estimate at another noise level, $\alpha' \hat x_0 + \sigma' \hat\epsilon$.

        Args:
            level: the noise level with $\alpha'$ and $\sigma'$.

        Returns:
            Noisy windows or a noisy canvas, of the shape of `x`.
        """
        # The terms of each tensor are summed before they are computed: this takes half of the operations.
        ratio = level.sigma / self.level.sigma
        return (level.alpha - ratio * self.level.alpha) * self.x0 + ratio * self.x


@final
@dataclass(frozen=True, eq=False)
class Known:
    """What is known of the clean canvas without the model.

    Attributes:
        x0: the clean canvas, `c *size`. It counts where it is known, and should be the same at each step: any change would be
            treated as noise.
        where: the cells that are known, `*size`, on the CPU, so that nothing waits for a device; None for all.
    """

    x0: Float[Tensor, "*c_size"]
    where: Bool[Tensor, "*size"] | None = None

    def choose(self, inside: Float[Tensor, "*c_size"], outside: Float[Tensor, "*c_size"]) -> Float[Tensor, "*c_size"]:
        """One canvas where it is known, and another one elsewhere."""
        return inside if self.where is None else torch.where(self.where.to(inside.device), inside, outside)

    def joined(self, other: "Known") -> "Known":
        """What is known by this or by the other. Where it is by both, this one counts."""
        if self.where is None:
            return self
        where = None if other.where is None else self.where.cpu() | other.where.cpu()
        return Known(self.choose(self.x0, other.x0), None if where is not None and bool(where.all()) else where)

    def without(self, cells: Bool[Tensor, "*size"] | None) -> "Known":
        """What is known outside some cells."""
        if cells is None:
            return self
        return Known(self.x0, ~cells if self.where is None else self.where.cpu() & ~cells)


@runtime_checkable
class Step(Protocol):
    """All that a guidance may use of a run: one canvas at one noise level."""

    @property
    def canvas(self) -> Float[Tensor, "*c_size"]:
        """The noisy canvas, `c *size`."""

    @property
    def windows(self) -> Windows:
        """Where the windows of the canvas lie at this level."""

    @property
    def level(self) -> Level:
        """The noise level of the canvas."""

    @property
    def codec(self) -> Codec | None:
        """Converts latents to images; None where the canvas is the picture."""

    def decode(self, canvas: Float[Tensor, "*c_size"]) -> Float[Tensor, "*c_pixels"]:
        """The picture of a clean canvas of any size. The ranks share a large one, and the ends of a ring meet.

        Args:
            canvas: `c *size`.

        Returns:
            The picture, `3 H W`, in about [0, 1], or the film, `3 T H W`; where the canvas is the picture, the canvas.
        """

    def encode(self, picture: Float[Tensor, "*c_pixels"]) -> Float[Tensor, "*c_size"]:
        """The canvas of a picture, without noise.

        Args:
            picture: `3 H W`, in [0, 1], or a film, `3 T H W`; height and width are multiples of the codec's factor.

        Returns:
            The canvas, `c *size`; where the canvas is the picture, the picture.
        """

    def magnify(self, canvas: Float[Tensor, "*c_size"], factor: Factor) -> Float[Tensor, "*c_large"]:
        """The canvas of a picture that is larger than that of a finished canvas.

        Latents of a larger picture are not larger latents. Interpolated latents decode to a blur with a texture of its own. So
        the canvas is decoded, and its picture is enlarged and encoded: in tiles, which the ranks share, if it is large.

        Args:
            canvas: the finished canvas, `c *size`.
            factor: how many times larger its picture becomes along its height and width. With a factor for each axis, that of
                time is 1.

        Returns:
            The canvas, `c *large`.
        """

    def look(self, index: Sequence[int]) -> Estimate:
        """Denoise some windows of this canvas, unguided and without a graph for gradients.

        Every rank computes them, so ask for few: an anchor, say.

        Args:
            index: the numbers of the windows.

        Returns:
            The estimate of these windows, `n c *window`.
        """

    def estimate(
        self, canvas: Float[Tensor, "*c_size"], windows: Windows, guided: "Sequence[tuple[Guidance, Any]]" = ()
    ) -> Estimate:
        """Estimate any canvas at this noise level. Its windows are guided, denoised and fused; the solver makes no step.

        Args:
            canvas: `c *size`, at this noise level. It may be smaller than the run's, and shows the same scene.
            windows: where its windows lie.
            guided: the guidances of this canvas, each with its memory: what its `begin` returned for these windows.

        Returns:
            The estimate of the canvas, `c *size`, the same on every rank.
        """

    @property
    def others(self) -> "Sequence[Guidance]":
        """The run's guidances but this one, in order. This one may pass some of them on to `paint`."""

    def paint(
        self,
        windows: Windows,
        guidances: "Sequence[Guidance]",
        watch: Callable[[Estimate], None] | None = None,
    ) -> Float[Tensor, "*c_size"]:
        """Make another canvas of the same scene from noise, in a run of its own with the same prompt and all steps.

        The noise is keyed by the run's seed, the level, this guidance and the size of the new canvas.

        Args:
            windows: the windows of the new canvas, whose size this is.
            guidances: the guidances of the new run, and no others.
            watch: gets the estimate of the new canvas, `c *size`, at each of its steps; None for a finished canvas alone. A run
                that continues from a checkpoint may do so in the middle of the new canvas, and then `watch` gets the later
                estimates. So keep the earlier ones in the guidance's memory. In the same way, a guidance that paints several
                canvases in one step keeps those that are finished.

        Returns:
            The finished canvas, clean, `c *size` of `windows`, the same on every rank.

        Raises:
            KeyboardInterrupt: the run was asked to stop.
        """

    def noise(self, shape: Sequence[int]) -> Float[Tensor, "*shape"]:
        """Standard normal noise, the same on every rank.

        The noise is keyed by the run's seed, the level, the size of the canvas, the method that draws it (`known` or
        `prepare`), the guidance's `noise_key`, and the number of guidances with that key before this one; on a canvas of
        another guidance (`estimate`), also by that one. So two guidances of one class draw different noise, and reordering
        guidances of different classes changes nothing.

        Args:
            shape: the shape of the noise.

        Returns:
            The noise, in the dtype and on the device of the canvas. A second call in one step draws fresh noise.
        """


class Guidance(ABC):
    r"""Moves noisy windows down the gradient of an energy before they are denoised.

    $$ x_i \leftarrow x_i - s\, \nabla_{x_i} E(x_i, \hat x_0(x_i)) $$

    for each window $i$, with `strength` $s$ and `energy` $E$. With several guidances, the gradients add up. At each level the
    run calls `known`. Then, unless all of the canvas is known, it calls `strength`, and where that is not 0, `prepare` and
    `energy`. It does not guide inner stages of a solver (`Level.main`).
    """

    jacobian: Jacobian = "full"
    r"""What the gradient moves. `full`: the noisy window, by a backward pass through the denoiser. `identity`: the clean
    estimate of the guided window, $\hat x_0 \leftarrow \hat x_0 - s \nabla_{\hat x_0} E$, without a backward pass through the
    denoiser; the estimate of the noise stays the same. `none`: the noisy window, by an energy of `seen.x` alone, before
    anything is denoised; `seen.x0` is NaN."""

    noise_key: ClassVar[str] = ""
    """The key of the noise that the guidance draws from `Step.noise`. Empty: its module and class. Set one to keep pictures the
    same when the class moves or is renamed."""

    @property
    def starts(self) -> bool:
        """Whether it decides what the canvas begins with. Of the guidances of a sampler one may; the sampler refuses more."""
        return False

    def begin(self, windows: Windows, levels: Sequence[Level]) -> Any:
        """Start a run: check that the guidance works on its canvas, and make its memory.

        Called once for each run, on every rank. A smaller canvas that another guidance paints is a run too.

        Args:
            windows: where the windows of the run's canvas lie. A layout may move them at each level: see `Windows.at`.
            levels: the noise levels of the run, with the terminal one, for schedules and checks.

        Returns:
            The memory: None, or a dict of tensors, numbers, text, and lists and dicts of them, so that a checkpoint can hold
            it. `known` and `prepare` may change it.

        Raises:
            SettingError: the guidance cannot work on such a canvas.
        """
        return None

    def known(self, step: Step, memory: Any) -> Known | None:
        r"""The clean canvas or a part of it, if the guidance knows it without the model.

        Called before each pass over the run's own canvas, without gradients. Where several guidances know a cell, the first
        one counts. Windows that are known all over are not computed. Where all is known, the run calls neither the model nor a
        guidance. Start at the first level, where the run lays what is known under its noise, $\alpha x_0 + \sigma \epsilon$.

        Args:
            step: the noisy canvas at its level.
            memory: what `begin` returned. The method may change it.

        Returns:
            What is known, the same on every rank; None to have the model denoise as usual.
        """
        return None

    def prepare(self, step: Step, memory: Any) -> Any:
        """Make what the windows of one step share.

        Called once a step while `strength` is not 0, on every rank, without gradients.

        Args:
            step: the canvas at its noise level, and the means to look at it.
            memory: what `begin` returned. The method may change it, in the same way on every rank.

        Returns:
            The context for `energy`, the same on every rank. The default returns the memory.
        """
        return memory

    @abstractmethod
    def strength(self, level: Level) -> float:
        """The factor $s$ of the gradient at a noise level.

        Args:
            level: a main level of the run.

        Returns:
            The factor. At 0 the guidance is asleep: neither `prepare` nor `energy` is called. A guidance that only knows the
            canvas (`known`) is asleep at every level.
        """

    @abstractmethod
    def energy(self, seen: Estimate, index: Sequence[int], context: Any) -> Float[Tensor, " n"]:
        r"""The energy $E$ of some windows. The run takes its gradient, so compute it with torch's operations.

        A rank calls it for each of its chunks of windows. A window's energy must not depend on the other windows of the chunk.

        Args:
            seen: the noisy windows, `n c *window`, and their clean estimates. The gradient is taken with respect to `seen.x`
                and `seen.x0`, `seen.x0` alone if `jacobian` is `identity`, or `seen.x` alone if it is `none`.
            index: the numbers of these windows.
            context: what `prepare` returned.

        Returns:
            One number for each window, `n`: sum over all axes but the first. A window without a gradient may have 0.
        """


def require_one_start(guidances: Sequence[Guidance]) -> None:
    """Check that no two guidances decide what the canvas begins with.

    Raises:
        SettingError: two do.
    """
    starting = [type(guidance).__name__ for guidance in guidances if guidance.starts]
    if len(starting) > 1:
        raise SettingError(
            f"{starting[0]} and {starting[1]} both decide what the canvas begins with: use one of them, or let the other one "
            "begin with noise, if it has a setting for that (head_start, start or until 0)"
        )
