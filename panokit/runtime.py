"""Where things run: devices, precision, and the one collective, on Lightning Fabric."""

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, final, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from panokit.errors import SettingError
from panokit.offload import HOST, Turns, release, waits
from panokit.settings import Attention, Precision

if TYPE_CHECKING:
    from lightning.fabric import Fabric

_TRUE = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}


@final
class Runtime:
    """Places networks and deals windows out to devices.

    Args:
        devices: how many devices, or `"auto"` for all there are.
        accelerator: `"auto"`, `"cpu"`, `"cuda"`, ... as Fabric names them.
        num_nodes: how many machines.
        strategy: Fabric's launcher: `"auto"`, `"ddp"`, ...
        precision: of the networks. The canvas, fusion and the solver stay in float32 (float64 with `64-true`).
        micro_batch: windows that go through the denoiser at once, 1 or more. It decides the kernels' rounding, so it belongs
            to what makes a picture reproducible.
        checkpointing: whether guided passes compute activations again instead of keeping them, where a network can: half of
            the memory or less, for about a fifth more time.
        guided_micro_batch: the micro-batch where a backward pass goes through the denoiser, whose activations take memory; the
            same as `micro_batch` unless given.
        attention: how UNets of diffusers compute it: `"auto"` is torch's SDPA; `"sliced"` takes less memory and more time;
            `"xformers"` needs CUDA and the extra of that name, and falls back to SDPA with a `FallbackWarning`.
        channels_last: whether convolutions keep their channels last in memory, which is faster with most kernels.
        offload: whether networks take turns on the device and wait in the host's memory, for a device that does not hold them
            all; slow where a guidance decodes. It changes nothing on a CPU.
        compile: whether the repeated blocks of the denoiser are compiled by torch, once a process, for minutes on a CPU.
        fabric: a Fabric object of your own, launched or not; devices, machines, strategy and precision are then its affair.

    Raises:
        SettingError: a micro-batch or a number of devices below 1.
    """

    def __init__(
        self,
        *,
        devices: int | Literal["auto"] = 1,
        accelerator: str = "auto",
        num_nodes: int = 1,
        strategy: str = "auto",
        precision: Precision = "32-true",
        micro_batch: int = 8,
        checkpointing: bool = False,
        guided_micro_batch: int | None = None,
        attention: Attention = "auto",
        channels_last: bool = False,
        compile: bool = False,
        offload: bool = False,
        fabric: "Fabric | None" = None,
    ) -> None:
        for name, value in (("micro_batch", micro_batch), ("guided_micro_batch", guided_micro_batch)):
            if value is not None and value < 1:
                raise SettingError(f"{name} is {value}: at least 1 window goes through the denoiser at once")
        if attention not in get_args(Attention):
            raise SettingError(f"attention is {attention!r}: it must be one of {', '.join(get_args(Attention))}")
        if devices != "auto" and devices < 1:
            raise SettingError(f'devices is {devices}: it must be 1 or more, or "auto"')
        self.micro_batch, self.guided_micro_batch = micro_batch, guided_micro_batch
        self.checkpointing, self.attention, self.channels_last, self.compile = checkpointing, attention, channels_last, compile
        if fabric is None:
            from lightning.fabric import Fabric

            fabric = Fabric(
                accelerator=accelerator, devices=devices, num_nodes=num_nodes, strategy=strategy, precision=precision
            )
        self.fabric = fabric
        self._turns = Turns(self.device) if offload and self.device != HOST else None

    def __repr__(self) -> str:
        return f"Runtime(device={self.device}, world_size={self.world_size}, micro_batch={self.micro_batch})"

    def launch(self) -> None:
        """Start the other ranks, where there are any and they have not been started."""
        if self.world_size > 1 and not dist.is_initialized():
            self.fabric.launch()

    @property
    def device(self) -> torch.device:
        """This rank's device."""
        return self.fabric.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the canvas: float32, or float64 where the networks are."""
        return torch.float64 if self.precision == "64-true" else torch.float32

    @property
    def precision(self) -> str:
        """The precision of the networks, in Fabric's words."""
        return str(self.fabric.strategy.precision.precision)

    @property
    def rank(self) -> int:
        """This process's number among all, from 0. Rank 0 writes and prints."""
        return self.fabric.global_rank

    @property
    def world_size(self) -> int:
        """How many processes share the windows."""
        return self.fabric.world_size

    @property
    def peak_memory(self) -> int:
        """The most bytes in use at once: of the device's memory on CUDA, of this process's elsewhere; 0 on Windows."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if sys.platform == "win32":
            return 0
        import resource  # which Windows has not

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def has(self, module: nn.Module) -> bool:
        """Whether a network is placed already: on this rank's device, in the runtime's precision, and as it says otherwise."""
        dtype = _TRUE.get(self.precision)
        parts, floating = [*module.modules()], [p for p in module.parameters() if p.is_floating_point()]
        saves = any(getattr(part, "gradient_checkpointing", False) for part in parts)
        last = any(p.ndim == 4 and not p.is_contiguous() for p in floating)
        return (
            saves == (self.checkpointing and hasattr(module, "enable_gradient_checkpointing"))
            and last == (self.channels_last and any(p.ndim == 4 for p in floating))
            and _is_compiled(module) == (self.compile and bool(_repeated(module)))
            and waits(module) == (self._turns is not None)
            and all((self._turns or p.device == self.device) and dtype in (None, p.dtype) for p in floating)
        )

    def place(self, module: nn.Module) -> None:
        """Freeze a network and put it on this rank's device, in the runtime's precision.

        It is not set up for training: distributed data parallel refuses a frozen module, and a wrapped module forbids
        `torch.autograd.grad` under mixed precision.
        """
        module.requires_grad_(False).eval()
        if hasattr(module, "enable_gradient_checkpointing"):
            _checkpoint(module, self.checkpointing)
        module = self.fabric.strategy.precision.convert_module(module)
        release(module)
        if self._turns:
            self._turns.take(module)
        else:
            self.fabric.to_device(module)
        module.to(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)
        for block in _repeated(module):
            if self.compile and block._compiled_call_impl is None:
                block.compile()
            elif not self.compile:
                block._compiled_call_impl = None

    def autocast(self) -> AbstractContextManager[None]:
        """The precision context for calls of the networks."""
        return self.fabric.autocast()

    def map(self, fn: Callable[[list[int]], tuple[Tensor, ...]], n: int, *, guided: bool = False) -> tuple[Tensor, ...]:
        """Rows `fn([0, ..., n - 1])`, computed in chunks on whichever rank, in order, on every rank.

        The chunks depend on `n` and the micro-batch alone, so that any number of ranks has the same bits.

        Args:
            fn: takes window numbers; returns tensors of one dtype with a row for each of them. It may be called more than
                once with the same numbers, must not call `map`, and must treat its rows one by one.
            n: how many rows there are, 1 or more.
            guided: whether `fn` goes back through the denoiser: the micro-batch is then that for guided windows.
        """
        plan = chunks(n, (guided and self.guided_micro_batch) or self.micro_batch)
        if self.world_size == 1:
            return _joined([fn(chunk) for chunk in plan])
        # A rank without a chunk repeats the first: the others are busy for that long anyway, and it learns the rows' shape.
        mine = plan[self.rank :: self.world_size]
        rows = _joined([fn(chunk) for chunk in mine or plan[:1]])
        return self._gathered(rows, plan)

    def _gathered(self, rows: tuple[Tensor, ...], plan: Sequence[list[int]]) -> tuple[Tensor, ...]:
        """All rows, in order, by one collective: rows of all outputs side by side, shares padded to the largest."""
        shares = [[i for chunk in plan[rank :: self.world_size] for i in chunk] for rank in range(self.world_size)]
        widest = max(map(len, shares))
        flat = torch.cat([part.flatten(1) for part in rows], dim=1)
        share = flat.new_zeros((widest, flat.shape[1]))
        own = len(shares[self.rank])
        share[:own] = flat[:own]
        everything = flat.new_empty((self.world_size * widest, flat.shape[1]))
        dist.all_gather_into_tensor(everything, share)
        where = {i: rank * widest + k for rank, numbers in enumerate(shares) for k, i in enumerate(numbers)}
        order = torch.tensor([where[i] for i in range(len(where))], device=flat.device)
        parts = everything[order].split([part[0].numel() for part in rows], dim=1)
        return tuple(part.reshape(-1, *like.shape[1:]).contiguous() for part, like in zip(parts, rows, strict=True))


def chunks(n: int, micro_batch: int) -> list[list[int]]:
    """The numbers 0 to n - 1 in as few runs of at most `micro_batch` as there can be, of near-equal length."""
    count = -(-n // micro_batch)
    edges = [n * k // count for k in range(count + 1)]
    return [list(range(a, b)) for a, b in pairwise(edges)]


def _checkpoint(module: Any, on: bool) -> None:
    """Have a network of diffusers compute activations again where that frees much for little: at a UNet's finer levels.

    A level of C channels keeps some C numbers a cell and spends some C^2 multiplications on them, so the coarse half of the
    levels costs half of the time to compute again and holds a sixth of the memory.
    """
    module.disable_gradient_checkpointing()
    if on:
        module.enable_gradient_checkpointing()
    if not isinstance(getattr(module, "up_blocks", None), nn.ModuleList):
        return
    levels = len(module.down_blocks)
    coarse = nn.ModuleList([*module.down_blocks[(levels + 1) // 2 :], module.mid_block, *module.up_blocks[: levels // 2]])
    part: Any
    for part in coarse.modules():
        if hasattr(part, "gradient_checkpointing"):
            part.gradient_checkpointing = False


def _repeated(module: nn.Module) -> list[nn.Module]:
    """The blocks of a network of diffusers that it says are many of a kind, so that one compilation serves them all."""
    kinds = getattr(module, "_repeated_blocks", None) or ()
    return [part for part in module.modules() if type(part).__name__ in kinds]


def _is_compiled(module: nn.Module) -> bool:
    return any(part._compiled_call_impl is not None for part in _repeated(module))


def _joined(rows: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return rows[0] if len(rows) == 1 else tuple(torch.cat(parts) for parts in zip(*rows, strict=True))
