"""A pipeline of any family by its name, of random weights that a seed decides."""

from collections.abc import Callable, Mapping

import torch
from diffusers import DiffusionPipeline, ModelMixin
from torch import nn

from panokit.testing.families import cross_attention, flux, joint_attention, unets
from panokit.testing.families.weights import enliven

FAMILIES: Mapping[str, Callable[[], DiffusionPipeline]] = {
    make.__name__: make
    for make in (
        unets.sd,
        unets.sd2,
        unets.sd2_zero_snr,
        unets.sdxl,
        joint_attention.sd3,
        flux.flux,
        flux.schnell,
        flux.flux2,
        flux.klein,
        joint_attention.z_image,
        joint_attention.qwen_image,
        joint_attention.krea2,
        flux.chroma,
        cross_attention.pixart_sigma,
        cross_attention.sana,
        joint_attention.lumina2,
        cross_attention.wan,
    )
}
"""What makes the parts of each family, as they are before a training."""


def tiny_pipeline(name: str, *, seed: int = 0) -> DiffusionPipeline:
    """A family's own pipeline in miniature, on the CPU, frozen and silent. No file is read.

    Args:
        name: a family, one of `FAMILIES`.
        seed: seed of the random weights. The global generator is left alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = FAMILIES[name]()
        enliven(denoiser(pipeline))
    return frozen(pipeline)


def denoiser(pipeline: DiffusionPipeline) -> ModelMixin:
    """The network of a pipeline that predicts."""
    parts = pipeline.components
    return parts["unet"] if "unet" in parts else parts["transformer"]


def frozen(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """The pipeline itself, with networks that are not trained and no progress bars."""
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
