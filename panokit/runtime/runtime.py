"""Where things run: devices, precision, and the one collective, on Lightning Fabric."""

import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, TypeVar, final, get_args

import torch
import torch.distributed as dist
from torch import nn

from panokit.errors import RankError, SettingError, ShardingWarning
from panokit.recipe import differences
from panokit.runtime.group import Group, Status
from panokit.runtime.launch import NOTEBOOK, fabric_for, start
from panokit.runtime.offload import HOST, Turns, release, waits
from panokit.runtime.pieces import Pieces, Rows, joined
from panokit.runtime.sharding import Chunk, better, busiest, chunks, deal
from panokit.settings import Attention, Precision

if TYPE_CHECKING:
    from lightning.fabric import Fabric

Made = TypeVar("Made")

_TRUE = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}


@final
class Runtime:
    """Places networks and deals windows out to devices.

    Args:
        devices: how many devices on each machine, or `"auto"` for all there are. Where a launcher such as torchrun or SLURM has
            started several processes, 1 stands for as many as it has.
        accelerator: `"auto"`, `"cpu"`, `"cuda"`, ... as Fabric names them.
        num_nodes: how many machines.
        strategy: how Fabric starts processes: `"auto"` starts them itself, or takes those of torchrun, `fabric run` or SLURM.
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
        timeout: seconds, above 0, that a device waits for another before it gives up.
        fabric: a Fabric object of your own, launched or not; devices, machines, strategy, precision and timeout are then its
            affair.

    Raises:
        SettingError: a micro-batch, a number of devices or a timeout that cannot work, or devices that are not there.
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
        timeout: float = 300.0,
        fabric: "Fabric | None" = None,
    ) -> None:
        for name, value in (("micro_batch", micro_batch), ("guided_micro_batch", guided_micro_batch)):
            if value is not None and value < 1:
                raise SettingError(f"{name} is {value}: at least 1 window goes through the denoiser at once")
        if attention not in get_args(Attention):
            raise SettingError(f"attention is {attention!r}: it must be one of {', '.join(get_args(Attention))}")
        if devices != "auto" and devices < 1:
            raise SettingError(f'devices is {devices}: it must be 1 or more, or "auto"')
        if num_nodes < 1:
            raise SettingError(f"num_nodes is {num_nodes}: it must be 1 or more")
        if not 0 < timeout < math.inf:
            raise SettingError(f"timeout is {timeout}: it must be a number of seconds above 0")
        self.micro_batch, self.guided_micro_batch = micro_batch, guided_micro_batch
        self.checkpointing, self.attention, self.channels_last, self.compile = checkpointing, attention, channels_last, compile
        self.timeout = timeout
        self.fabric = fabric or fabric_for(accelerator, devices, num_nodes, strategy, precision, timeout)
        self._turns = Turns(self.device) if offload and self.device != HOST else None
        self._group: Group | None = None
        self._apart = self._asked = self._agreed = False
        self._owed: Exception | None = None
        self._pieces = Pieces(self.device)
        self._advised: set[int] = set()

    def __repr__(self) -> str:
        return f"Runtime(device={self.device}, world_size={self.world_size}, micro_batch={self.micro_batch})"

    def launch(self) -> None:
        """Start the other ranks, where there are any and they have not been started, and meet them.

        Raises:
            SettingError: they cannot be started from here, as from a notebook.
        """
        if self.world_size == 1 or self._group is not None:
            return
        if not dist.is_initialized():
            try:
                met = start(self.fabric.strategy)
                self.fabric.launch()
            except ValueError as cause:  # a launcher has started another number of processes
                raise SettingError(f"the devices cannot be used: {' '.join(str(cause).split())}") from cause
            except TypeError as cause:  # of a strategy that forks or spawns, which is Fabric's choice in a notebook
                raise SettingError(NOTEBOOK.format(self.world_size)) from cause
            self._group = Group(self.timeout)
            met.set()
        self._group = self._group or Group(self.timeout)

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
        """How many processes there are."""
        return self.fabric.world_size

    @property
    def writes(self) -> bool:
        """Whether this process writes and tells what becomes of its run: rank 0 does, and each rank with a run of its own."""
        return self.rank == 0 or self._apart

    @property
    def stopping(self) -> bool:
        """Whether the run is to end after this step: a rank was asked to before its windows were done, and all know."""
        return self._agreed

    def stop(self) -> None:
        """Ask all ranks to end their run after this step; a signal handler may."""
        self._asked = True

    @property
    def _sharing(self) -> Group | None:
        return None if self._apart else self._group

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

    def map(
        self,
        fn: Callable[[Chunk], Rows],
        n: int,
        rows: Sequence[Sequence[int]],
        *,
        micro_batch: int | None = None,
    ) -> Rows:
        """Rows `fn([0, ..., n - 1])`, computed in chunks on whichever rank, in order, on every rank.

        The chunks depend on `n` and the micro-batch alone, so that any number of ranks has the same bits. Where one does not
        fit a device's memory it is computed in halves, which changes nothing but rounding.

        Args:
            fn: takes window numbers; returns tensors of the canvas's dtype with a row for each of them. It may be called more
                than once with the same numbers, must not call `map`, and must treat its rows one by one.
            n: how many rows there are, 1 or more.
            rows: the shape of a row of each tensor.
            micro_batch: how many numbers at most `fn` takes at once; the runtime's unless given.

        Raises:
            RankError: another rank ended or did not come in time.
            PanokitError: what another rank raised.
            OutOfMemoryError: a single window does not fit.
        """
        size = micro_batch or self.micro_batch
        plan = chunks(n, size)
        if self._apart and self._group:
            self._group.check()
            self._group.beat()
            if self._asked and not self._group.stopping:
                self._group.stop()
            self._asked |= self._group.stopping
        if (group := self._sharing) is None:
            self._agreed |= self._asked
            return joined([self._pieces.rows(fn, chunk, size) for chunk in plan])
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        status = Status.STOP if self._asked else Status.FINE
        owed, self._owed = self._owed, None
        found, heard = group.rows(
            lambda chunk: self._pieces.rows(fn, chunk, size), deal(plan, self.world_size), rows, like, status, owed
        )
        self._agreed |= heard is Status.STOP
        return found

    def first(self, work: Callable[[], Made]) -> Made:
        """What `work` returns on the first rank, on every rank, or its error: for setting up and writing, not for steps."""
        return self._sharing.first(work) if self._sharing else work()

    def owe(self, error: Exception) -> None:
        """Raise an error that this rank alone may have, on all ranks: where windows are shared, when they next meet."""
        if not self._sharing or getattr(error, "told", False):
            raise error
        self._owed = self._owed or error

    def together(self, work: Callable[[], Made]) -> Made:
        """What `work` returns here, after it has been done on every rank; the error of any is raised on all.

        Raises:
            PanokitError: what a rank raised, or owes.
        """
        if not (group := self._sharing):
            return work()
        made: Any = None
        error: Exception | None = None
        try:
            made = work()
        except Exception as found:  # the others must hear of it
            error = found
        owed, self._owed = self._owed, None
        group.together(None, owed or error)
        return made

    def alike(self, recipe: Mapping[str, Any]) -> None:
        """Raise a RankError on every rank unless all are about to make the same."""
        if self._sharing:
            heard = self._sharing.together(dict(recipe), None)
            for rank, other in enumerate(heard):
                if found := differences(heard[0], other):
                    error = RankError(
                        f"rank 0 and rank {rank} were not started alike: {'; '.join(found[:6])}: start all with the same "
                        "command in the same environment"
                    )
                    error.told = True
                    raise error

    def replicas(self, work: Callable[[int], Made], n: int) -> list[Made]:
        """`[work(0), ..., work(n - 1)]` on every rank: whole panoramas, say.

        With n of at least the number of ranks each is one rank's alone, as that needs no words between them; with fewer, all
        ranks share each. What is shared and what is not never mix.

        Raises:
            RankError: another rank ended.
            PanokitError: what another rank raised.
        """
        if (group := self._sharing) is None or n < self.world_size:
            return [work(k) for k in range(n)]
        own: list[Made] = []
        error: Exception | None = None
        self._apart = True
        try:
            own += [work(k) for k in range(self.rank, n, self.world_size)]
        except Exception as found:  # the others must hear of it
            error = found
        except KeyboardInterrupt:
            if self._agreed:  # the others are asked to stop too, and finish their steps
                group.meet()
                group.together(None, None)
            raise
        finally:
            self._apart = False
        group.meet()
        heard = group.together(own, error)
        if None in heard:
            raise KeyboardInterrupt("another rank was asked to stop")
        return [heard[k % self.world_size][k // self.world_size] for k in range(n)]

    def advise(self, n: int) -> None:
        """Say once of a canvas of n windows where ranks have nothing to do, or less than they could."""
        size, ranks = self.micro_batch, self.world_size
        if not self._sharing or self.rank != 0 or n in self._advised:
            return
        self._advised.add(n)
        useful, best = min(len(chunks(n, size)), ranks), better(n, size, ranks)
        busy = busiest(n, size, ranks)
        if useful < ranks:
            message = f"{n} windows in chunks of up to {size} are work for {useful} of {ranks} devices"
            if best:
                message += f"; with micro_batch {best} for {min(len(chunks(n, best)), ranks)}"
            warnings.warn(message, ShardingWarning, stacklevel=2)
        elif best and busiest(n, best, ranks) < 0.9 * busy:
            message = (
                f"of {n} windows the busiest of {ranks} devices computes {busy} a step; with micro_batch {best} it is "
                f"{busiest(n, best, ranks)}"
            )
            warnings.warn(message, ShardingWarning, stacklevel=2)


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
