"""Launch: Fabric as panokit needs it, and the processes of the other ranks, with a launcher or without one."""

import atexit
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from threading import Thread
from typing import TYPE_CHECKING, Any

from panokit import launcher
from panokit.errors import LauncherError, SettingError, reason_of
from panokit.runtime.capacity import Machine
from panokit.settings import Precision
from panokit.wording import counted

if TYPE_CHECKING:
    from lightning.fabric import Fabric

_GRACE = 3.0
"""Seconds in which processes may end by themselves, before they are killed."""

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
        SettingError: Fabric cannot use these devices, needs processes in a notebook, or a launcher's environment is damaged.
    """
    launcher.forget()
    launched = launcher.launched()  # first, because Lightning reads the same variables when it is imported
    from lightning.fabric import Fabric
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    if launched and devices in (1, "auto") and num_nodes == 1:
        devices, num_nodes = launched
    if launched and (devices, num_nodes) != launched and launcher.ELASTIC not in os.environ:  # Fabric asks torchrun itself
        raise LauncherError(
            f"SLURM has started {counted(launched[0], 'task')} on each machine of {launched[1]}, and devices is {devices} on "
            f"{num_nodes}: ask for --nodes={num_nodes} --ntasks-per-node={devices}, and write `srun panokit ...`"
        )
    options: dict[str, Any] = {"accelerator": accelerator, "num_nodes": num_nodes, "precision": precision}
    try:
        if devices == "auto":
            devices = Fabric(devices=devices, **options).world_size // num_nodes
        if (devices, num_nodes) == (1, 1) or strategy not in ("auto", "ddp") or os.environ.get("LT_CLI_USED", "0") != "0":
            return Fabric(devices=devices, strategy=strategy, **options)
        if not launched and "LOCAL_RANK" in os.environ:
            _require_place(devices)
        if hasattr(sys, "ps1") and not launched:
            raise SettingError(NOTEBOOK.format(devices))
        from panokit.runtime.strategy import WindowStrategy

        return Fabric(devices=devices, strategy=WindowStrategy(timedelta(seconds=timeout)), **options)
    except SettingError:
        raise
    except (RuntimeError, ValueError, TypeError, MisconfigurationException) as cause:  # of devices, launchers, accelerators
        raise SettingError(
            f"devices={devices} ({accelerator}) on {counted(num_nodes, 'machine')} cannot be used: {reason_of(cause, 400)}"
        ) from cause


def start(strategy: Any, weights: Callable[[], int]) -> None:
    """Start the other processes of this machine, unless a launcher has. They end with this one.

    Each process runs the command of this one, and reads its rank from the environment, as with Fabric. If one of them ends
    before all have met, Fabric would kill this process without a message; panokit says which one ended.

    Args:
        strategy: Fabric's strategy. Another one than `WindowStrategy` starts its processes itself.
        weights: returns the bytes of the weights that each process is going to read, about.

    Raises:
        SettingError: this program cannot be started again, or the machine does not hold so many processes.
    """
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment

    from panokit.runtime.strategy import WindowStrategy

    environment: Any = getattr(strategy, "cluster_environment", None)
    if not isinstance(environment, LightningEnvironment) or environment.creates_processes_externally:
        return
    Machine.this().require(strategy.num_processes, weights(), on_cpu=strategy.root_device.type == "cpu")
    if not isinstance(strategy, WindowStrategy):  # a Fabric object of the user's own, which starts them itself
        return
    command = _command()
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
    os.environ["NODE_RANK"], os.environ["LOCAL_RANK"] = str(environment.node_rank()), "0"
    common = {**os.environ, launcher.PARENT: str(os.getpid())}
    children: list[subprocess.Popen[bytes]] = []
    atexit.register(_end, children)
    for rank in range(1, strategy.num_processes):
        children.append(subprocess.Popen(command, env={**common, "LOCAL_RANK": str(rank)}))
    Thread(target=_watch, args=(children,), daemon=True, name="panokit-start").start()


def _require_place(processes: int | str) -> None:
    """Check what the user, or a launcher that panokit does not know, says of this rank's place among the others."""
    if launcher.local_rank() >= int(processes):
        raise LauncherError(
            f"the environment variable LOCAL_RANK is {launcher.local_rank()}, and there are {processes} devices on each "
            "machine: unset it, and panokit starts the processes, or ask for more devices"
        )
    if "MASTER_PORT" not in os.environ:
        raise LauncherError(
            "the environment variable LOCAL_RANK is set and MASTER_PORT is not, so this rank cannot meet the others: unset "
            "LOCAL_RANK, and panokit starts the processes, or start them with torchrun"
        )


def _command() -> list[str]:
    """The command that started this process. The other processes run it too.

    Raises:
        SettingError: the program is no file: it comes from `python -c`, a terminal, a pipe or a notebook.
    """
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec and spec.name != "__main__":
        return [sys.executable, "-m", spec.name, *sys.argv[1:]]
    if sys.argv[0] in ("", "-", "-c") or not (spec or file) or not os.path.exists(sys.argv[0]):
        raise SettingError(
            f"several devices run the same program once each, and {sys.argv[0]!r} is no file: write a script, or run "
            "`panokit generate --devices N`"
        )
    return [sys.executable, os.path.abspath(sys.argv[0]), *sys.argv[1:]]


def _watch(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """End this process if another one ends before all have met. It would wait for a long time."""
    while not launcher.met.wait(0.2):
        for rank, child in enumerate(children, start=1):
            # An error that all ranks have is raised here too, in a moment, and says more: wait for it first.
            if child.poll() is not None and not launcher.met.wait(_GRACE):
                message = f"panokit: rank {rank} has ended, with status {child.returncode}, at the start"
                if child.returncode == 2:
                    message += ": it found a mistake that this process did not, perhaps in a file that is a pipe or was edited"
                print(message, file=sys.stderr, flush=True)
                for other in children:
                    other.kill()
                os._exit(1)


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait for the child processes to end, and kill those that do not. Those that wait for this one at the start are told."""
    deadline = time.monotonic() + _GRACE
    for child in children:
        if not launcher.met.is_set():
            child.terminate()
    launcher.met.set()
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout=max(0.0, deadline - time.monotonic()))
        child.kill()
