"""How the networks of diffusers compute attention."""

import importlib
import warnings
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0, SlicedAttnProcessor, XFormersAttnProcessor
from torch import nn

from panokit.errors import FallbackWarning
from panokit.settings import Attention

_PROCESSORS: dict[str, type] = {"sdpa": AttnProcessor2_0, "sliced": SlicedAttnProcessor, "xformers": XFormersAttnProcessor}


def attend(network: nn.Module, attention: Attention) -> None:
    """Have a network compute attention that way, where it has a choice; `auto` leaves it as it is, SDPA unless changed.

    Its processors are set one by one: diffusers' `set_attention_backend` does nothing on a UNet, silently. Where xformers
    has no kernels, SDPA it is, with a `FallbackWarning`.
    """
    if attends(network, attention):
        return
    unet: Any = network
    if _there(attention) == "sliced":
        unet.set_attention_slice("auto")
    else:
        unet.set_attn_processor(_PROCESSORS[_there(attention)]())


def attends(network: nn.Module, attention: Attention) -> bool:
    """Whether a network computes attention that way, or has no choice."""
    if attention == "auto" or not hasattr(network, "set_attention_slice"):
        return True
    processors: dict[str, object] = getattr(network, "attn_processors", {})
    return all(isinstance(each, _PROCESSORS[_there(attention)]) for each in processors.values())


def _there(attention: Attention) -> Attention:
    """The same, or `sdpa` for `xformers` that cannot be used here."""
    if attention != "xformers":
        return attention
    reason = "" if torch.cuda.is_available() else "there is no CUDA device"
    try:
        importlib.import_module("xformers.ops")
    except Exception as cause:  # it is missing, or its kernels are built for another torch
        reason = f"xformers cannot be imported ({type(cause).__name__}: {cause})"
    if not reason:
        return attention
    warnings.warn(f"attention is xformers, and {reason}: SDPA is used instead, which is as fast", FallbackWarning, stacklevel=4)
    return "sdpa"
