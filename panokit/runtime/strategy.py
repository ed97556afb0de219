"""Fabric's strategy for processes, with a process group that panokit opens."""

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Timer
from typing import final

import torch.distributed as dist
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy
from torch._C._distributed_c10d import PrefixStore, TCPStore

from panokit import launcher
from panokit.errors import RankError

_START, _LEAST = 60.0, 5.0
"""The least seconds that processes get to start: those that panokit starts itself, after it has imported everything, and those
of a launcher, which start at once."""

_GRACE = 3.0
"""Seconds more, after which a process is ended that waits inside a library and notices nothing."""


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
        """Open the process group before Fabric would open one of its own.

        Raises:
            RankError: the other ranks did not come in time, or one ended.
        """
        environment = self.cluster_environment
        if environment is not None and not dist.is_initialized():
            rank = self.node_rank * self.num_processes + self.local_rank
            size = self.num_nodes * self.num_processes
            patience = self._patience.total_seconds()
            patience = max(patience, _START if isinstance(environment, LightningEnvironment) else _LEAST)
            with _given_up(rank, patience):
                try:
                    store = _met(environment.main_address, environment.main_port, rank, size, patience)
                    dist.init_process_group(
                        "nccl" if self.root_device.type == "cuda" else "gloo",
                        store=store,
                        rank=rank,
                        world_size=size,
                        timeout=self._patience,
                        device_id=self.root_device if self.root_device.type == "cuda" else None,
                    )
                except (OSError, RuntimeError, ValueError) as cause:
                    if isinstance(cause, RankError):
                        raise
                    reason = str(cause).partition("\n")[0][:200]
                    raise RankError(f"rank {rank} of {size} could not meet the others: {reason}") from cause
        super().setup_environment()


def _met(address: str, port: int, rank: int, size: int, patience: float) -> PrefixStore:
    """Wait until all ranks are there, in steps between which a signal is obeyed.

    Args:
        address: the host of rank 0.
        port: the port of its key-value store.
        rank: the number of this rank.
        size: the number of ranks.
        patience: seconds to wait.

    Returns:
        The store of this attempt.

    Raises:
        RankError: a rank did not come, or was started for another number of ranks.
    """
    deadline = time.monotonic() + patience
    by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun's agent has the store
    while rank or by_agent:  # TCPStore would wait without noticing a signal
        try:
            socket.create_connection((address, port), timeout=1.0).close()
            break
        except OSError as cause:
            if time.monotonic() > deadline:
                launcher.end_parent()
                raise RankError(
                    f"rank 0 has not come to {address}:{port} within {patience:g} s: {cause.strerror or cause}"
                ) from cause
            time.sleep(0.1)
    store = PrefixStore(
        f"panokit/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}",
        TCPStore(
            address,
            port,
            size,
            is_master=not (rank or by_agent),
            timeout=timedelta(seconds=patience),
            wait_for_workers=False,
            multi_tenant=True,
        ),
    )
    store.set(f"rank {rank}", str(size))
    while True:
        missing = [other for other in range(size) if not store.check([f"rank {other}"])]
        if 0 not in missing and (first := int(store.get("rank 0"))) != size:
            raise RankError(f"rank 0 was started as one of {first} and rank {rank} as one of {size}: start all alike")
        if not missing:
            return store
        if time.monotonic() > deadline:
            raise RankError(f"rank {missing[0]} of {size} has not come within {patience:g} s: look at its last output")
        time.sleep(0.05)


@contextmanager
def _given_up(rank: int, patience: float) -> Iterator[None]:
    """Inside, this rank waits for the others. It is ended if that takes much too long, though it waits inside a library."""

    def end() -> None:
        print(f"panokit: rank {rank}: the others have not come within {patience:g} s", file=sys.stderr, flush=True)
        launcher.end_parent()
        os._exit(1)

    timer = Timer(patience + _GRACE, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
