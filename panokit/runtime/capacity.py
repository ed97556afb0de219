"""Capacity: how many processes a machine holds. More of them would only take it down."""

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, final

import psutil

from panokit.errors import SettingError
from panokit.wording import counted

_PER_CORE = 2
"""Processes on the CPU that may share a core. More than one makes nothing faster; two let small machines try what large do."""


@final
class Machine(NamedTuple):
    """What a machine has for the processes of a run.

    Attributes:
        cores: cores that this process may use.
        memory: bytes that are free.
        process: bytes that this process takes so far, besides the files that processes share.
    """

    cores: int
    memory: int
    process: int

    @classmethod
    def this(cls) -> "Machine":
        """The machine that this process runs on, within the limits of its control group."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        memory = psutil.Process().memory_info()
        free = min([psutil.virtual_memory().available, *_left_of_limits()])
        return cls(cores, free, memory.rss - getattr(memory, "shared", 0))  # macOS does not count what is shared

    def require(self, processes: int, weights: int, *, on_cpu: bool) -> None:
        """Check that the machine holds so many processes, of which this is the first.

        Args:
            processes: the number of processes.
            weights: bytes of the weights that each of them is going to read; 0 if that is not known.
            on_cpu: whether they compute on the CPU, and keep their weights in its memory.

        Raises:
            SettingError: it does not. The message says how many it holds.
        """
        each, own = self.process, 0
        if on_cpu:
            each, own = each + weights, weights
        by_memory = 1 + max(0, self.memory - own) // max(each, 1)
        by_cores = _PER_CORE * self.cores if on_cpu else processes
        most = max(1, min(by_memory, by_cores))
        if processes > most:
            why = (
                f"its {counted(self.cores, 'core')} may have {by_cores} processes"
                if by_cores <= by_memory
                else (f"each takes about {each / 1e9:.1f} GB of memory, and {self.memory / 1e9:.1f} GB are free")
            )
            raise SettingError(
                f"{processes} devices are more than this machine holds, {most}: {why}; set devices to {most} at most"
            )


def _left_of_limits(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Bytes that the control groups of this process leave free, of version 2 or 1; none on other systems than Linux.

    Args:
        groups: the file that names the groups.
        root: the folder of all groups.
    """
    left: list[int] = []
    with suppress(OSError):
        for line in groups.read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers in ("", "memory"):
                names = ("max", "current") if not controllers else ("limit_in_bytes", "usage_in_bytes")
                top = root / controllers
                place = top / group.lstrip("/")
                for folder in (place, *place.parents):
                    with suppress(OSError, ValueError):  # there is none, it is "max", or only the host sees it
                        limit, used = (int((folder / f"memory.{name}").read_text()) for name in names)
                        left.append(max(0, limit - used + _cached(folder)))
                    if folder == top:
                        break
    return left


def _cached(folder: Path) -> int:
    """Bytes of files that a control group keeps in memory, and gives back when memory is needed."""
    lines = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return int(lines.get("total_inactive_file", lines.get("inactive_file", 0)))
