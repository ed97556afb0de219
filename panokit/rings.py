"""A window that is as long as its ring: a network sees the cells at one end of it beside those at the other end.

Convolutions pad with the cells of the other end in place of zeros. They are intercepted in the calling thread alone, so the
network stays as it is, and others may use it at the same time. Outside of `circular` nothing is intercepted.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from panokit.windows import Windows

_CONVOLUTIONS = {functional.conv2d: 2, functional.conv3d: 3}
"""The convolutions that are intercepted, and their numbers of axes. The last two are height and width."""


@final
@dataclass(frozen=True)
class Ring:
    """What goes around.

    Attributes:
        size: height and width of what a network sees, in cells.
        wrap: whether it is a ring along its height, and along its width.
    """

    size: tuple[int, int]
    wrap: tuple[bool, bool]

    @classmethod
    def along(cls, size: Sequence[int], wrap: Sequence[bool]) -> "Ring | None":
        """A ring of a size; None if no axis is one.

        Args:
            size: cells along each axis; the last two are height and width.
            wrap: for each axis, whether it is a ring.
        """
        height, width = wrap[-2:]
        return cls((size[-2], size[-1]), (height, width)) if height or width else None

    @classmethod
    def of(cls, windows: Windows) -> "Ring | None":
        """What a window sees as a ring: the axes of a canvas around which one window goes. None if there is none.

        Args:
            windows: where windows lie.
        """
        return cls.along(windows.window, windows.rings) if any(windows.rings) else None


_AROUND: ContextVar[Ring | None] = ContextVar("around", default=None)
"""The ring that networks see now, in this thread."""


_NOTHING = nullcontext()
"""What `circular` returns for no ring: windows that see none, which are most, pay nothing for it."""


def around() -> Ring | None:
    """The ring that networks see now, in the calling thread; None outside of `circular`."""
    return _AROUND.get()


def circular(ring: Ring | None) -> AbstractContextManager[None]:
    """Inside, in the calling thread, networks see a ring.

    Args:
        ring: what goes around; None changes nothing.
    """
    return _NOTHING if ring is None else _circular(ring)


@contextmanager
def _circular(ring: Ring) -> Iterator[None]:
    token = _AROUND.set(ring)
    try:
        with _Circular(ring):
            yield
    finally:
        _AROUND.reset(token)


def kept(run: Callable[..., Any]) -> Callable[..., Any]:
    """A function that sees the ring of now whenever it is called, and in whichever thread.

    Args:
        run: computes a part of a network, which a backward pass may compute again.
    """
    ring = around()
    if ring is None:
        return run

    def again(*args: Any, **kwargs: Any) -> Any:
        if around() is ring:
            return run(*args, **kwargs)
        with circular(ring):
            return run(*args, **kwargs)

    return again


@final
class _Circular(TorchFunctionMode):
    """Pads with the cells of the other end."""

    def __init__(self, ring: Ring) -> None:
        super().__init__()
        self._ring = ring

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _CONVOLUTIONS:
            return self._convolved(func, *args, **kwargs)
        if func is functional.pad:
            return self._padded(*args, **kwargs)
        return func(*args, **kwargs)

    def _is_whole(self, x: Tensor) -> bool:
        """Whether a tensor lies over the whole of what goes around, in coarser or finer cells."""
        (height, width), shape = self._ring.size, x.shape
        return x.ndim > 3 and shape[-2] * width == shape[-1] * height

    def _convolved(
        self,
        convolve: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        axes = _CONVOLUTIONS[convolve]
        pads = _pads(padding, weight.shape[-axes:], _per_axis(dilation, axes))
        if self._is_whole(input):
            for axis, ring in zip((-2, -1), self._ring.wrap, strict=True):
                if ring and any(pads[axis]):
                    input, pads[axis] = _turned(input, axis, *pads[axis]), (0, 0)
        if all(before == after for before, after in pads):
            return convolve(input, weight, bias, stride, tuple(before for before, _ in pads), dilation, groups)
        rest = [pad for before, after in reversed(pads) for pad in (before, after)]
        return convolve(functional.pad(input, rest), weight, bias, stride, 0, dilation, groups)

    def _padded(self, input: Tensor, pad: Sequence[int], mode: str = "constant", value: int | float | None = None) -> Tensor:
        rest = list(pad)
        if self._is_whole(input) and not value:
            for k, ring in enumerate(reversed(self._ring.wrap)):
                some = rest[2 * k : 2 * k + 2]
                if ring and some and min(some) >= 0:  # a negative one crops
                    input, rest[2 * k : 2 * k + 2] = _turned(input, -1 - k, *some), (0, 0)
        return functional.pad(input, rest, mode, value) if any(rest) else input


def _turned(x: Tensor, axis: int, before: int, after: int) -> Tensor:
    """A tensor that goes on at both ends of an axis, around the ring."""
    cells = x.shape[axis]
    if max(before, after) > cells:  # a wide kernel on few cells sees them more than once
        at = torch.arange(-before, cells + after, device=x.device) % cells
        return x.index_select(axis, at)
    parts = [x.narrow(axis, cells - before, before), x, x.narrow(axis, 0, after)]
    return torch.cat([part for part in parts if part.shape[axis]], axis)


def _per_axis(value: Any, axes: int) -> tuple[int, ...]:
    """A number for each axis."""
    return (value,) * axes if isinstance(value, int) else (*value,) * (axes if len(value) == 1 else 1)


def _pads(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> list[tuple[int, int]]:
    """The cells before and after each axis with which a convolution pads."""
    if padding == "valid":
        return [(0, 0)] * len(kernel)
    if padding == "same":
        reaches = [by * (taps - 1) for taps, by in zip(kernel, dilation, strict=True)]
        return [(reach // 2, reach - reach // 2) for reach in reaches]
    return [(pad, pad) for pad in _per_axis(padding, len(kernel))]
