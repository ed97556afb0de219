"""Networks that take turns on a device, and wait in the host's memory for theirs."""

from typing import Any, final

import torch
from torch import Tensor, nn

HOST = torch.device("cpu")


@final
class Turns:
    """Lets the networks in, one at a time: when one is called, it comes to the device and the others leave it.

    While gradients are recorded nobody leaves, because what was recorded needs the weights where they are.

    Args:
        device: where they compute.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._there: list[nn.Module] = []

    def take(self, network: nn.Module) -> None:
        """Have a network wait for its turns. Its parts count as itself: a codec's decoder is called without its whole."""
        release(network)
        network.to(HOST)
        for part in (network, *network.children()):
            part.register_forward_pre_hook(_CallIn(self, network), with_kwargs=True)

    def let_in(self, network: nn.Module) -> None:
        """Bring a network to the device."""
        if not torch.is_grad_enabled():
            for other in self._there:
                if other is not network:
                    other.to(HOST)
            self._there = [each for each in self._there if each is network]
        if all(each is not network for each in self._there):
            network.to(self.device)
            self._there.append(network)


@final
class _CallIn:
    """A hook as an object, so that a copy of a network calls the copy in, and not the original."""

    def __init__(self, turns: Turns, network: nn.Module) -> None:
        self.turns, self.network = turns, network

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        self.turns.let_in(self.network)
        device = self.turns.device
        here = tuple(each.to(device) if isinstance(each, Tensor) else each for each in args)
        return here, {key: each.to(device) if isinstance(each, Tensor) else each for key, each in kwargs.items()}


def waits(network: nn.Module) -> bool:
    """Whether a network takes turns."""
    return any(isinstance(hook, _CallIn) for hook in network._forward_pre_hooks.values())


def release(network: nn.Module) -> None:
    """Take a network out of its turns, wherever it is."""
    for part in (network, *network.children()):
        for key, hook in list(part._forward_pre_hooks.items()):
            if isinstance(hook, _CallIn):
                del part._forward_pre_hooks[key]
                part._forward_pre_hooks_with_kwargs.pop(key, None)
