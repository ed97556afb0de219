"""The family of all text-to-image pipelines of diffusers."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, ClassVar, final

from panokit.backbones.diffusers.codec import VAECodec
from panokit.backbones.diffusers.model import StableDiffusion
from panokit.backbones.diffusers.networks import shared
from panokit.backbones.diffusers.pipeline import PipelineDenoiser, Positions, require_drivable
from panokit.denoiser import Model
from panokit.errors import ModelError, SettingError
from panokit.family import Family

_PANOKITS = {
    "prompt": "is what a sampler is called with",
    "height": "is a setting of the sampler's call",
    "width": "is a setting of the sampler's call",
    "negative_prompt": "is a setting of the sampler's call",
    "num_inference_steps": "is a setting of the sampler's call, steps",
    "guidance_scale": "is a setting of the sampler's call",
    "generator": "is a setting of the sampler's call, seed",
    "latents": "are the windows",
    "timesteps": "are set by the scheduler",
    "sigmas": "are set by the scheduler",
    "num_images_per_prompt": "is a list of prompts in the sampler's call",
    "output_type": "is latent",
    "return_dict": "is not of use here",
    "callback_on_step_end": "is the sampler's setting callbacks",
}
"""Arguments of a pipeline's call that panokit sets, and what to use instead."""


@final
@dataclass(frozen=True)
class Diffusers(Family):
    """Any text-to-image pipeline of diffusers, driven through its own call.

    Attributes:
        window: cells along a side of a window; None for the size that the pipeline makes by itself.
        positions: what a window is told of its place. `local`: it is a whole picture. `offset`: its place on the canvas.
        call: other arguments of the pipeline's call, such as `true_cfg_scale`. They may also be given as settings themselves.

    Raises:
        SettingError: panokit itself sets an argument of the call.
    """

    others: ClassVar[str | None] = "call"
    window: int | None = None
    positions: Positions = "local"
    call: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.call:
            if name in _PANOKITS:
                raise SettingError(f"{name} of a pipeline's call {_PANOKITS[name]}: leave it out of the model's settings")

    @classmethod
    def reads(cls, index: Mapping[str, Any]) -> bool:
        return isinstance(index.get("_class_name"), str) and not StableDiffusion.reads(index)

    @classmethod
    def holds(cls, model: object) -> bool:
        from diffusers import DiffusionPipeline

        return isinstance(model, DiffusionPipeline)

    def hold(self, model: Any) -> Model:
        name = str(model.config.get("_name_or_path") or "") or type(model).__name__
        adapters = model.get_active_adapters() if hasattr(model, "get_active_adapters") else ()
        kind = f"{type(model).__name__} with {', '.join(adapters)}" if adapters else type(model).__name__
        return replace(self._model(model, name), settings={"in_hand": kind})

    def load(self, source: str, name: str) -> Model:
        from diffusers import DiffusionPipeline

        return self._model(DiffusionPipeline.from_pretrained(source, use_safetensors=True), name)

    def _model(self, pipe: Any, name: str) -> Model:
        require_drivable(type(pipe))
        self._require_arguments(type(pipe))
        if getattr(pipe, "vae", None) is None:
            raise ModelError(
                f"the pipeline {type(pipe).__name__} has no vae: panokit paints latents, and needs what decodes them"
            )
        factor = int(getattr(pipe, "vae_scale_factor_spatial", None) or pipe.vae_scale_factor)
        codec = VAECodec(shared(pipe.vae), factor)
        window = None if self.window is None else (self.window, self.window)
        return Model(
            PipelineDenoiser(pipe, codec.channels, factor, window=window, positions=self.positions, options=self.call),
            codec,
            name,
        )

    def _require_arguments(self, pipeline: type) -> None:
        """Check that the pipeline's call takes all arguments that the user chose."""
        takes = inspect.signature(pipeline.__call__).parameters
        for name in self.call:
            if name not in takes:
                close = get_close_matches(name, takes, n=1)
                hint = f"did you mean {close[0]!r}?" if close else "see its documentation"
                raise SettingError(f"the call of {pipeline.__name__} has no argument {name!r}: {hint}")
