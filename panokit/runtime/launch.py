"""Launch: Fabric as panokit needs it, and the processes of the other ranks, with a launcher or without one."""

import atexit
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from panokit.errors import SettingError
from panokit.settings import Precision

if TYPE_CHECKING:
    from lightning.fabric import Fabric

_GRACE = 3.0
"""Seconds in which processes may end by themselves, before they are killed."""

_PARENT = "PANOKIT_PARENT"
"""The environment variable with the process id of the parent."""

NOTEBOOK = (
    "{} devices need a process each, and those cannot be started from a notebook, nor by spawning or forking: write a script, "
    "or run `panokit generate --devices N`, `torchrun` or `fabric run` in a terminal"
)


def fabric_for(
    accelerator: str, devices: int | str, num_nodes: int, strategy: str, precision: Precision, timeout: float
) -> "Fabric":
    """Make a Fabric object. It uses the processes of a launcher, if there is one.

    With several processes it uses panokit's `WindowStrategy`, unless `fabric run` started them or the strategy is another.

    Args:
        accelerator: `"auto"`, `"cpu"`, `"cuda"`, ..., as Fabric names them.
        devices: number of devices on each machine, or `"auto"`.
        num_nodes: number of machines.
        strategy: how Fabric starts processes.
        precision: of the networks, as Fabric names it.
        timeout: seconds that a rank waits for another.

    Raises:
        SettingError: Fabric cannot use these devices, or needs processes in a notebook.
    """
    from lightning.fabric import Fabric

    launched = _launched()
    if launched and (devices, num_nodes) == (1, 1):
        devices, num_nodes = launched
    options: dict[str, Any] = {"accelerator": accelerator, "num_nodes": num_nodes, "precision": precision}
    try:
        if devices == "auto":
            devices = Fabric(devices=devices, **options).world_size // num_nodes
        if (devices, num_nodes) == (1, 1) or strategy not in ("auto", "ddp") or os.environ.get("LT_CLI_USED", "0") != "0":
            return Fabric(devices=devices, strategy=strategy, **options)
        if hasattr(sys, "ps1") and not launched:
            raise SettingError(NOTEBOOK.format(devices))
        from panokit.runtime.strategy import WindowStrategy

        return Fabric(devices=devices, strategy=WindowStrategy(timedelta(seconds=timeout)), **options)
    except SettingError:
        raise
    except (RuntimeError, ValueError, TypeError) as cause:  # Fabric's errors about devices, launchers and accelerators
        raise SettingError(
            f"{devices} devices ({accelerator}) on {num_nodes} machines cannot be used: {' '.join(str(cause).split())}"
        ) from cause


def _launched() -> tuple[int, int] | None:
    """Processes on each machine, and machines, as a launcher has started them; None without a launcher."""
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    if TorchElasticEnvironment.detect():
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return local, int(os.environ["WORLD_SIZE"]) // local
    if SLURMEnvironment.detect():
        nodes = int(os.environ.get("SLURM_NNODES", "1"))
        return int(os.environ["SLURM_NTASKS"]) // nodes, nodes
    return None


def start(strategy: Any) -> Event:
    """Start the other processes of this machine, unless a launcher has. They end with this one.

    Each process runs the command of this one, and reads its rank from the environment, as with Fabric. If one of them ends
    before all have met, Fabric would kill this process without a message; panokit says which one ended.

    Args:
        strategy: Fabric's strategy. Nothing is started for another one than `WindowStrategy`.

    Returns:
        An event. Set it when all ranks have met: their lifelines watch over them from then on.
    """
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment

    from panokit.runtime.strategy import WindowStrategy

    met = Event()
    environment: Any = getattr(strategy, "cluster_environment", None)
    if not isinstance(strategy, WindowStrategy) or not isinstance(environment, LightningEnvironment):
        return met
    if _PARENT in os.environ and os.environ.get("LOCAL_RANK", "0") != "0":
        Thread(target=_watch_parent, args=(int(os.environ[_PARENT]), met), daemon=True, name="panokit-start").start()
    if environment.creates_processes_externally:
        return met
    command = _command()
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
    os.environ["NODE_RANK"], os.environ["LOCAL_RANK"] = str(environment.node_rank()), "0"
    os.environ[_PARENT] = str(os.getpid())
    children = [
        subprocess.Popen(command, env={**os.environ, "LOCAL_RANK": str(rank)}) for rank in range(1, strategy.num_processes)
    ]
    atexit.register(_end, children)
    Thread(target=_watch, args=(children, met), daemon=True, name="panokit-start").start()
    return met


def _command() -> list[str]:
    """The command that started this process. The other processes run it too.

    Raises:
        SettingError: the program is no file, as with `python -c`.
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec:
        return [sys.executable, "-m", spec.name, *sys.argv[1:]]
    if not os.path.isfile(sys.argv[0]):
        raise SettingError(
            f"several devices run the same program once each, and {sys.argv[0]!r} is no file: write a script, or run "
            "`panokit generate --devices N`"
        )
    return [sys.executable, os.path.abspath(sys.argv[0]), *sys.argv[1:]]


def _watch(children: Sequence[subprocess.Popen[bytes]], met: Event) -> None:
    """End this process if another one ends before all have met. It would wait for a long time."""
    while not met.wait(0.2):
        for rank, child in enumerate(children, start=1):
            # An error that all ranks have is raised here too, in a moment, and says more: wait for it first.
            if child.poll() is not None and not met.wait(_GRACE):
                message = f"panokit: rank {rank} has ended, with status {child.returncode}, at the start"
                print(message, file=sys.stderr, flush=True)
                for other in children:
                    other.kill()
                os._exit(1)


def _watch_parent(parent: int, met: Event) -> None:
    """End this process if its parent ends before all have met."""
    while not met.wait(0.2):
        if os.getppid() != parent:
            os._exit(1)


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait for the child processes to end, and kill those that do not."""
    deadline = time.monotonic() + _GRACE
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout=max(0.0, deadline - time.monotonic()))
        child.kill()
