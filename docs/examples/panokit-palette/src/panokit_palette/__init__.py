"""Palette: a guidance that keeps the windows of a panorama in one colour."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

from torch import Tensor

from panokit import Codec, Estimate, Guidance, Level, SettingError, Step, Windows


@final
@dataclass(frozen=True)
class Palette(Guidance):
    r"""Pulls the mean colour of every window towards one colour $c$.

    $$ E_i = \frac{n}{2} \left\lVert \overline{D(\hat x_0(x_i))} - c \right\rVert^2 $$

    $D$ is the decoder, the bar is the mean over the pixels of a window, and $n$ is the number of its latent cells. The mean
    divides the gradient among the cells. The factor $n$ undoes this, so one weight suits windows of any size.

    Attributes:
        colour: $c$, red, green and blue in [0, 1]; by default the mean colour that the middle window has had so far.
        weight: the factor of the gradient, 0 or more.
        until: the share of the steps that is guided, in [0, 1].
        jacobian: `identity` corrects the clean estimate; `full` goes through the denoiser and costs more than twice as much.

    Raises:
        SettingError: a setting is out of its range, or the model has no codec.
    """

    colour: tuple[float, float, float] | None = None
    weight: float = 10.0
    until: float = 0.5
    jacobian: Literal["full", "identity"] = "identity"

    def __post_init__(self) -> None:
        if self.colour is not None and not all(0 <= part <= 1 for part in self.colour):
            raise SettingError(f"colour is {self.colour}: give red, green and blue from 0 to 1")
        if not self.weight >= 0:
            raise SettingError(f"weight is {self.weight}: it must be 0 or more")
        if not 0 <= self.until <= 1:
            raise SettingError(f"until is {self.until}: it is a share of the steps, from 0 to 1")

    def strength(self, level: Level) -> float:
        if level.progress >= self.until:
            return 0.0
        # Through the denoiser the gradient grows by 1 / alpha. The change of x0 per change of x grows by 1 / alpha too.
        return self.weight * (level.alpha**2 if self.jacobian == "full" else 1.0)

    def begin(self, windows: Windows, levels: Sequence[Level]) -> dict[str, Any]:
        return {"steps": 0, "colour": 0.0}

    def prepare(self, step: Step, memory: dict[str, Any]) -> tuple[Codec, Tensor]:
        if step.codec is None:
            raise SettingError("Palette looks at pictures, and this model has no codec to decode them with: leave it out")
        if self.colour is not None:
            return step.codec, step.canvas.new_tensor(self.colour)
        (colour,) = mean_colour(step.codec, step.look([step.windows.nearest(0.5, 0.5)]).x0)
        memory["steps"] += 1
        memory["colour"] = memory["colour"] + (colour - memory["colour"]) / memory["steps"]
        return step.codec, memory["colour"]

    def energy(self, seen: Estimate, index: Sequence[int], context: tuple[Codec, Tensor]) -> Tensor:
        codec, colour = context
        cells = seen.x0[0, 0].numel()
        return cells / 2 * (mean_colour(codec, seen.x0) - colour).square().sum(1)


def mean_colour(codec: Codec, x0: Tensor) -> Tensor:
    """Red, green and blue of each window, `n 3`."""
    return codec.decode(x0).mean((2, 3))
