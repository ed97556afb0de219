"""Where networks live: their device, their precision, and how they compute."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, final
from weakref import WeakKeyDictionary

import torch
from torch import nn

from panokit.runtime.offload import Turns, release
from panokit.settings import Execution

if TYPE_CHECKING:
    from lightning.fabric import Fabric

_WEIGHTS = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}
"""The precisions in which weights are converted; in the others they stay as they were loaded."""


@final
@dataclass(frozen=True)
class Placement:
    """How a runtime wants networks to be. What was placed is remembered, so asking is a comparison.

    Attributes:
        device: where they compute.
        dtype: of their weights; None leaves them as they are.
        channels_last: whether convolutions keep their channels last in memory.
        offload: whether they take turns on the device, and wait in the host's memory.
        execution: what their denoiser or codec has them do.
    """

    device: torch.device
    dtype: torch.dtype | None = None
    channels_last: bool = False
    offload: bool = False
    execution: Execution = field(default_factory=Execution)

    @classmethod
    def on(cls, device: torch.device, precision: str, **options: Any) -> "Placement":
        """The placement for a precision in Fabric's words."""
        return cls(device, _WEIGHTS.get(precision), **options)

    def holds(self, module: nn.Module) -> bool:
        """Whether a network is placed so already. One that nobody placed counts if it already is what is wanted."""
        placed = _PLACED.get(module, Placement(self.device, self.dtype))
        parameters = [parameter for parameter in module.parameters() if parameter.is_floating_point()]
        return (
            self == replace(placed, device=self.device, dtype=self.dtype)
            and all(self.dtype in (None, parameter.dtype) for parameter in parameters)
            and (self.offload or all(parameter.device == self.device for parameter in parameters))
        )

    def place(self, module: nn.Module, fabric: "Fabric", turns: Turns | None) -> None:
        """Freeze a network and put it on the device.

        It is not set up for training: distributed data parallel refuses a frozen module, and a wrapped module forbids
        `torch.autograd.grad` under mixed precision.

        Args:
            module: the network, which is changed in place.
            fabric: converts it to its precision, and moves it.
            turns: who lets networks in, where they take turns.
        """
        module.requires_grad_(False).eval()
        module = fabric.strategy.precision.convert_module(module)
        release(module)
        if turns:
            turns.take(module)
        else:
            fabric.to_device(module)
        module.to(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)
        _PLACED[module] = self


_PLACED: "WeakKeyDictionary[nn.Module, Placement]" = WeakKeyDictionary()
