"""The launcher of this process, such as torchrun, srun or panokit itself: what its environment variables say, and its end."""

import json
import os
import re
import signal
import sys
import time
from functools import cache
from threading import Event, Thread

from panokit.errors import LauncherError

PARENT = "PANOKIT_PARENT"
"""The environment variable with the process id of the rank that started this one."""

ELASTIC = "TORCHELASTIC_RUN_ID"
"""The environment variable by which torch knows torchrun's processes."""

_OWNER = "PANOKIT_LAUNCHED"
"""The environment variable with the process id of a rank, and with what its launcher said to it."""

_SIZE_OF = {
    "RANK": "WORLD_SIZE",
    "LOCAL_RANK": "LOCAL_WORLD_SIZE",
    "SLURM_PROCID": "SLURM_NTASKS",
    "SLURM_NODEID": "SLURM_NNODES",
}
_RANKS = (*_SIZE_OF, "GROUP_RANK", "NODE_RANK", "SLURM_LOCALID")
_SIZES = (*_SIZE_OF.values(), "SLURM_NTASKS_PER_NODE")
_NAMES = (
    *_RANKS,
    *_SIZES,
    *("MASTER_ADDR", "MASTER_PORT", ELASTIC, "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT"),
    *("SLURM_STEP_ID", PARENT),
)
"""The variables that make a process a rank."""

met = Event()
"""Set when this process has met the other ranks: the lifelines watch over them from then on."""


def rank() -> int:
    """The rank of this process, for messages; 0 if its environment is damaged."""
    return next((int(text) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if (text := _digits(name))), 0)


def local_rank() -> int:
    """The rank of this process on its machine, for messages; 0 if its environment is damaged."""
    return int(_digits("LOCAL_RANK") or 0)


def is_rank() -> bool:
    """Whether this process was started as a rank, so that panokit starts no others."""
    return "LOCAL_RANK" in os.environ or ELASTIC in os.environ or _on_slurm()


def launched() -> tuple[int, int] | None:
    """Processes on each machine, and machines, as torchrun or SLURM has started them; None without these launchers.

    Raises:
        LauncherError: the variables are damaged or incomplete, or nothing has started the tasks of a SLURM job.
    """
    _check_numbers()
    if ELASTIC in os.environ:
        _require(ELASTIC, "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return local, max(1, int(os.environ["WORLD_SIZE"]) // local)
    if not _on_slurm():
        return None
    tasks, nodes = int(os.environ["SLURM_NTASKS"]), int(os.environ.get("SLURM_NNODES", "1"))
    if tasks > 1 and "SLURM_STEP_ID" not in os.environ and os.environ.get("SLURM_PROCID", "0") == "0":
        raise LauncherError(
            f"SLURM gives this job {tasks} tasks, and only srun starts them: write `srun panokit ...` in the job's script, or "
            "ask for one task, --ntasks=1"
        )
    if tasks > 1:
        _require("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")
    return tasks // nodes, nodes


def become(rank: int, size: int, address: str, port: int) -> None:
    """Make this process a rank, as torchrun would on a machine with one device, whatever its own launcher said.

    Args:
        rank: the number of this rank.
        size: the number of ranks. One rank alone needs no launcher.
        address: the host of rank 0.
        port: the port of its key-value store.
    """
    for name in _NAMES:
        os.environ.pop(name, None)
    if size > 1:
        numbers = {"RANK": rank, "GROUP_RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": 1}
        os.environ.update({name: str(number) for name, number in numbers.items()})
        os.environ.update({"MASTER_ADDR": address, "MASTER_PORT": str(port), ELASTIC: "panokit"})


def mark() -> None:
    """Note that the launcher's variables are for this process, and not for the programs that it starts."""
    os.environ[_OWNER] = json.dumps([os.getpid(), _variables()])


def forget() -> None:
    """Drop the variables that the launcher of another process set, which started this one: they make no rank of it.

    If one of them differs from what that process had, a launcher has started this process since, and they are its own.
    """
    try:
        owner, kept = json.loads(os.environ.get(_OWNER, ""))
    except (ValueError, TypeError):
        return
    if owner != os.getpid():
        del os.environ[_OWNER]
        if kept == _variables():
            for name in kept:
                del os.environ[name]


@cache
def watch() -> None:
    """End this process with the one that started it: with the rank that did until all have met, and with torchrun always."""
    if PARENT in os.environ:
        Thread(target=_end_with_parent, args=(os.environ[PARENT],), daemon=True, name="panokit-start").start()
    elif ELASTIC in os.environ:
        Thread(target=_end_with_torchrun, args=(os.getppid(),), daemon=True, name="panokit-parent").start()


def end_parent() -> None:
    """Kill the rank that started this process, if there is one. It hangs."""
    if os.environ.get(PARENT) == str(os.getppid()):
        os.kill(os.getppid(), getattr(signal, "SIGKILL", signal.SIGTERM))  # Windows has one of them


def _end_with_parent(parent: str) -> None:
    while str(os.getppid()) == parent:
        if met.wait(0.2):
            return
    if local_rank() == 1:  # one of them is enough
        print("panokit: the process that started the others has ended, at the start", file=sys.stderr, flush=True)
    os._exit(1)


def _end_with_torchrun(agent: int) -> None:
    """A torchrun that is killed cannot end its ranks. They would keep the devices until their picture is done."""
    while os.getppid() == agent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def _variables() -> dict[str, str]:
    return {name: os.environ[name] for name in _NAMES if name in os.environ}


def _digits(name: str) -> str | None:
    """The value of a variable, if it is a whole number of 0 or more."""
    match = re.fullmatch(r"[0-9]{1,9}", os.environ.get(name, ""))
    return match and match[0]


def _on_slurm() -> bool:
    """Whether SLURM started this process as a task, as Fabric sees it: not in a shell that SLURM gave to the user."""
    return "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def _check_numbers() -> None:
    for names, least in ((_RANKS, 0), (_SIZES, 1), (("MASTER_PORT",), 1)):
        for name in names:
            if name in os.environ and int(_digits(name) or -1) < least:
                raise LauncherError(
                    f"the environment variable {name} is {os.environ[name]!r:.80}: it must be a whole number of {least} or "
                    f"more, as launchers set it; start the processes with torchrun or srun, or unset {name}"
                )
    if int(os.environ.get("MASTER_PORT", "1")) >= 1 << 16:
        raise LauncherError(f"the environment variable MASTER_PORT is {os.environ['MASTER_PORT']}: ports go up to 65535")
    for name, size in _SIZE_OF.items():
        if name in os.environ and size in os.environ and int(os.environ[name]) >= int(os.environ[size]):
            raise LauncherError(
                f"the environment variable {name} is {os.environ[name]}, and {size} is {os.environ[size]}: ranks go from 0 to "
                "one below their number; start the processes with torchrun or srun, or unset both"
            )


def _require(named: str, *names: str) -> None:
    for name in names:
        if name not in os.environ:
            raise LauncherError(
                f"the environment variable {named} is set and {name} is not: start the processes with torchrun or srun, or "
                f"unset {named}"
            )
