"""Families steered by a picture, in miniature: with a ControlNet, whose weights are random and not zero."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import (
    ControlNetModel,
    DiffusionPipeline,
    FluxControlNetModel,
    FluxControlNetPipeline,
    ModelMixin,
    SD3ControlNetModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
)

from panokit.testing.families.pipelines import denoiser, frozen, tiny_pipeline
from panokit.testing.families.weights import enliven


def tiny_controlnet(family: str, *, seed: int = 0) -> DiffusionPipeline:
    """A family's own pipeline with a ControlNet, in miniature.

    Args:
        family: one of `CONTROLNETS`.
        seed: seed of the random weights. Those of the family itself are those of `tiny_pipeline`.
    """
    pipeline = tiny_pipeline(family, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with warnings.catch_warnings():  # diffusers makes places of FLUX with a class that it calls deprecated itself
            warnings.filterwarnings("ignore", "`FluxPosEmbed` is deprecated", FutureWarning)
            network = _network(denoiser(pipeline))
        enliven(network)
    return frozen(CONTROLNETS[family](**pipeline.components, controlnet=network))


def _stable_diffusion(**parts: Any) -> DiffusionPipeline:
    return StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)


def _sdxl(**parts: Any) -> DiffusionPipeline:
    return StableDiffusionXLControlNetPipeline(**parts, add_watermarker=False)


CONTROLNETS: Mapping[str, Callable[..., DiffusionPipeline]] = {
    "sd": _stable_diffusion,
    "sd2": _stable_diffusion,
    "sdxl": _sdxl,
    "sd3": StableDiffusion3ControlNetPipeline,
    "flux": FluxControlNetPipeline,
}
"""What makes a pipeline of a family's parts and a ControlNet."""


def _network(steered: ModelMixin) -> ModelMixin:
    """A ControlNet for a network. Stable Diffusion's shrinks the picture to cells itself; the others see it encoded."""
    if "UNet" in type(steered).__name__:
        return ControlNetModel.from_unet(steered, conditioning_embedding_out_channels=(8, 16), load_weights_from_unet=False)
    kind = SD3ControlNetModel if "SD3" in type(steered).__name__ else FluxControlNetModel
    # diffusers' own `from_transformer` of Stable Diffusion 3 writes into the configuration of the network it is given.
    known = inspect.signature(kind.__init__).parameters
    config: dict[str, Any] = {key: value for key, value in steered.config.items() if key in known}
    return kind(**{**config, "num_layers": 1})
