"""The model: a denoiser for windows, and a codec between latents and images."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from panokit.errors import FallbackWarning
from panokit.moved import require_arguments
from panokit.scene import Scene
from panokit.scheduler import Level, Training
from panokit.settings import Execution
from panokit.windows import Windows


class Denoiser(ABC):
    """The model: a network that makes predictions for noisy windows, with classifier-free guidance inside.

    The core does not look into what `encode` and `condition` return; it only passes it on. A prediction must treat windows
    independently and draw no noise, so that any number of ranks makes the same bits.
    """

    channels: int
    """Number of channels of the canvas, `c`."""
    window: tuple[int, ...]
    """Cells of the picture that the model was trained on: height and width. Of a film, a number for time stands before them.
    A model of films also takes windows of fewer frames, and pictures: windows of height and width alone."""
    training: Training
    """The noise that the model was trained with. A scheduler builds its levels from it."""
    multiple: int = 1
    """Sizes of canvases and distances of windows are multiples of so many cells: 2 for a model that packs 2 x 2 cells."""
    scheduler: str = "ddim"
    """The name of the scheduler to use if the user names none."""
    steps: int = 50
    """The number of steps to make if the user names none."""
    guidance_scale: float = 7.5
    """The strength of guidance to use if the user names none, as the model means it."""
    fps: int = 16
    """The frames a second of a film if the user names none."""
    fields: frozenset[str] = frozenset()
    """The names of the pictures on the canvas that it reads, such as a control picture: see `Scene.fields`."""
    has_ip_adapter: bool = False
    """Whether it reads pictures for an IP-Adapter, which show how things are to look: see `Scene.ip_adapter_images`."""
    rings: bool = False
    """Whether it sees a window as a ring where one window goes around the canvas; see `panokit.rings.Ring.of`."""
    ringless: str = ""
    """Why it does not, for a warning; empty for none."""
    choices: frozenset[str] = frozenset()
    """The fields of `Execution` that `configure` obeys. `Model.configure` warns about the others if the user sets them."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        require_arguments(cls, "encode", "scene")

    @abstractmethod
    def modules(self) -> Iterable[nn.Module]:
        """All networks. The runtime freezes them, moves them to a device and converts their precision."""

    def configure(self, execution: Execution) -> None:
        """Set how the networks compute. Called once, after they are placed. The default does nothing.

        Args:
            execution: attention, checkpointing and compilation. A denoiser obeys the fields in its `choices`.
        """
        return

    def noise(self, size: tuple[int, ...], generator: torch.Generator) -> Float[Tensor, "*c_size"]:
        """Draw the noise that a canvas starts from. A model draws it in the order of its own pipeline.

        Args:
            size: cells of the canvas, one number for each axis.
            generator: draws it, on the CPU.

        Returns:
            Standard normal noise, `c *size`, on the CPU.
        """
        return torch.randn((self.channels, *size), generator=generator)

    @abstractmethod
    def encode(self, scene: Scene) -> Any:
        """Turn a scene into what `condition` needs. Called once a run, without gradients.

        Args:
            scene: what to paint: texts, the strength of classifier-free guidance, and pictures that lie on the canvas.

        Returns:
            The embeddings, or anything else that `condition` can use, on the device of the networks.
        """

    @abstractmethod
    def condition(self, embeddings: Any, windows: Windows, index: Sequence[int]) -> Any:
        """The conditioning of some windows.

        Args:
            embeddings: what `encode` returned.
            windows: where they lie. Their canvas may be smaller than the run's, because guidances denoise smaller canvases of
                the same scene.
            index: their numbers, in any order.

        Returns:
            The conditioning that `__call__` takes for these windows.
        """

    @abstractmethod
    def __call__(self, x: Float[Tensor, "n *c_window"], level: Level, condition: Any) -> Float[Tensor, "n *c_window"]:
        r"""The model's prediction for noisy windows.

        Args:
            x: windows in the model's own coordinates, $x = \alpha x_0 + \sigma \epsilon$.
            level: the noise level of all these windows. `level.t` is the timestep that the network takes.
            condition: what `condition` returned for the same windows.

        Returns:
            The prediction in the model's own type (`training.prediction`), of the shape, dtype and device of `x`. A gradient
            must flow from it to `x`.
        """


class WrappedDenoiser(Denoiser):
    """A denoiser around another one. All but `__call__` is passed on; a subclass replaces what it changes.

    A model made of another model has one; see `Family`. Its attributes are those of the other one, unless it sets its own.

    Args:
        inner: the denoiser inside.
    """

    def __init__(self, inner: Denoiser) -> None:
        self.inner = inner
        for name in Denoiser.__annotations__:
            setattr(self, name, getattr(inner, name))

    def modules(self) -> Iterable[nn.Module]:
        return self.inner.modules()

    def configure(self, execution: Execution) -> None:
        self.inner.configure(execution)

    def noise(self, size: tuple[int, ...], generator: torch.Generator) -> Float[Tensor, "*c_size"]:
        return self.inner.noise(size, generator)

    def encode(self, scene: Scene) -> Any:
        return self.inner.encode(scene)

    def condition(self, embeddings: Any, windows: Windows, index: Sequence[int]) -> Any:
        return self.inner.condition(embeddings, windows, index)


