"""The networks of a pipeline that somebody holds in hand: shared weights, and the types in which they compute."""

import copy
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

OTHERS = ("text_encoder", "image_encoder", "vae", "safety_checker")
"""How the names of the networks begin that do not predict: they encode, decode and judge."""


def shared(network: nn.Module) -> nn.Module:
    """Another network object with the same weights in memory.

    To freeze it, to move it to a device or to add hooks leaves the network as it is. Only weights that move or change their
    type then take memory of their own. A network that moves itself, or is quantised, is copied with its hooks and parts shared.

    Args:
        network: a network of diffusers or transformers.
    """
    if moves_itself(network):
        other = copy.copy(network)
        for name in ("_forward_hooks", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"):
            object.__setattr__(other, name, getattr(network, name).copy())
        return other
    weights: dict[int, Any] = {}
    for tensor in chain(network.parameters(), network.buffers()):
        weights[id(tensor)] = nn.Parameter(tensor.data, requires_grad=False) if isinstance(tensor, nn.Parameter) else tensor
    return copy.deepcopy(network, weights).eval()


def moves_itself(network: nn.Module) -> bool:
    """Whether a network is offloaded by hooks of its own, spread over devices, or quantised: then nobody else may move it."""
    marked = any(getattr(network, name, None) for name in ("_hf_hook", "hf_device_map", "is_quantized"))
    registry = getattr(network, "_diffusers_hook", None)  # each call of a pipeline leaves an empty one
    return (
        marked
        or bool(registry and registry.hooks)
        or any(type(parameter) not in (nn.Parameter, Tensor) for parameter in network.parameters())
    )


def add_casts(network: nn.Module) -> None:
    """Have a network cast its inputs to its own type, and its outputs to float32 or wider.

    So a pipeline computes its guidance in float32, whatever the type of its network.

    Args:
        network: a network of diffusers, which gets hooks.
    """
    network.register_forward_pre_hook(_narrow_inputs, with_kwargs=True)
    network.register_forward_hook(_widen_outputs)


def dtype_of(network: nn.Module) -> torch.dtype:
    """The type in which a network computes: not that of the parts that it keeps in float32, nor of packed weights."""
    kept = tuple(getattr(network, "_keep_in_fp32_modules", None) or ())
    for name, parameter in network.named_parameters():
        if parameter.is_floating_point() and parameter.element_size() > 1 and not any(part in name for part in kept):
            return parameter.dtype
    return torch.float32


def cast_all(value: Any, dtype: torch.dtype) -> Any:
    """Cast all floating tensors of nested lists, tuples and dicts. Times and scales, of one axis, stay as they are.

    Args:
        value: tensors, in any nesting.
        dtype: the floating type.
    """
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() and value.ndim > 1 else value
    if isinstance(value, Mapping):
        return {key: cast_all(part, dtype) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(cast_all(part, dtype) for part in value)
    return value


def _narrow_inputs(network: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    dtype = dtype_of(network)
    return cast_all(args, dtype), cast_all(kwargs, dtype)


def _widen_outputs(network: nn.Module, args: Any, output: Any) -> Any:
    return cast_all(output, torch.promote_types(dtype_of(network), torch.float32))
