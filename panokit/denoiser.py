"""The model: a denoiser that knows windows, a codec between latents and images, and what a prompt can be."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from panokit.errors import SettingError
from panokit.grid import Grid
from panokit.scheduler import Level, Training

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
    """The model, classifier-free guidance inside.

    What `encode` and `condition` return is the denoiser's own affair: the core only hands it on.
    """

    channels: int
    """Channels of the canvas."""
    window: tuple[int, ...]
    """Cells of the picture that the model was trained on, one entry an axis."""
    training: Training
    """What the model was trained with."""

    @abstractmethod
    def modules(self) -> Iterable[nn.Module]:
        """The networks to freeze and place on a device."""

    @abstractmethod
    def encode(self, prompt: Prompt, negative_prompt: str, guidance_scale: float) -> Any:
        """Embeddings for one run; called once."""

    @abstractmethod
    def condition(self, embeddings: Any, grid: Grid, index: Sequence[int]) -> Any:
        """What the windows `index` of any grid over the scene are conditioned on."""

    @abstractmethod
    def __call__(self, x: Float[Tensor, "n *c_window"], level: Level, condition: Any) -> Float[Tensor, "n *c_window"]:
        """The model's prediction for noisy windows, in its own prediction type and the precision of `x`."""


class Codec(ABC):
    """Between latents and images in [0, 1]."""

    factor: int
    """Pixels a latent cell is wide."""

    @abstractmethod
    def modules(self) -> Iterable[nn.Module]:
        """The networks to freeze and place on a device."""

    @abstractmethod
    def encode(self, images: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n c h w"]:
        """Latents of images in [0, 1]."""

    @abstractmethod
    def decode(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 H W"]:
        """Images in about [0, 1], not clamped; differentiable."""


@dataclass(frozen=True)
class Model:
    """A denoiser, the codec of its latents (None where the canvas is the picture), and the name it was loaded by."""

    denoiser: Denoiser
    codec: Codec | None
    name: str

    @property
    def factor(self) -> int:
        """Pixels a cell of the canvas is wide."""
        return self.codec.factor if self.codec else 1
