"""The networks of a pipeline: how their weights are shared, in which type they compute, and on which windows."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from panokit.errors import ModelError, PanokitError, SettingError, reason_of
from panokit.memory import is_out_of_memory
from panokit.runtime.placement import kept_in_float32, sharing

OTHERS = ("text_encoder", "image_encoder", "vae", "safety_checker")
"""How the names of the networks begin that do not predict: they encode, decode and judge."""


OFFLOADING = ("group_offloading", "lazy_prefetch_group_offloading", "layer_execution_tracker")
"""The hooks with which diffusers moves parts of a network between devices."""
CASTING = ("layerwise_casting", "peft_autocast_disable")
"""The hooks with which diffusers keeps weights in a narrow type."""


def shared(network: nn.Module) -> nn.Module:
    """Another network object with the same weights in memory.

    To freeze it, to move it to a device or to add hooks leaves the network as it is. Only weights that move or change their
    type then take memory of their own. A network that moves itself shares its parts too, with the hooks that they have.

    Args:
        network: a network of diffusers or transformers.
    """
    if moves_itself(network):
        other = copy.copy(network)
        for name in ("_forward_hooks", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"):
            object.__setattr__(other, name, getattr(network, name).copy())
        return other
    return copy.deepcopy(network, sharing([network])).eval()


def copied(part: Any, memo: dict[int, Any], fixed: Iterable[nn.Module]) -> Any:
    """A deep copy of a denoiser or codec, in which some networks stay the same objects.

    Args:
        part: the denoiser or codec.
        memo: that of `copy.deepcopy`.
        fixed: networks that move themselves.
    """
    memo.update({id(network): network for network in fixed})
    other = memo[id(part)] = object.__new__(type(part))
    vars(other).update(copy.deepcopy(vars(part), memo))
    return other


def moves_itself(network: nn.Module) -> bool:
    """Whether nobody else may move or convert a network: it has hooks of its own for that, or is quantised."""
    if getattr(network, "hf_device_map", None) or getattr(network, "is_quantized", False):
        return True
    if any(hasattr(module, "_hf_hook") for module in network.modules()) or any(hooks_of(network)):
        return True
    return any(type(parameter) not in (nn.Parameter, Tensor) for parameter in network.parameters())


def hooks_of(network: nn.Module) -> Iterator[str]:
    """The names of diffusers' hooks in a network. diffusers leaves registries in networks that it calls, which may be empty."""
    for module in network.modules():
        yield from getattr(getattr(module, "_diffusers_hook", None), "hooks", ())


def require_stateless(name: str, network: nn.Module) -> None:
    """Check that a network keeps nothing from one call to the next.

    Args:
        name: of the network in its pipeline.
        network: a network of diffusers.

    Raises:
        ModelError: it has hooks that do, such as a cache of steps.
    """
    for hook in hooks_of(network):
        if hook not in OFFLOADING + CASTING:
            raise ModelError(
                f"the {name} has the hook {hook}, which keeps what it computed, and would mix windows: take it off "
                f"(disable_cache() of the {name}, or a pipeline loaded anew)"
            )


@contextmanager
def weights_kept() -> Iterator[None]:
    """Inside, what autograd saves for a backward pass stays as it is, when a hook moves the weights of a network afterwards.

    Autograd saves the parameter itself. After a hook has moved it, the backward pass would find it on the other device. Here
    autograd saves an alias, which keeps the memory of before. With checkpointing that is the memory of one block at a time.
    """
    with torch.autograd.graph.saved_tensors_hooks(Tensor.detach, lambda tensor: tensor):
        yield


def add_casts(network: nn.Module) -> None:
    """Have a network cast its inputs to its own type, and its outputs to float32 or wider.

    So a pipeline computes its guidance in float32, whatever the type of its network.

    Args:
        network: a network of diffusers, which gets hooks.
    """
    network.register_forward_pre_hook(_narrow_inputs, with_kwargs=True)
    network.register_forward_hook(_widen_outputs)


