"""The picture that steers a ControlNet: each window is shown its part of it."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from panokit.scene import Scene
from panokit.windows import Projected, Windows

FIELD = "control_image"
"""The name of the picture among the fields of a scene."""


@final
@dataclass(frozen=True)
class ControlImage:
    """The control picture of a run, with what was computed of it for later steps.

    Attributes:
        scene: the scene that holds the picture.
        device: the device of the crops.
        pictures: the picture in the size of each canvas, from when it is first asked for; of a canvas that is no plane, what
            all windows show of it.
        encoded: for each size of a canvas and of its windows, these windows, and what the pipeline encoded for some of them.
    """

    scene: Scene
    device: torch.device
    pictures: dict[tuple[int, ...], Tensor] = field(default_factory=dict)
    encoded: dict[tuple[int, ...], tuple[Windows, dict[tuple[Any, ...], list[Tensor]]]] = field(default_factory=dict)

    def crops(self, windows: Windows, numbers: Sequence[int]) -> Tensor:
        """The parts of the picture that some windows cover, `n 3 H W`, in [0, 1].

        Args:
            windows: where the windows lie, in pixels.
            numbers: their numbers.
        """
        if isinstance(windows, Projected):
            if windows.size not in self.pictures:
                self.pictures[windows.size] = windows.views(self.scene.fields[FIELD], 1).to(self.device)
            return self.pictures[windows.size][list(numbers)]
        if windows.size not in self.pictures:
            self.pictures[windows.size] = self.scene.stretched(FIELD, windows).to(self.device)
        return windows.crop(self.pictures[windows.size], numbers)

    def latents(self, windows: Windows, numbers: Sequence[int], guided: bool) -> list[Tensor]:
        """What the pipeline encoded for these windows in an earlier step: a list to fill if it did not yet.

        Args:
            windows: where the windows lie.
            numbers: their numbers.
            guided: whether the call guides; some pipelines then encode a batch of twice the size.
        """
        shape = (*windows.size, *windows.window)
        kept, latents = self.encoded.get(shape, (None, {}))
        if kept != windows:  # a layout has moved them
            latents = {}
            self.encoded[shape] = windows, latents
        return latents.setdefault((guided, *numbers), [])


def argument_of(pipe: Any) -> str | None:
    """The argument of a pipeline's call that takes the picture for its ControlNet or T2I-Adapter; None if it has neither.

    Args:
        pipe: a pipeline of diffusers.
    """
    takes = inspect.signature(type(pipe).__call__).parameters
    if "control_image" in takes:
        return "control_image"
    steered = any(getattr(pipe, name, None) is not None for name in ("controlnet", "adapter"))
    return "image" if steered else None


def as_taken(pipe: Any, crops: Tensor) -> Tensor:
    """Crops as a pipeline takes them. Most take numbers in [-1, 1]; those with a processor or a T2I-Adapter take pictures.

    Args:
        pipe: a pipeline of diffusers.
        crops: `n 3 H W`, in [0, 1].
    """
    return crops if hasattr(pipe, "control_image_processor") or hasattr(pipe, "adapter") else crops * 2 - 1
