"""Parts of a pipeline that come from elsewhere: another autoencoder, and ControlNets."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch

from panokit.backbones.diffusers.configurations import require_values
from panokit.backbones.diffusers.parts import explained, is_network, read_network, require_backends
from panokit.backbones.diffusers.sources import folder_of
from panokit.backbones.diffusers.weights import Weights, find_weights
from panokit.errors import ModelError
from panokit.family import read_json

LATENTS = ("latent_channels", "z_dim")
"""The settings of an autoencoder that say how many channels its latents have."""

SIZES = (
    *("in_channels", "cross_attention_dim", "joint_attention_dim", "pooled_projection_dim", "caption_projection_dim"),
    *("block_out_channels", "num_attention_heads", "addition_embed_type", "cap_feat_dim", "dim"),
)
"""The settings of a network that a ControlNet for it shares."""


class Part(NamedTuple):
    """A network that can be read: its class and its files."""

    cls: Any
    weights: Weights

    def read(self, dtype: torch.dtype | None, model: str) -> Any:
        """Read it, in the precision of its files if no other is given."""
        return read_network(self.cls, self.weights, dtype or self.weights.dtype, model)


def find_vae(source: str, own: Path, variant: str | None) -> Part:
    """Find an autoencoder that takes the place of a model's own.

    Args:
        source: its folder, the folder of a whole model, or a hub id of either.
        own: the folder of the autoencoder that it replaces.
        variant: the variant of the weights to read.

    Raises:
        ModelError: it is none, or its latents have other channels.
    """
    what = f"the vae {source}"
    part, config = _find(source, "vae", variant, what)
    theirs, ours = (next((c[key] for key in LATENTS if c.get(key)), None) for c in (config, _config(own)))
    if ours is not None and theirs != ours:
        raise ModelError(
            f"{what} has latents of {theirs} channels, and this model has latents of {ours}: use one for this model"
        )
    return part


def find_controlnet(source: str, network: Path, variant: str | None) -> Part:
    """Find a ControlNet.

    Args:
        source: its folder or hub id.
        network: the folder of the network that it shall control.
        variant: the variant of the weights to read.

    Raises:
        ModelError: it is none, or one for another network.
    """
    what = f"the ControlNet {source}"
    part, config = _find(source, "controlnet", variant, what)
    own = _config(network)
    for key in SIZES:
        if config.get(key) is not None and own.get(key) is not None and config[key] != own[key]:
            raise ModelError(
                f"{what} was made for another model: its {key} is {config[key]!s:.40}, and that of this model's "
                f"{own.get('_class_name', network.name)!s:.60} is {own[key]!s:.40}; use one for this model"
            )
    return part


def controlled(name: str, controlnet: Any, model: str) -> Any:
    """The text-to-image pipeline of a family that takes a ControlNet.

    Args:
        name: the pipeline without a ControlNet.
        controlnet: the class of the ControlNet.
        model: the model in words, for messages.

    Raises:
        ModelError: the family has no such pipeline, or takes ControlNets of another class.
    """
    plain = name.replace("ControlNetUnion", "").replace("ControlNet", "")
    union = "Union" if "Union" in controlnet.__name__ else ""
    cls = pipeline_class(plain.replace("Pipeline", f"ControlNet{union}Pipeline"), model)
    allowed = {kind.__name__ for kind in cls._get_signature_types().get("controlnet", ()) if isinstance(kind, type)}
    if controlnet.__name__ not in allowed:
        names = ", ".join(sorted(kind for kind in allowed if kind.endswith("Model") and "Multi" not in kind))
        raise ModelError(
            f"{model} takes ControlNets of the class {names}, and controlnet is a {controlnet.__name__}: use one for this model"
        )
    return cls


def pipeline_class(name: Any, model: str) -> Any:
    """A pipeline of diffusers by its name.

    Raises:
        ModelError: diffusers has none of that name, or needs other packages for it.
    """
    with explained(f"{name} for {model}", "install what it needs"):
        cls = getattr(diffusers, str(name), None)
    if cls is None:
        raise ModelError(
            f"{model} needs the pipeline {name}, which diffusers {diffusers.__version__} does not have: update diffusers, or "
            "use another model"
        )
    require_backends(cls, model)
    if not (isinstance(cls, type) and issubclass(cls, diffusers.DiffusionPipeline)):
        raise ModelError(f"{model} names {name} as its pipeline, which is none: its model_index.json is damaged")
    return cls


def _find(source: str, subfolder: str, variant: str | None, what: str) -> tuple[Part, dict[str, Any]]:
    """A network of diffusers in a folder, or in the subfolder of a model, and its configuration."""
    folder = folder_of(source, variant=variant)
    if not (folder / "config.json").is_file():
        folder = folder / subfolder
    if not (folder / "config.json").is_file():
        raise ModelError(f"{what} has no config.json: give a folder in diffusers' format, or a hub id")
    config = read_json(folder / "config.json")
    kind = config.get("_class_name")
    with explained(what, "install what its class needs"):
        cls = getattr(diffusers, str(kind), None)
    if not is_network(cls):
        raise ModelError(
            f"{what} is of the class {kind!s:.60}, which diffusers {diffusers.__version__} does not have: update diffusers"
        )
    require_values(config, cls, f"config.json of {what}")
    return Part(cls, find_weights(folder, variant, what)), config


def _config(folder: Path) -> Mapping[str, Any]:
    return read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
