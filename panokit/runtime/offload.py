"""Offload: networks take turns on a device, and wait in the memory of the host."""

from collections.abc import Iterable
from typing import Any, final

import torch
from torch import Tensor, nn

HOST = torch.device("cpu")


@final
class Turns:
    """Moves networks to the device one at a time. When one is called, it moves there, and the others leave.

    While torch records gradients, no network leaves: the recorded graph needs the weights on the device.

    Args:
        device: the device on which networks compute.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._present: list[nn.Module] = []

    def take(self, network: nn.Module) -> None:
        """Have a network take turns. A call of one of its parts counts too: a codec may call its decoder alone."""
        release(network)
        network.to(HOST)
        for part in (network, *network.children()):
            part.register_forward_pre_hook(_CallIn(self, network), with_kwargs=True)

    def let_in(self, network: nn.Module) -> None:
        """Bring a network to the device."""
        if not torch.is_grad_enabled():
            for other in self._present:
                if other is not network:
                    other.to(HOST)
            self._present = [other for other in self._present if other is network]
        if all(other is not network for other in self._present):
            network.to(self.device)
            self._present.append(network)


@final
class _CallIn:
    """A hook that brings a network to the device. It is an object, so that a deep copy of the network brings the copy."""

    def __init__(self, turns: Turns, network: nn.Module) -> None:
        self.turns, self.network = turns, network

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        self.turns.let_in(self.network)
        device = self.turns.device
        moved = tuple(arg.to(device) if isinstance(arg, Tensor) else arg for arg in args)
        return moved, {key: arg.to(device) if isinstance(arg, Tensor) else arg for key, arg in kwargs.items()}


def turns_on(networks: Iterable[Any]) -> torch.device | None:
    """The device on which networks take turns; None if they take none.

    Args:
        networks: networks, and other parts of a model.
    """
    hooks = (hook for network in networks if isinstance(network, nn.Module) for hook in network._forward_pre_hooks.values())
    return next((hook.turns.device for hook in hooks if isinstance(hook, _CallIn)), None)


def let_in(network: nn.Module) -> None:
    """Bring a network to the device if it takes turns, before parts of it are called alone.

    Args:
        network: the network.
    """
    for hook in network._forward_pre_hooks.values():
        if isinstance(hook, _CallIn):
            hook.turns.let_in(hook.network)


def release(network: nn.Module) -> None:
    """Have a network take no more turns. It stays on the device where it is."""
    for part in (network, *network.children()):
        for key, hook in list(part._forward_pre_hooks.items()):
            if isinstance(hook, _CallIn):
                del part._forward_pre_hooks[key]
                part._forward_pre_hooks_with_kwargs.pop(key, None)
