"""The model: a denoiser that knows windows, a codec between latents and images, and what a prompt can be."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from panokit.errors import FallbackWarning, SettingError
from panokit.grid import Grid
from panokit.scheduler import Level, Training
from panokit.settings import Execution

Number = int | float
Box = tuple[Number, Number, Number, Number]


@dataclass(frozen=True)
class Regions:
    """A prompt per region: a window takes the text of the box that its centre lies in.

    Attributes:
        boxes: pairs of a box `(left, top, right, bottom)`, relative to the canvas, 0 to 1, and its text. Later boxes lie
            on top of earlier ones.
        elsewhere: the text of windows in no box.

    Raises:
        SettingError: no box, or one that is empty or leaves the canvas.
    """

    boxes: tuple[tuple[Box, str], ...]
    elsewhere: str = ""

    def __post_init__(self) -> None:
        if not self.boxes:
            raise SettingError("Regions came without a box: give at least one ((left, top, right, bottom), text)")
        for box, text in self.boxes:
            left, top, right, bottom = box
            if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
                raise SettingError(
                    f"the box {box} of the region {text!r} is empty or leaves the canvas: "
                    "(left, top, right, bottom) are relative, 0 <= left < right <= 1 and 0 <= top < bottom <= 1"
                )

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts: `elsewhere` first, then each box's."""
        return (self.elsewhere, *(text for _, text in self.boxes))

    def assign(self, grid: Grid, index: Sequence[int]) -> list[int]:
        """For each window, which of `texts` it takes. The canvas has two axes.

        The boxes are relative, so a coarser grid over the same scene asks again and gets its own answer.
        """
        return [self._text_at(*grid.centre(i)) for i in index]

    def _text_at(self, y: float, x: float) -> int:
        inside = [
            k
            for k, ((left, top, right, bottom), _) in enumerate(self.boxes, start=1)
            if left <= x < right and top <= y < bottom
        ]
        return inside[-1] if inside else 0


Prompt = str | Regions


class Denoiser(ABC):
    """The model: a network that predicts what is in noisy windows, with classifier-free guidance inside.

    What `encode` and `condition` return is the denoiser's own affair: the core only hands it on. For any number of ranks to
    make the same bits, a prediction must treat its windows one by one, and draw no noise.
    """

    channels: int
    """Channels of the canvas, `c`."""
    window: tuple[int, ...]
    """Cells of the picture that the model was trained on, one entry an axis."""
    training: Training
    """What the model was trained with: a scheduler needs it to build its noise levels."""
    choices: ClassVar[frozenset[str]] = frozenset()
    """The fields of `Execution` that `configure` obeys. A runtime warns about the others if the user sets them."""

    @abstractmethod
    def modules(self) -> Iterable[nn.Module]:
        """All networks: the runtime freezes them, moves them to a device and converts their precision."""

    def configure(self, execution: Execution) -> None:
        """Have the networks compute as asked. Called once, after they are placed; does nothing unless overridden.

        Args:
            execution: attention, checkpointing and compilation, of which a denoiser obeys its `choices`.
        """
        return

    @abstractmethod
    def encode(self, prompt: Prompt, negative_prompt: str, guidance_scale: float) -> Any:
        """Turn the texts into what `condition` needs. Called once a run, without gradients.

        Args:
            prompt: what to paint: a text, or `Regions` with a text for each part of the canvas.
            negative_prompt: what to keep away from; empty for nothing.
            guidance_scale: strength of classifier-free guidance; 1 or less turns it off.
        """

    @abstractmethod
    def condition(self, embeddings: Any, grid: Grid, index: Sequence[int]) -> Any:
        """The conditioning of some windows.

        Args:
            embeddings: what `encode` returned.
            grid: where the windows lie. It may be coarser than the run's, because guidances denoise smaller canvases of the
                same scene.
            index: window numbers on that grid, in any order.
        """

    @abstractmethod
    def __call__(self, x: Float[Tensor, "n *c_window"], level: Level, condition: Any) -> Float[Tensor, "n *c_window"]:
        r"""The model's prediction for noisy windows.

        Args:
            x: windows in the model's own coordinates, $x = \alpha x_0 + \sigma \epsilon$.
            level: their noise level. `level.t` is the timestep that the network takes.
            condition: what `condition` returned for the same windows.

        Returns:
            The prediction in the model's own type (`training.prediction`), of the shape, dtype and device of `x`. A gradient
            must flow from it to `x`.
        """


class Codec(ABC):
    """Between latents and images in [0, 1]."""

    factor: int
    """Pixels a latent cell is wide."""
    choices: ClassVar[frozenset[str]] = frozenset()
    """The fields of `Execution` that `configure` obeys."""

    @abstractmethod
    def modules(self) -> Iterable[nn.Module]:
        """All networks: the runtime freezes them, moves them to a device and converts their precision."""

    def configure(self, execution: Execution) -> None:
        """Have the networks compute as asked; see `Denoiser.configure`."""
        return

    @abstractmethod
    def encode(self, images: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n c h w"]:
        """Latents of images in [0, 1]."""

    @abstractmethod
    def decode(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 H W"]:
        """Images in about [0, 1], not clamped; differentiable."""


@dataclass(frozen=True)
class Model:
    """A denoiser, the codec of its latents, and a name.

    Attributes:
        denoiser: the model.
        codec: between latents and images; None where the canvas is the picture.
        name: what the model was loaded by, as recipes keep it.
    """

    denoiser: Denoiser
    codec: Codec | None
    name: str

    @property
    def factor(self) -> int:
        """Pixels a cell of the canvas is wide."""
        return self.codec.factor if self.codec else 1

    @property
    def networks(self) -> list[nn.Module]:
        """All networks of both."""
        parts: tuple[Denoiser | Codec | None, ...] = (self.denoiser, self.codec)
        return [network for part in parts if part for network in part.modules()]

    def configure(self, execution: Execution) -> None:
        """Have all networks compute as asked, and warn about what none of them obeys.

        Args:
            execution: attention, checkpointing and compilation.
        """
        parts = [part for part in (self.denoiser, self.codec) if part]
        for part in parts:
            part.configure(execution)
        for name, value in execution.chosen.items():
            if not any(name in part.choices for part in parts):
                message = f"{name} is {value!r}, and the model {self.name} has no such choice: nothing changes"
                warnings.warn(message, FallbackWarning, stacklevel=3)
