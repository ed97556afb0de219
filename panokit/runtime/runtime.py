"""Where things run: devices, precision, and the one collective, on Lightning Fabric."""

import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from threading import Event
from typing import TYPE_CHECKING, Any, Literal, TypeVar, final

import torch
import torch.distributed as dist
from torch import nn

from panokit.errors import RankError, SettingError, ShardingWarning
from panokit.moved import no_attribute
from panokit.plain import differences
from panokit.runtime.group import Group
from panokit.runtime.launch import NOTEBOOK, fabric_for, start
from panokit.runtime.offload import HOST, Turns
from panokit.runtime.pieces import Pieces, Rows
from panokit.runtime.placement import Placement
from panokit.runtime.ranks import ApartRanks, OneRank, Ranks, SharedRanks
from panokit.runtime.sharding import Chunk, better, busiest, chunks
from panokit.settings import Attention, Execution, Precision
from panokit.signals import Stop

if TYPE_CHECKING:
    from lightning.fabric import Fabric

Made = TypeVar("Made")


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
        if devices != "auto" and devices < 1:
            raise SettingError(f'devices is {devices}: it must be 1 or more, or "auto"')
        if num_nodes < 1:
            raise SettingError(f"num_nodes is {num_nodes}: it must be 1 or more")
        if not 0 < timeout < math.inf:
            raise SettingError(f"timeout is {timeout}: it must be a number of seconds above 0")
        execution = Execution(checkpointing, attention, compile)
        self.micro_batch, self.guided_micro_batch, self.timeout = micro_batch, guided_micro_batch, timeout
        self.fabric = fabric or fabric_for(accelerator, devices, num_nodes, strategy, precision, timeout)
        offload = offload and self.device != HOST
        self.placement = Placement.on(
            self.device, self.precision, channels_last=channels_last, offload=offload, execution=execution
        )
        self._turns = Turns(self.device) if offload else None
        self._pieces = Pieces(self.device)
        self.ranks: Ranks = OneRank(self._pieces)
        self._advised: set[int] = set()

    def __repr__(self) -> str:
        return f"Runtime(device={self.device}, world_size={self.world_size}, micro_batch={self.micro_batch})"

    def launch(self) -> None:
        """Start the other ranks, where there are any and they have not been started, and meet them.

        Raises:
            SettingError: they cannot be started from here, as from a notebook.
        """
        if self.world_size == 1 or not isinstance(self.ranks, OneRank):
            return
        met = Event()
        if not dist.is_initialized():
            try:
                met = start(self.fabric.strategy)
                self.fabric.launch()
            except ValueError as cause:  # a launcher has started another number of processes
                raise SettingError(f"the devices cannot be used: {' '.join(str(cause).split())}") from cause
            except TypeError as cause:  # of a strategy that forks or spawns, which is Fabric's choice in a notebook
                raise SettingError(NOTEBOOK.format(self.world_size)) from cause
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        self.ranks = SharedRanks(Group(self.timeout), self._pieces, like)
        met.set()

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
    def global_rank(self) -> int:
        """This process's number among all, from 0. Rank 0 writes and prints."""
        return self.fabric.global_rank

    @property
    def world_size(self) -> int:
        """How many processes there are."""
        return self.fabric.world_size

    @property
    def writes(self) -> bool:
        """Whether this process writes and reports its run: rank 0 does, and each rank that makes a picture of its own."""
        return self.global_rank == 0 or isinstance(self.ranks, ApartRanks)

    @property
    def checkpointing(self) -> bool:
        """Whether guided passes compute activations again."""
        return self.placement.execution.checkpointing

    @property
    def attention(self) -> Attention:
        """How attention is computed."""
        return self.placement.execution.attention

    @property
    def compile(self) -> bool:
        """Whether the denoiser's repeated blocks are compiled."""
        return self.placement.execution.compile

    @property
    def channels_last(self) -> bool:
        """Whether convolutions keep their channels last in memory."""
        return self.placement.channels_last

    @property
    def peak_memory(self) -> int:
        """The most bytes in use at once: of the device's memory on CUDA, of this process's elsewhere; 0 on Windows."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if sys.platform == "win32":
            return 0
        import resource  # which Windows has not

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def place(self, module: nn.Module) -> None:
        """Freeze a network and put it on this rank's device, in the runtime's precision: see `Placement.place`."""
        self.placement.place(module, self.fabric, self._turns)

    if not TYPE_CHECKING:  # type checkers know the attributes

        def __getattr__(self, name: str) -> Any:
            raise no_attribute(self, name)

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
        stop: Stop | None = None,
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
            stop: the run's request to end, of which all ranks learn here.

        Raises:
            RankError: another rank ended or did not come in time.
            PanokitError: what another rank raised.
            OutOfMemoryError: a single window does not fit.
        """
        return self.ranks.map(fn, n, rows, micro_batch=micro_batch or self.micro_batch, stop=stop or Stop())

    def broadcast(self, work: Callable[[], Made]) -> Made:
        """What `work` returns on rank 0, on every rank, or its error: for setting up and writing, not for steps."""
        return self.ranks.broadcast(work)

    def barrier(self, work: Callable[[], Made]) -> Made:
        """What `work` returns here, when every rank has done it.

        Raises:
            PanokitError: the error of any rank, or one that a rank deferred, on all ranks.
        """
        return self.ranks.barrier(work)

    def defer(self, error: Exception) -> None:
        """Raise an error that this rank alone may have: on all ranks when they next meet, or at once if there are none."""
        self.ranks.defer(error)

    def require_same(self, recipe: Mapping[str, Any]) -> None:
        """Raise a RankError on every rank unless all are about to make the same picture."""
        recipes = self.ranks.gather(lambda: dict(recipe))
        for rank, other in enumerate(recipes):
            if apart := differences(recipes[0], other):
                error = RankError(
                    f"rank 0 and rank {rank} were not started alike: {'; '.join(apart[:6])}: start all with the same "
                    "command in the same environment"
                )
                error.reported = True
                raise error

    def replicas(self, work: Callable[[int], Made], n: int) -> list[Made]:
        """`[work(0), ..., work(n - 1)]` on every rank: whole panoramas, say.

        With at least as many pieces of work as ranks, each is made by one rank alone, which needs no exchange. With fewer, all
        ranks share each of them.

        Args:
            work: makes number k.
            n: how many there are.

        Raises:
            RankError: another rank ended.
            PanokitError: what another rank raised.
            KeyboardInterrupt: a rank was asked to stop.
        """
        shared = self.ranks
        if not isinstance(shared, SharedRanks) or n < self.world_size:
            return [work(k) for k in range(n)]
        group, own, error = shared.group, list[Made](), None
        self.ranks = apart = ApartRanks(group, self._pieces)
        try:
            own += [work(k) for k in range(self.global_rank, n, self.world_size)]
        except Exception as raised:  # the others must learn of it
            error = raised
        except KeyboardInterrupt:
            if apart.stopped:  # the others are asked to stop too, and finish their steps
                group.meet()
                group.gather(None, None)
            raise
        finally:
            self.ranks = shared
        group.meet()
        made: list[Any] = group.gather(own, error)
        if None in made:
            raise KeyboardInterrupt("another rank was asked to stop")
        return [made[k % self.world_size][k // self.world_size] for k in range(n)]

    def advise(self, n: int) -> None:
        """Warn once about a canvas of n windows that gives some ranks nothing to do, or less than they could."""
        size, ranks = self.micro_batch, self.world_size
        if not isinstance(self.ranks, SharedRanks) or self.global_rank != 0 or n in self._advised:
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
