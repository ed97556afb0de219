"""Runtime: devices, precision, and the one collective of a step, on Lightning Fabric."""

import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, TypeVar, final

import torch
import torch.distributed as dist
from torch import nn

from panokit import launcher
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
from panokit.wording import counted

if TYPE_CHECKING:
    from lightning.fabric import Fabric

Made = TypeVar("Made")


@final
class Runtime:
    """Places networks and deals windows out to devices.

    Args:
        devices: number of devices on each machine, or `"auto"` for all of them. If a launcher such as torchrun or SLURM has
            started several processes, 1 means as many as it started.
        accelerator: `"auto"`, `"cpu"`, `"cuda"`, ..., as Fabric names them.
        num_nodes: number of machines.
        strategy: how Fabric starts processes. `"auto"` starts them itself, or uses those of torchrun, `fabric run` or SLURM.
        precision: precision of the networks. The canvas, fusion and the solver stay in float32 (float64 with `64-true`).
        micro_batch: windows that go through the denoiser at once, 1 or more. It decides the rounding of kernels, so keep it to
            reproduce a picture bit for bit.
        checkpointing: whether guided passes compute activations again instead of keeping them, where a network can. It takes
            half of the memory or less, and about a fifth more time.
        guided_micro_batch: the micro-batch of passes with a backward pass through the denoiser, whose activations take memory.
            The default is `micro_batch`.
        attention: how UNets of diffusers compute attention. `"auto"` is torch's SDPA. `"sliced"` takes less memory and more
            time. `"xformers"` needs CUDA and the extra of that name, and falls back to SDPA with a `FallbackWarning`.
        channels_last: whether convolutions keep their channels last in memory, which is faster with most kernels.
        offload: whether networks take turns on the device and wait in the memory of the host, for a device that cannot hold
            all of them. It is slow with guidances that decode, and changes nothing on a CPU.
        compile: whether torch compiles the repeated blocks of the denoiser, once in each process. This takes minutes on a CPU.
        tile: pixels along a side of the tiles in which a large picture is decoded, a multiple of the codec's factor. Smaller
            ones take less memory and more time. The default is 384, and a canvas of up to 1024 x 2048 pixels in one piece.
        tile_overlap: pixels around a tile that are computed with it, up to half of a tile. The default is as many as the
            decoder reads, 64 for Stable Diffusion; fewer of them are faster, and leave traces of the tiles.
        timeout: seconds that a device waits for another before it gives up, above 0.
        fabric: a Fabric object of your own, launched or not. It then decides devices, machines, strategy, precision and
            timeout.

    Raises:
        SettingError: a micro-batch, a number of devices or a timeout cannot work, or there are no such devices.
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
        tile: int | None = None,
        tile_overlap: int | None = None,
        timeout: float = 300.0,
        fabric: "Fabric | None" = None,
    ) -> None:
        for name, value in (("micro_batch", micro_batch), ("guided_micro_batch", guided_micro_batch)):
            if value is not None and value < 1:
                raise SettingError(f"{name} is {value}: at least 1 window goes through the denoiser at once")
        if tile is not None and tile < 1:
            raise SettingError(f"tile is {tile}: it must be 1 pixel or more, such as 384")
        if tile_overlap is not None and tile_overlap < 0:
            raise SettingError(f"tile_overlap is {tile_overlap}: it must be 0 pixels or more, such as 64")
        if devices != "auto" and devices < 1:
            raise SettingError(f'devices is {devices}: it must be 1 or more, or "auto"')
        if num_nodes < 1:
            raise SettingError(f"num_nodes is {num_nodes}: it must be 1 or more")
        if not 0 < timeout < math.inf:
            raise SettingError(f"timeout is {timeout}: it must be a number of seconds above 0")
        execution = Execution(checkpointing, attention, compile)
        self.micro_batch, self.guided_micro_batch, self.timeout = micro_batch, guided_micro_batch, timeout
        self.tile, self.tile_overlap = tile, tile_overlap
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

    def launch(self, weights: Callable[[], int] = int) -> None:
        """Start the other ranks, unless they run already, and connect to them. With one rank it does nothing.

        Args:
            weights: returns the bytes of the weights that each rank is going to read, about; 0 if that is not known.

        Raises:
            SettingError: they cannot be started from here, from a notebook for instance, or the machine does not hold them.
            RankError: a rank ended or did not come in time.
        """
        if self.world_size == 1 or not isinstance(self.ranks, OneRank):
            return
        if not dist.is_initialized():
            try:
                launcher.watch()
                start(self.fabric.strategy, weights)
                self.fabric.launch()
            except SettingError:
                raise
            except ValueError as cause:  # a launcher has started a different number of processes
                raise SettingError(f"the devices cannot be used: {' '.join(str(cause).split())}") from cause
            except TypeError as cause:  # the strategy forks or spawns, as Fabric's does in a notebook
                raise SettingError(NOTEBOOK.format(self.world_size)) from cause
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        self.ranks = SharedRanks(Group(self.timeout), self._pieces, like)
        launcher.met.set()
        launcher.mark()

    @property
    def device(self) -> torch.device:
        """This rank's device."""
        return self.fabric.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the canvas: float64 with the precision `64-true`, and float32 otherwise."""
        return torch.float64 if self.precision == "64-true" else torch.float32

    @property
    def precision(self) -> str:
        """The precision of the networks, as Fabric names it."""
        return str(self.fabric.strategy.precision.precision)

    @property
    def global_rank(self) -> int:
        """The number of this process among all, from 0. Rank 0 writes and prints."""
        return self.fabric.global_rank

    @property
    def world_size(self) -> int:
        """The number of processes."""
        return self.fabric.world_size

    @property
    def writes(self) -> bool:
        """Whether this process writes files of its run: rank 0 does, and each rank that makes a picture of its own."""
        return self.global_rank == 0 or isinstance(self.ranks, ApartRanks)

    @property
    def checkpointing(self) -> bool:
        """Whether guided passes compute activations again."""
        return self.placement.execution.checkpointing

    @property
    def attention(self) -> Attention:
        """How UNets compute attention."""
        return self.placement.execution.attention

    @property
    def compile(self) -> bool:
        """Whether torch compiles the repeated blocks of the denoiser."""
        return self.placement.execution.compile

    @property
    def channels_last(self) -> bool:
        """Whether convolutions keep their channels last in memory."""
        return self.placement.channels_last

    @property
    def peak_memory(self) -> int:
        """The most bytes in use at once: of the device's memory on CUDA, of the process's memory elsewhere, 0 on Windows."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if sys.platform == "win32":
            return 0
        import resource  # missing on Windows

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def place(self, module: nn.Module) -> None:
        """Freeze a network and put it on this rank's device, in the runtime's precision.

        Args:
            module: the network, which is changed in place.
        """
        self.placement.place(module, self.fabric, self._turns)

    if not TYPE_CHECKING:  # type checkers know the attributes

        def __getattr__(self, name: str) -> Any:
            raise no_attribute(self, name)

    def autocast(self) -> AbstractContextManager[None]:
        """The context for calls of the networks, which sets their precision."""
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
        """Compute the rows `fn([0, ..., n - 1])` in chunks, which the ranks share. It is the only collective of a step.

        The chunks depend on `n` and the micro-batch alone, so any number of ranks makes the same bits. A chunk that does not
        fit a device's memory is computed in halves, which changes only rounding.

        Args:
            fn: takes window numbers, and returns tensors of the canvas's dtype with a row for each number. It may be called
                more than once with the same numbers. It must not call `map`, and must treat its rows independently.
            n: number of rows, 1 or more.
            rows: for each tensor, the shape of one row.
            micro_batch: the most numbers that `fn` takes at once; None for the runtime's.
            stop: the run's request to end. All ranks learn of it here.

        Returns:
            All rows in order, on every rank: one tensor for each shape in `rows`.

        Raises:
            RankError: another rank ended, or did not come in time.
            PanokitError: the error of another rank.
            OutOfMemoryError: a single window does not fit the device's memory.
        """
        return self.ranks.map(fn, n, rows, micro_batch=micro_batch or self.micro_batch, stop=stop or Stop())

    def broadcast(self, work: Callable[[], Made]) -> Made:
        """Run `work` on rank 0, and return its result on every rank. Use it for files, not in steps: it is slow.

        Args:
            work: called on rank 0 alone. Its result must be picklable.

        Raises:
            PanokitError: the error that `work` raised, on all ranks.
        """
        return self.ranks.broadcast(work)

    def barrier(self, work: Callable[[], Made]) -> Made:
        """Run `work` on each rank, wait for all ranks, and return this rank's result.

        Args:
            work: called on every rank.

        Raises:
            PanokitError: the error of any rank, on all ranks.
        """
        return self.ranks.barrier(work)

    def working(self) -> AbstractContextManager[None]:
        """Inside, this rank does what may take any time and is no work on windows: it writes a file, or loads a model.

        The other ranks wait for it as long as its process runs. Elsewhere they wait `timeout` seconds for a sign of progress.
        `map` computes windows, also inside.
        """
        return self.ranks.working()

    def agreeing(self) -> AbstractContextManager[None]:
        """Inside, the ranks do the same, and an error of one rank is raised on all of them, at their next exchange.

        An error that is not panokit's becomes a RankFailedError then, which names it. With one rank it stays as it is.
        """
        return self.ranks.agreeing()

    def require_same(self, recipe: Mapping[str, Any]) -> None:
        """Check that all ranks are about to make the same picture.

        Args:
            recipe: the recipe of this rank.

        Raises:
            RankError: the recipe of another rank differs; raised on every rank.
        """
        recipes = self.ranks.gather(lambda: dict(recipe))
        for rank, other in enumerate(recipes):
            if differing := differences(recipes[0], other):
                error = RankError(
                    f"rank 0 and rank {rank} were not started alike: {'; '.join(differing[:6])}: start all with the same "
                    "command in the same environment"
                )
                error.reported = True
                raise error

    def replicas(self, work: Callable[[int], Made], n: int) -> list[Made]:
        """Compute `[work(0), ..., work(n - 1)]`: whole panoramas, for instance.

        If `n` is at least the number of ranks, one rank alone makes each item, without exchanges. Otherwise all ranks make each
        item together.

        Args:
            work: makes item k.
            n: number of items.

        Returns:
            All items in order, on every rank.

        Raises:
            RankError: another rank ended.
            PanokitError: the error of another rank.
            KeyboardInterrupt: a rank was asked to stop.
        """
        shared = self.ranks
        if not isinstance(shared, SharedRanks) or n < self.world_size:
            return [work(k) for k in range(n)]
        group, own = shared.group, list[Made]()
        self.ranks = apart = ApartRanks(group, self._pieces)
        try:
            with group.agreeing():
                own += [work(k) for k in range(self.global_rank, n, self.world_size)]
        except KeyboardInterrupt:
            if apart.stopped:  # the other ranks were asked too, and first finish their steps
                group.gather(None)
            raise
        finally:
            self.ranks = shared
        made: list[Any] = group.gather(own)
        if None in made:
            raise KeyboardInterrupt("another rank was asked to stop")
        return [made[k % self.world_size][k // self.world_size] for k in range(n)]

    def advise(self, n: int) -> None:
        """Warn if a canvas keeps some ranks waiting for others. It warns once for each number of windows.

        Args:
            n: number of windows.
        """
        size, ranks = self.micro_batch, self.world_size
        if not isinstance(self.ranks, SharedRanks) or self.global_rank != 0 or n in self._advised:
            return
        self._advised.add(n)
        useful, best = min(len(chunks(n, size)), ranks), better(n, size, ranks)
        busy = busiest(n, size, ranks)
        if useful < ranks:
            message = f"{counted(n, 'window')} in chunks of up to {size}: work for {useful} of {ranks} devices"
            if best:
                message += f": set micro_batch to {best}, and {min(len(chunks(n, best)), ranks)} have work"
            warnings.warn(message, ShardingWarning, stacklevel=2)
        elif best and busiest(n, best, ranks) < 0.9 * busy:
            message = (
                f"the busiest of {ranks} devices computes {busy} of {n} windows a step: set micro_batch to {best}, and it "
                f"computes {busiest(n, best, ranks)}"
            )
            warnings.warn(message, ShardingWarning, stacklevel=2)
