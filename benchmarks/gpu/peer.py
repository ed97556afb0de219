"""diffusers' own pipeline for panoramas, on the same windows."""

from collections.abc import Callable
from typing import Any, final

import torch
from diffusers import StableDiffusionPanoramaPipeline
from torch import Tensor

from gpu import models
from gpu.bench import PROMPT
from panokit import Windows


@final
class Peer:
    """diffusers' pipeline for panoramas, on the windows of a run of panokit.

    Args:
        pipe: Stable Diffusion's pipeline, whose networks it takes.
        windows: the windows.
        factor: pixels along a side of a cell.
    """

    def __init__(self, pipe: Any, windows: Windows, factor: int) -> None:
        parts = {**pipe.components, "image_encoder": None, "scheduler": models.ddim()}
        self._pipe: Any = StableDiffusionPanoramaPipeline(**parts, requires_safety_checker=False)
        self._pipe.set_progress_bar_config(disable=True)
        corners = [windows.cells([i])[0, :, 0, 0].tolist() for i in range(len(windows))]
        high, wide = windows.window
        views = [(top, top + high, left, left + wide) for top, left in corners]
        self._pipe.get_views = lambda *_, **__: views  # its own are 8 cells apart
        self._size = {"height": windows.size[0] * factor, "width": windows.size[1] * factor}

    def latents(self, steps: int, micro_batch: int, **options: Any) -> Tensor:
        """Its latents after so many steps, `1 c h w`.

        Args:
            steps: the number of steps.
            micro_batch: how many windows go through the network at once.
            options: other arguments of its call.
        """
        options |= {"num_inference_steps": steps, "view_batch_size": micro_batch, "output_type": "latent", **self._size}
        return torch.as_tensor(self._pipe(PROMPT, **options).images)

    def after_steps(self, count: int, steps: int, micro_batch: int, note: Callable[[], object]) -> None:
        """Make the first steps of a picture, and call a function after each.

        Args:
            count: how many of the steps.
            steps: the number of all steps of the picture.
            micro_batch: how many windows go through the network at once.
            note: the function.
        """

        def ended(pipe: Any, step: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            note()
            pipe._interrupt = step + 1 >= count
            return kwargs

        self.latents(steps, micro_batch, callback_on_step_end=ended)
