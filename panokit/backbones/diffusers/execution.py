"""Execution of diffusers' networks: attention, gradient checkpointing and compilation."""

import importlib
import warnings
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0, SlicedAttnProcessor, XFormersAttnProcessor
from torch import nn
from torch.utils.checkpoint import checkpoint

from panokit.errors import FallbackWarning
from panokit.rings import kept
from panokit.settings import Attention

_PROCESSORS: dict[str, type] = {"sdpa": AttnProcessor2_0, "sliced": SlicedAttnProcessor, "xformers": XFormersAttnProcessor}


def set_attention(network: Any, attention: Attention) -> None:
    """Set how a network computes attention. Transformers, and UNets with an IP-Adapter, compute it with SDPA alone.

    A UNet's processors are set one by one, because diffusers' `set_attention_backend` silently does nothing there. If xformers
    cannot be used, SDPA takes its place, with a `FallbackWarning`.

    Args:
        network: a network of diffusers.
        attention: the kind of attention. `auto` changes nothing; diffusers' default is SDPA.
    """
    if attention == "auto":
        return
    processors: dict[str, object] = getattr(network, "attn_processors", {})
    adapted = any("IPAdapter" in type(processor).__name__ for processor in processors.values())
    if adapted or not isinstance(network, UNet2DConditionModel):
        if attention != "sdpa":
            kind = f"{type(network).__name__}{' with an IP-Adapter' * adapted}"
            warnings.warn(f"attention is {attention}, and a {kind} uses SDPA alone", FallbackWarning, stacklevel=4)
        return
    available = _available(attention)
    if all(isinstance(processor, _PROCESSORS[available]) for processor in processors.values()):
        return
    if available == "sliced":
        network.set_attention_slice("auto")
    else:
        network.set_attn_processor(_PROCESSORS[available]())


def set_checkpointing(network: Any, on: bool) -> None:
    """Set whether a network computes activations again in the backward pass, if it can. A UNet does so only at finer levels.

    A level of C channels keeps about C numbers a cell, and needs about C^2 multiplications for them. So the coarse half of the
    levels would take half of the time to compute again, and free a sixth of the memory.

    Args:
        network: a network of diffusers.
        on: whether to compute again.
    """
    if not getattr(network, "_supports_gradient_checkpointing", False):
        return  # as some autoencoders: diffusers would raise
    network.disable_gradient_checkpointing()
    if on:
        network.enable_gradient_checkpointing(_checkpointed)
    if not isinstance(getattr(network, "up_blocks", None), nn.ModuleList):
        return
    levels = len(network.down_blocks)
    coarse = nn.ModuleList([*network.down_blocks[(levels + 1) // 2 :], network.mid_block, *network.up_blocks[: levels // 2]])
    part: Any
    for part in coarse.modules():
        if hasattr(part, "gradient_checkpointing"):
            part.gradient_checkpointing = False


def set_compiled(network: Any, on: bool) -> None:
    """Set whether torch compiles the repeated blocks of a network, which diffusers lists. Equal blocks share a compilation.

    Args:
        network: a network of diffusers.
        on: whether to compile.
    """
    kinds = getattr(network, "_repeated_blocks", None) or ()
    for block in network.modules():
        if type(block).__name__ in kinds:
            if on and block._compiled_call_impl is None:
                block.compile()
            elif not on:
                block._compiled_call_impl = None


def _checkpointed(module: Any, *args: Any) -> Any:
    """Checkpoint a module, as diffusers does by itself. Its second computation sees the ring that the first one saw."""
    return checkpoint(kept(module.__call__), *args, use_reentrant=False)


def _available(attention: Attention) -> Attention:
    """The same kind of attention; `sdpa` if it is `xformers` and that cannot be used here."""
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
