"""Memory: the bytes of tensors, which are the same on every machine."""

import weakref
from collections.abc import Callable
from typing import Any, TypeVar, final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Made = TypeVar("Made")


@final
class Memory(TorchDispatchMode):
    """Counts the bytes of the living tensors that are made while it is open, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return made

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._alive:
            self._alive.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


def peak(work: Callable[[], Made]) -> tuple[Made, int]:
    """The result of some work, and the most bytes of the tensors that it made and that lived at once.

    Args:
        work: called once.
    """
    with Memory() as memory:
        made = work()
    return made, memory.peak
