"""Placement of networks: their device, their precision, and how they compute."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from panokit.errors import SettingError
from panokit.runtime.offload import Turns, release
from panokit.settings import Execution

if TYPE_CHECKING:
    from lightning.fabric import Fabric

_WEIGHTS = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}
"""The precisions that convert weights, and to which type. With the others, weights stay as they were loaded."""


@final
@dataclass(frozen=True)
class Placement:
    """The way in which a runtime places networks. Placed networks are remembered, so `holds` is a comparison.

    Attributes:
        device: the device on which they compute.
        dtype: the type of their weights; None leaves the weights as they are.
        channels_last: whether convolutions keep their channels last in memory.
        offload: whether they take turns on the device, and wait in the memory of the host.
        execution: the settings that the denoiser or codec applies to them.
    """

    device: torch.device
    dtype: torch.dtype | None = None
    channels_last: bool = False
    offload: bool = False
    execution: Execution = field(default_factory=Execution)

    @classmethod
    def on(cls, device: torch.device, precision: str, **options: Any) -> "Placement":
        """The placement for a device and a precision, as Fabric names it; `options` are the other fields.

        Raises:
            SettingError: the device does not compute in that precision.
        """
        lacks = device.type == "cuda" and precision.startswith("bf16") and not torch.cuda.is_bf16_supported()
        if lacks or (device.type == "mps" and precision == "64-true"):
            raise SettingError(f"the device {device} does not compute in the precision {precision}: use 32-true or 16-mixed")
        return cls(device, _WEIGHTS.get(precision), **options)

    def holds(self, module: nn.Module) -> bool:
        """Whether a network is placed like this already. One that was never placed counts if its device and type fit."""
        placed = _PLACED.get(module, Placement(self.device, self.dtype))
        return (
            self == replace(placed, device=self.device, dtype=self.dtype)
            and all(self.dtype in (None, weight.dtype) for weight in _converted(module, self.dtype))
            and (self.offload or all(parameter.device == self.device for parameter in module.parameters()))
        )

    def place(self, module: nn.Module, fabric: "Fabric", turns: Turns | None) -> None:
        """Freeze a network and put it on the device.

        It is not set up for training: distributed data parallel refuses a frozen module, and a wrapped module forbids
        `torch.autograd.grad` under mixed precision.

        Args:
            module: the network, which is changed in place.
            fabric: converts the network to its precision, and moves it.
            turns: moves networks to the device one at a time; None if they all stay there.
        """
        module.requires_grad_(False).eval()
        if not turns and _PLACED.get(module) == self and self.holds(module):
            return  # it is placed already, by another sampler
        if self.dtype is not None:
            for weight in _converted(module, self.dtype):
                weight.data = weight.data.to(self.dtype)
        release(module)
        if turns:
            turns.take(module)
        else:
            fabric.to_device(module)
        module.to(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)
        _PLACED[module] = self


def _converted(module: nn.Module, dtype: torch.dtype | None) -> Iterable[Tensor]:
    """The weights of a network that take a type: not those that it keeps in float32 (diffusers names them)."""
    weights = chain(module.named_parameters(), module.named_buffers())
    floating = [(name, weight) for name, weight in weights if weight.is_floating_point()]
    if dtype in (None, torch.float64):
        return [weight for _, weight in floating]
    if dtype == torch.float16 and getattr(getattr(module, "config", None), "force_upcast", False):  # an SDXL VAE overflows
        return []
    kept = kept_in_float32(module)
    return [weight for name, weight in floating if kept.isdisjoint(name.split("."))]


def kept_in_float32(network: nn.Module) -> frozenset[str]:
    """The names of the parts that a network keeps in float32, as diffusers and transformers list them."""
    return frozenset(getattr(network, "_keep_in_fp32_modules", None) or ())


def sharing(networks: Iterable[nn.Module]) -> dict[int, Any]:
    """A memo for `copy.deepcopy`, with which copies of networks share the weights in memory.

    To freeze, move or convert such a copy leaves the original as it is. What moves or changes its type takes memory of its own.

    Args:
        networks: the networks to be copied.
    """
    weights: dict[int, Any] = {}
    for network in networks:
        for tensor in chain(network.parameters(), network.buffers()):
            if type(tensor) is nn.Parameter:
                weights[id(tensor)] = nn.Parameter(tensor.data, requires_grad=False)
            else:  # a detached tensor is another object with the same memory; what is quantised stays itself
                weights[id(tensor)] = tensor.detach() if type(tensor) is Tensor else tensor
    return weights


_PLACED: "WeakKeyDictionary[nn.Module, Placement]" = WeakKeyDictionary()