@final
@dataclass(frozen=True)
class Stage:
    """A part of a decoder: it takes what the stage before it returned. Its last two axes are height and width.

    Attributes:
        run: computes it. It may normalise by `torch.nn.functional.group_norm`, and attend by `scaled_dot_product_attention` or
            a matrix product over all cells. In tiles these use the statistics and keys of the whole canvas.
        reach: how many cells of its input a cell of its output depends on, to each side, besides by such norms and attention.
            A larger number is right too, and takes more time.
        factor: cells of its output along a side of a cell of its input.
        attends: whether each cell of its output depends on all cells of its input, by attention.
    """

    run: Callable[[Tensor], Tensor]
    reach: int = 0
    factor: int = 1
    attends: bool = False


class Codec(ABC):
    """Converts images to latents and back."""

    factor: int
    """Pixels along a side of a latent cell."""
    time: int = 1
    """Frames of a film for each latent frame but the first, which is one frame. On a loop the first has as many."""
    multiple: int = 1
    """A part of a canvas that is decoded alone begins and ends at multiples of so many cells."""
    rings: bool = False
    """Whether its networks know places by torch's convolutions alone. Then these go around a ring that is decoded, or encoded,
    in one piece. Otherwise cells of the other end are repeated at both ends."""
    choices: frozenset[str] = frozenset()
    """The fields of `Execution` that `configure` obeys."""

    @abstractmethod
    def modules(self) -> Iterable[nn.Module]:
        """All networks. The runtime freezes them, moves them to a device and converts their precision."""

    def configure(self, execution: Execution) -> None:
        """Set how the networks compute; see `Denoiser.configure`.

        Args:
            execution: attention, checkpointing and compilation. A codec obeys the fields in its `choices`.
        """
        return

    @abstractmethod
    def encode(self, images: Float[Tensor, "n 3 *pixels"]) -> Float[Tensor, "n c *window"]:
        """Turn images into latents, without noise.

        Args:
            images: `n 3 H W`, in [0, 1]; height and width are multiples of `factor`. The codec of a model of films takes
                films, too, `n 3 T H W`, and `T - 1` is a multiple of `time`.

        Returns:
            The latents, `n c h w`, as the denoiser takes them: already scaled. `h` is `H / factor`, `w` is `W / factor`. Of a
            film, `n c t h w`, and `t` is `(T - 1) / time + 1`.
        """

    @abstractmethod
    def decode(self, latents: Float[Tensor, "n c *window"]) -> Float[Tensor, "n 3 *pixels"]:
        """Turn latents into images. A gradient must flow from the images to the latents.

        Args:
            latents: `n c h w`, as the denoiser makes them; of films, `n c t h w`.

        Returns:
            The images, `n 3 H W`, in about [0, 1] and not clamped: a clamp would stop the gradient. Of films, `n 3 T H W`.
        """

    def stages(self) -> Sequence[Stage]:
        """The decoder in stages, which one after the other compute what `decode` does. Called without gradients.

        With them, a canvas that is decoded in tiles becomes the picture of the whole canvas, at little extra work. Without
        them, neighbouring tiles overlap and fade into each other.

        Returns:
            The stages, from latents, `n c h w`, to images, `n 3 H W`; empty if they are not known, which is the default.
        """
        return ()


@dataclass(frozen=True)
class Model:
    """A denoiser, the codec of its latents, and a name.

    Attributes:
        denoiser: makes predictions for noisy windows.
        codec: converts images to latents and back; None where the canvas is the picture.
        name: the name, folder or hub id that loads the model; recipes keep it.
        settings: the settings that it was loaded with, which recipes keep, too.
    """

    denoiser: Denoiser
    codec: Codec | None
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def part(self) -> str | dict[str, Any]:
        """The model as plain data: its name, or a mapping of its name and settings."""
        return {"plugin": self.name, **self.settings} if self.settings else self.name

    @property
    def factor(self) -> int:
        """Pixels along a side of a cell of the canvas."""
        return self.codec.factor if self.codec else 1

    @property
    def time(self) -> int:
        """Frames of a cell of the canvas, but for those of the first frame."""
        return self.codec.time if self.codec else 1

    @property
    def unit(self) -> int:
        """Pixels of which the sides of a canvas, and the distances of windows, are multiples."""
        return self.factor * self.denoiser.multiple

    @property
    def networks(self) -> list[nn.Module]:
        """All networks of the denoiser and the codec."""
        parts: tuple[Denoiser | Codec | None, ...] = (self.denoiser, self.codec)
        return [network for part in parts if part for network in part.modules()]

    def configure(self, execution: Execution) -> None:
        """Set how all networks compute. Warns about each setting that neither denoiser nor codec obeys.

        Args:
            execution: attention, checkpointing and compilation.
        """
        parts = [part for part in (self.denoiser, self.codec) if part]
        for part in parts:
            part.configure(execution)
        for name, value in execution.chosen.items():
            if not any(name in part.choices for part in parts):
                message = f"the model {self.name} does not support {name}, which is {value!r}: the setting has no effect"
                warnings.warn(message, FallbackWarning, stacklevel=3)
