"""The guidance: an energy that compares what a window becomes with what the anchor becomes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from panokit import Codec, ContractError, Estimate, Guidance, Level, SettingError, Step
from panokit_syncdiffusion.metric import Metric, Perceptual, check, named


class Anchor(NamedTuple):
    """What the windows of a step are compared with: made once, shared by all."""

    window: int
    codec: Codec
    distance: Callable[[Tensor], Tensor]
    """Pictures (n 3 H W) to their distances from the anchor's, (n,)."""


@final
@dataclass(frozen=True)
class SyncDiffusion(Guidance):
    r"""Perceptual guidance: every window looks like one of them, the anchor (Lee et al. 2023, algorithm 1).

    $$ E_i = d(\mathrm{decode}(\hat x_0(x_i)),\, \mathrm{decode}(\hat x_0(x_a))), \qquad
    x_i \leftarrow x_i - w\, \gamma^t\, \nabla_{x_i} E_i, $$

    for every window but the anchor $a$, the middle one, through decoder, classifier-free guidance and denoiser; $t$ is the
    number of steps done. The anchor is decoded and its features are made once a step. The defaults are the recipe of the
    paper's authors: the first 10 of 50 steps.

    Attributes:
        weight: $w$, 0 or more; 0 is MultiDiffusion bit for bit.
        decay: $\gamma$, in (0, 1].
        until: the share of the steps that is guided, in [0, 1].
        metric: $d$: `efficientnet`, whose network comes in a package; `lpips-vgg` or `lpips-alex`, as in the paper, where their
            weights are to be had; or any function of pictures (n 3 H W) in [0, 1] and one other (1 3 H W) to numbers (n,).
        checkpointing: whether decoder and metric are computed again in the backward pass, to save their memory.

    Raises:
        SettingError: a setting out of its range, or a model without a codec.
        ContractError: the metric returned something of another shape.
    """

    weight: float = 20.0
    decay: float = 0.95
    until: float = 0.2
    metric: str | Metric = "efficientnet"
    checkpointing: bool = False

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise SettingError(f"weight is {self.weight}: it must be 0 or more")
        if not 0 < self.decay <= 1:
            raise SettingError(f"decay is {self.decay}: it is a factor a step, above 0 and up to 1")
        if not 0 <= self.until <= 1:
            raise SettingError(f"until is {self.until}: it is a share of the steps, from 0 to 1")
        check(self.metric)

    def prepare(self, step: Step, memory: Any) -> Anchor:
        if step.codec is None:
            raise SettingError("SyncDiffusion compares pictures, and this model has no codec to decode them with: leave it out")
        index = len(step.grid) // 2
        image = _picture(step.codec, step.look([index]).x0)
        metric = named(self.metric) if isinstance(self.metric, str) else self.metric
        return Anchor(index, step.codec, _from(metric, image))

    def strength(self, level: Level) -> float:
        return self.weight * self.decay**level.step if level.progress < self.until else 0.0

    def energy(self, seen: Estimate, index: Sequence[int], context: Anchor) -> Float[Tensor, " n"]:
        others = [k for k, i in enumerate(index) if i != context.window]
        energy = seen.x0.new_zeros(len(index))
        if others:
            energy[others] = self._distances(seen.x0[others], context)
        return energy

    def _distances(self, x0: Tensor, anchor: Anchor) -> Tensor:
        def look(x0: Tensor) -> Any:  # a metric of the user's returns what it wants
            return anchor.distance(_picture(anchor.codec, x0))

        found = checkpoint(look, x0, use_reentrant=False) if self.checkpointing else look(x0)
        if not isinstance(found, Tensor) or found.shape != (len(x0),):
            what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ContractError(
                f"the metric {getattr(self.metric, '__name__', self.metric)} returned {what} for {len(x0)} pictures: "
                f"it must return one number a picture, ({len(x0)},)"
            )
        return found.to(x0.dtype)


def _picture(codec: Codec, x0: Tensor) -> Tensor:
    return codec.decode(x0).clamp(0, 1)


def _from(metric: Metric | Perceptual, image: Tensor) -> Callable[[Tensor], Tensor]:
    """The distance from one picture, whose features are made once where the metric has any."""
    if isinstance(metric, Perceptual):
        features = metric.features(image)
        return lambda images: metric.distance(metric.features(images), features)
    return lambda images: metric(images, image)
