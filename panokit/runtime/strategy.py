"""Fabric's strategy for processes, with a process group that panokit opens."""

import os
from datetime import timedelta
from typing import final

import torch.distributed as dist
from lightning.fabric.strategies.ddp import DDPStrategy
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from panokit.errors import RankError

_START = timedelta(seconds=300)
"""The longest time that processes may take to start: imports are slow, and not all processes start at once."""


@final
class WindowStrategy(DDPStrategy):
    """Starts processes as `ddp` does. Ranks wait for each other for `timeout` at most, and a launcher may start them again.

    Such a launcher keeps its key-value store. Keys of the last attempt would mislead the ranks of the next one, so each attempt
    has a prefix of its own.

    Args:
        timeout: how long a rank waits for another.
    """

    def __init__(self, timeout: timedelta) -> None:
        super().__init__(timeout=timeout)
        self._patience = timeout

    def setup_environment(self) -> None:
        """Open the process group before Fabric would open one of its own."""
        environment = self.cluster_environment
        if environment is not None and not dist.is_initialized():
            os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
            rank = self.node_rank * self.num_processes + self.local_rank
            size = self.num_nodes * self.num_processes
            try:
                store, rank, size = next(rendezvous("env://", rank, size, timeout=_START))
            except (RuntimeError, ValueError) as cause:
                reason = str(cause).partition("\n")[0][:200]
                raise RankError(f"rank {rank} of {size} could not meet the others: {reason}") from cause
            store.set_timeout(max(self._patience, _START))
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            dist.init_process_group(
                "nccl" if self.root_device.type == "cuda" else "gloo",
                store=PrefixStore(f"panokit/{attempt}", store),
                rank=rank,
                world_size=size,
                timeout=self._patience,
                device_id=self.root_device if self.root_device.type == "cuda" else None,
            )
        super().setup_environment()
