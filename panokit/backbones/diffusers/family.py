"""The family of all text-to-image pipelines of diffusers."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, final

import torch

from panokit.backbones.diffusers.codec import VAECodec
from panokit.backbones.diffusers.drivable import require_drivable
from panokit.backbones.diffusers.loading import Loading, load_pipeline
from panokit.backbones.diffusers.model import is_stable_diffusion, load_stable_diffusion
from panokit.backbones.diffusers.networks import dtype_of, moves_itself, shared
from panokit.backbones.diffusers.packing import patchifies
from panokit.backbones.diffusers.pipeline import PipelineDenoiser, Positions, Rings
from panokit.backbones.diffusers.sources import folder_of
from panokit.backbones.diffusers.swaps import pipeline_class
from panokit.denoiser import Model
from panokit.errors import ModelError, SettingError
from panokit.family import Family, read_json

_SET_BY_PANOKIT = {
    "prompt": "is what a sampler is called with",
    "height": "is a setting of the sampler's call",
    "width": "is a setting of the sampler's call",
    "negative_prompt": "is a setting of the sampler's call",
    "num_inference_steps": "is a setting of the sampler's call, steps",
    "guidance_scale": "is a setting of the sampler's call",
    "generator": "is a setting of the sampler's call, seed",
    "latents": "are the windows",
    "ip_adapter_image": "is a setting of the sampler's call",
    "control_image": "is a setting of the sampler's call",
    **dict.fromkeys(("prompt_2", "prompt_3", "negative_prompt_2", "negative_prompt_3"), "is the prompt, for all encoders"),
    "denoising_end": "is for two pipelines that share the steps",
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
class Diffusers(Loading, Family):
    """Any text-to-image pipeline of diffusers, driven through its own call.

    Stable Diffusion 1.x and 2.x by name, without additions, is read as float32, and its UNet is called directly: the
    predictions are the same.

    Attributes:
        variant: reads weights of this variant, such as `fp16` for files `*.fp16.safetensors`; None for plain names, or for the
            only variant that there is.
        revision: the branch, tag or commit of the model on the hub.
        torch_dtype: the precision of the weights, `float32`, `bfloat16` or `float16`; None for that of the files.
        config: a folder or hub id that says how a single file's model is built; None for the hub id that diffusers knows.
        vae: a folder or hub id of another autoencoder.
        controlnet: a folder or hub id of a ControlNet.
        loras: LoRAs, each a mapping of `path` and maybe `weight`, `name` and `weight_name`.
        embeddings: words of textual inversion, each a mapping of `path` and maybe `token` and `weight_name`.
        ip_adapter: an IP-Adapter, a mapping of `path` and maybe `subfolder`, `weight_name`, `scale` and `image_encoder`.
        window: cells along a side of a window, or along its height and its width; None for the size that the pipeline makes by
            itself.
        ring: how a window is a ring, where the canvas is one (`wrap`) and as long as the window. `all`: the network sees a
            ring, in one pass; all frequencies of its rotary positions are rounded to whole cycles. `high`: those of less than
            one cycle stay, so that the model is disturbed less, and a seam may show. `windows`: it does not; windows that
            overlap go around, as on longer rings.
        positions: what a window is told of its place. `local`: it is a whole picture. `offset`: its place on the canvas.
        call: other arguments of the pipeline's call, such as `true_cfg_scale`. They may also be given as settings themselves.

    Raises:
        SettingError: panokit itself sets an argument of the call, or a mapping has other entries.
    """

    others: ClassVar[str | None] = "call"
    window: int | tuple[int, int] | None = None
    ring: Rings = "all"
    positions: Positions = "local"
    call: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.call:
            if name in _SET_BY_PANOKIT:
                raise SettingError(f"{name} of a pipeline's call {_SET_BY_PANOKIT[name]}: leave it out of the model's settings")

    @classmethod
    def reads(cls, index: Mapping[str, Any]) -> bool:
        return "_class_name" in index or is_stable_diffusion(index) or str(index.get("_file", "")).endswith(".safetensors")

    @classmethod
    def holds(cls, model: object) -> bool:
        from diffusers import DiffusionPipeline

        return isinstance(model, DiffusionPipeline)

    def hold(self, model: Any) -> Model:
        for entry in fields(Loading):
            if getattr(self, entry.name) != entry.default:
                raise SettingError(f"{entry.name} is a setting of models by name: load it into the pipeline in hand yourself")
        name = str(model.config.get("_name_or_path") or "") or type(model).__name__
        adapters = model.get_active_adapters() if hasattr(model, "get_active_adapters") else ()
        kind = f"{type(model).__name__} with {', '.join(adapters)}" if adapters else type(model).__name__
        return replace(self._model(model, name), settings={"in_hand": kind})

    def load(self, source: str, name: str) -> Model:
        if Path(source).is_file():
            return self._loaded(source, name)
        folder = folder_of(source, revision=self.revision, variant=self.variant)
        index = read_json(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
        stable = is_stable_diffusion(index or dict.fromkeys(part.name for part in folder.iterdir()))
        kind = index.get("_class_name", "StableDiffusionPipeline" if stable else None)
        if isinstance(kind, str) and not self.controlnet:  # before anything large is read
            self._require_drivable(pipeline_class(kind, f"the model {name}"))
        plain = self == Diffusers(variant=self.variant, revision=self.revision, window=self.window, ring=self.ring)
        rings = self.ring != "windows"
        if stable and plain and (model := load_stable_diffusion(folder, name, self.variant, self._window, rings)):
            return model
        return self._loaded(source, name, folder)

    def _loaded(self, source: str, name: str, folder: Path | None = None) -> Model:
        pipe = load_pipeline(source, self, folder)
        model = self._model(pipe, name)
        if is_stable_diffusion({part: None for part in pipe.components if part != "controlnet"}):
            model.denoiser.scheduler = "ddim"  # as without additions
        return model

    def _model(self, pipe: Any, name: str) -> Model:
        self._require_drivable(type(pipe))
        if getattr(pipe, "vae", None) is None:
            kind = type(pipe).__name__
            raise ModelError(f"the pipeline {kind} has no vae: panokit paints latents, and needs what decodes them")
        cells = getattr(pipe, "vae_scale_factor_spatial", None) or getattr(pipe, "vae_scale_factor", None)
        if not isinstance(cells, int) or cells < 1:
            raise ModelError(f"the vae of {name} has {cells!r:.60} pixels a cell: it must be 1 or more; check its config.json")
        vae = shared(pipe.vae)
        if pipe.vae.config.get("force_upcast") and dtype_of(vae) == torch.float16:  # its pipeline upcasts it, too
            if moves_itself(vae):
                raise ModelError(
                    "the vae overflows in float16, and it is offloaded or quantised: call pipe.vae.to(torch.float32) before "
                    "that, or load an autoencoder made for float16"
                )
            vae = vae.float()
        codec = VAECodec(vae, None if patchifies(pipe) else cells)  # some of those count the pixels of a patch
        denoiser = PipelineDenoiser(
            pipe, codec, window=self._window, positions=self.positions, ring=self.ring, options=self.call
        )
        return Model(denoiser, codec, name)

    @property
    def _window(self) -> tuple[int, int] | None:
        """Cells of a window along each axis."""
        return (self.window, self.window) if isinstance(self.window, int) else self.window

    def _require_drivable(self, pipeline: type) -> None:
        """Check that a pipeline can be driven, and that its call takes all arguments that the user chose.

        Raises:
            ModelError: it cannot.
            SettingError: it has no such argument.
        """
        require_drivable(pipeline)
        takes = inspect.signature(pipeline.__call__).parameters
        for name in self.call:
            if name not in takes:
                close = get_close_matches(name, [*takes, *inspect.signature(Diffusers).parameters], n=1)
                hint = f"did you mean {close[0]!r}?" if close else "see its documentation"
                raise SettingError(f"there is no setting {name!r}, and the call of {pipeline.__name__} has none: {hint}")
            default, value = takes[name].default, self.call[name]
            if type(default) in (int, float, bool) and not isinstance(value, int | float):
                raise SettingError(f"{name} of the model came as {value!r}: it must be a number, such as {default!r}")
