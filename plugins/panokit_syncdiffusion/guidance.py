"""The guidance: an energy that compares the estimate of each window with that of the anchor."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from panokit import Codec, ContractError, Estimate, Guidance, Level, SettingError, Step, Windows
from panokit_syncdiffusion.metric import Metric, Perceptual, check, named


class Anchor(NamedTuple):
    """The anchor of a step, which all windows share.

    Attributes:
        window: the number of the anchor's window.
        codec: decodes estimates.
        distance: takes pictures, `n 3 H W`, and returns their distances from the anchor's picture, `n`.
    """

    window: int
    codec: Codec
    distance: Callable[[Tensor], Tensor]


@final
@dataclass(frozen=True)
class SyncDiffusion(Guidance):
    r"""Perceptual guidance: all windows become similar to one of them, the anchor (Lee et al. 2023, algorithm 1).

    $$ E_i = d(\mathrm{decode}(\hat x_0(x_i)),\, \mathrm{decode}(\hat x_0(x_a))), \qquad
    x_i \leftarrow x_i - w\, \gamma^t\, \nabla_{x_i} E_i $$

    for every window $i$ but the anchor $a$, the one nearest to the middle of the canvas; $t$ is the number of finished steps.
    The gradient goes through the decoder, classifier-free guidance and the denoiser. The anchor is decoded once a step. The
    defaults are those of the paper's authors: they guide the first 10 of 50 steps.

    Attributes:
        weight: $w$, 0 or more; with 0 the picture is MultiDiffusion's, bit for bit.
        decay: $\gamma$, in (0, 1].
        until: the share of the steps that are guided, from the first one, in [0, 1].
        metric: $d$. `efficientnet` needs no download. `lpips-vgg` and `lpips-alex` are the paper's, and need weights of
            torchvision. A function takes pictures, `n 3 H W` in [0, 1], and one other picture, `1 3 H W`, and returns `n`
            numbers.
        checkpointing: whether decoder and metric are computed again in the backward pass, to save memory.

    Raises:
        SettingError: a setting is out of its range, or the model has no codec.
        ContractError: the metric returned another type or shape.
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

    def begin(self, windows: Windows, levels: Sequence[Level]) -> Any:
        if len(windows.window) != 2:
            raise SettingError("SyncDiffusion compares pictures, and a window of this canvas is a film: leave it out")
        return None

    def prepare(self, step: Step, memory: Any) -> Anchor:
        if step.codec is None:
            raise SettingError("SyncDiffusion compares pictures, and this model has no codec to decode them with: leave it out")
        index = step.windows.nearest(*(0.5 for _ in step.windows.centre(0)))
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
        def measure(x0: Tensor) -> Any:  # a metric of the user may return anything
            return anchor.distance(_picture(anchor.codec, x0))

        distances = checkpoint(measure, x0, use_reentrant=False) if self.checkpointing else measure(x0)
        if not isinstance(distances, Tensor) or distances.shape != (len(x0),):
            returned = tuple(distances.shape) if isinstance(distances, Tensor) else type(distances).__name__
            raise ContractError(
                f"the metric {getattr(self.metric, '__name__', self.metric)} returned {returned} for {len(x0)} pictures: "
                f"it must return one number a picture, ({len(x0)},)"
            )
        return distances.to(x0.dtype)


def _picture(codec: Codec, x0: Tensor) -> Tensor:
    return codec.decode(x0).clamp(0, 1)


def _from(metric: Metric | Perceptual, image: Tensor) -> Callable[[Tensor], Tensor]:
    """A function that measures distances from one picture. Its features are computed once, if the metric has features."""
    if isinstance(metric, Perceptual):
        features = metric.features(image)
        return lambda images: metric.distance(metric.features(images), features)
    return lambda images: metric(images, image)