@contextmanager
def computing(what: str) -> Iterator[None]:
    """Inside, the failure of a network becomes an error of one line. That its memory does not suffice stays what it is.

    Args:
        what: the network, in words.

    Raises:
        ModelError: it failed: what its configuration says, or what it was given, does not suit it.
    """
    try:
        yield
    except Exception as cause:  # networks check little of what they are built and called with
        if isinstance(cause, PanokitError) or is_out_of_memory(cause):
            raise
        raise ModelError(
            f"{what} fails in computing ({type(cause).__name__}: {reason_of(cause)}): check the model's config.json files and "
            "the settings of the model"
        ) from cause


def dtype_of(network: nn.Module) -> torch.dtype:
    """The type in which a network computes: not that of the parts that it keeps in float32, nor of packed weights."""
    kept = kept_in_float32(network)
    for name, parameter in network.named_parameters():
        if parameter.is_floating_point() and parameter.element_size() > 1 and kept.isdisjoint(name.split(".")):
            return parameter.dtype
    return torch.float32


def cast_all(value: Any, dtype: torch.dtype) -> Any:
    """Cast all floating tensors of nested lists, tuples and dicts.

    Times and scales, of one axis, stay as they are, and so do positions, which half precision would round to every eighth.

    Args:
        value: tensors, in any nesting.
        dtype: the floating type.
    """
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() and value.ndim > 1 else value
    if isinstance(value, Mapping):
        return {key: part if _tells_places(key) else cast_all(part, dtype) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(cast_all(part, dtype) for part in value)
    return value


def require_window(window: tuple[int, ...], config: Any, multiple: int = 1) -> None:
    """Check that a network can compute on windows of a size.

    Args:
        window: cells of a window along each axis.
        config: the configuration of the network.
        multiple: of how many cells the pipeline makes a token of its own accord.

    Raises:
        SettingError: a UNet cannot halve it at each of its levels, a transformer cannot cut it into patches, or it is larger
            than the table of positions. The message names the nearest that works.
    """
    patch = patch_of(config, multiple)
    fits = 2 ** (len(config["block_out_channels"]) - 1) if "block_out_channels" in config else patch
    for cells in window:
        if cells < fits or cells % fits:
            near = max(fits, round(cells / fits) * fits)
            raise SettingError(f"window is {cells}: it must be a multiple of {fits} cells; the nearest is {near}")
    tables = [config.get("pos_embed_max_size"), config.get("rope_max_seq_len"), *(config.get("axes_lens") or ())[-2:]]
    most = min((table for table in tables if table), default=None)
    if most and max(window) > most * patch:
        raise SettingError(
            f"window is {max(window)}, and the model's table of positions ends at {most * patch} cells: make the window smaller"
        )


def patch_of(config: Any, multiple: int) -> int:
    """Cells along a side of a token of a transformer.

    Args:
        config: the configuration of the network.
        multiple: of how many cells the pipeline makes a token of its own accord.
    """
    patch = config.get("patch_size") or config.get("all_patch_size") or 1
    return max(patch if isinstance(patch, int) else patch[-1], multiple)


def knows_no_places(network: nn.Module) -> bool:
    """Whether a network knows where a cell lies by its convolutions alone: a UNet, or Sana without a table of positions."""
    kind: Any = type(network).__name__
    if kind in ("SanaTransformer2DModel", "SanaControlNetModel"):
        return getattr(network.config, "interpolation_scale", None) is None
    return kind in ("ControlNetModel", "T2IAdapter", "UNet2DConditionModel")


def _tells_places(name: str) -> bool:
    """Whether an argument of a network is about positions."""
    return name.endswith("_ids") or "rotary" in name


def _narrow_inputs(network: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    dtype = dtype_of(network)
    return cast_all(args, dtype), cast_all(kwargs, dtype)


def _widen_outputs(network: nn.Module, args: Any, output: Any) -> Any:
    return cast_all(output, torch.promote_types(dtype_of(network), torch.float32))
