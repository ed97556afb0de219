"""A crew: the actors that make one picture together, side by side on the devices of a placement group."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal, final

from panokit.cluster.member import Member, News
from panokit.errors import SettingError, reason_of
from panokit.wording import counted

_PAUSE = 0.5
"""The most seconds in which a request to end is not noticed."""
_LATE = 15.0
"""Seconds of waiting for devices after which people want to know."""


class LostError(Exception):
    """An actor of a crew has ended, or cannot be reached. Another one can take its place."""


class EndedError(Exception):
    """The crew is not needed any more."""


@final
@dataclass(frozen=True)
class Start:
    """How crews are started, all of them alike.

    Attributes:
        size: the actors of a crew.
        kind: the device of each, as Ray names it.
        runtime: arguments of a `Runtime`.
        threads: threads of the CPU for each actor.
        out: the folder of pictures.
        mark: the name of a file in it, which each actor must see.
    """

    size: int
    kind: Literal["GPU", "CPU"]
    runtime: Mapping[str, Any]
    threads: int
    out: str
    mark: str


@final
class Crew:
    """Actors that make one picture together.

    Args:
        start: how they are started.
        ends: whether the crew is to end. It is asked often, also while the crew waits for devices.
        hint: takes a line that people want to know.
    """

    def __init__(self, start: Start, ends: Callable[[], bool], hint: Callable[[str], None]) -> None:
        self._start, self._ends, self._hint = start, ends, hint
        self._group: Any = None
        self._members: list[Any] = []
        self._machines: list[str] = []
        self._abandoned = False

    def start(self) -> None:
        """Start the actors, unless they run. It waits until the cluster has devices for them.

        Raises:
            SettingError: a machine lacks panokit, or does not see the folder of pictures.
            LostError: an actor ended at its start.
            EndedError: the crew is not needed any more.
        """
        if self._members:
            return
        import ray
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        device = {"CPU": 1.0} if self._start.kind == "CPU" else {"CPU": 1.0, "GPU": 1.0}
        self._group = placement_group([device] * self._start.size, strategy="PACK")
        self._await_devices()
        places = [
            PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=k) for k in range(self._start.size)
        ]
        look, folder = ray.remote(num_cpus=0)(looker()), os.getcwd()
        for place in places:
            options = {"scheduling_strategy": place, "max_retries": 0}
            wanted = version("panokit"), folder, self._start.out, self._start.mark
            (problem,) = self._got(look.options(**options).remote(*wanted))
            if problem:
                raise SettingError(problem)
        actor: Any = ray.remote(num_cpus=1, num_gpus=device.get("GPU", 0), max_concurrency=4, max_restarts=0)(Member)
        self._members = [actor.options(scheduling_strategy=place).remote(folder, self._start.threads) for place in places]
        (place,) = self._got(self._members[0].place.remote())
        ranks = enumerate(self._members)
        entered = [member.enter.remote(k, len(self._members), place, self._start.runtime) for k, member in ranks]
        self._machines = self._got(*entered)

    def _await_devices(self) -> None:
        begun, hinted = time.monotonic(), False
        while not self._group.wait(1):
            if self._ends():
                raise EndedError
            if not hinted and time.monotonic() - begun > _LATE:
                hinted = True
                count = counted(self._start.size, self._start.kind)
                self._hint(f"actors wait for {count}: others use the cluster, or machines of it are lost")

    def work(self, what: Literal["plan", "make"], *args: Any, tell: Callable[[News], None] = lambda _: None) -> News:
        """Let all actors do one piece of work together.

        Args:
            what: what `Member.work` takes.
            args: further arguments of it.
            tell: takes what the first actor tells in between.

        Returns:
            How it ended.

        Raises:
            LostError: an actor ended.
            EndedError: the crew is not needed any more.
        """
        works, asked = [member.work.remote(what, *args) for member in self._members], False
        while True:
            if self._ends() and not asked:
                if what == "plan":
                    raise EndedError
                asked = True
                self._members[0].stop.remote()
            (news,) = self._got(self._members[0].news.remote(), hurried=False)
            for item in news:
                if item.kind == "lost":
                    lost = str(item.value).partition("; the same command")[0]  # which needs not be given again
                    raise LostError(f"an actor on {' or '.join(dict.fromkeys(self._machines))} has ended: {lost}")
                if item.last:
                    return item
                tell(item)
            if not news:
                self._require_alive(works)

    def _require_alive(self, works: Sequence[Any]) -> None:
        """Check that no work has failed without news of it."""
        import ray

        ended, _ = ray.wait([*works], num_returns=len(works), timeout=0)
        self._got(*ended)

    def _got(self, *references: Any, hurried: bool = True) -> list[Any]:
        """The values of references.

        Args:
            references: of tasks.
            hurried: whether a request to end ends the waiting.
        """
        import ray
        from ray.exceptions import RayError

        left = [*references]
        try:
            while left:
                _, left = ray.wait(left, num_returns=len(left), timeout=_PAUSE)
                if self._abandoned or (hurried and self._ends()):
                    raise EndedError
            return [*ray.get([*references])]
        except RayError as cause:
            machines = " or ".join(dict.fromkeys(self._machines))
            where = f"an actor on {machines} has ended" if machines else "an actor has ended at its start"
            raise LostError(f"{where}: {_why(cause)}") from cause

    def abandon(self) -> None:
        """Ask Ray nothing any more: its processes have ended. It would wait for them, or start others."""
        self._abandoned = True

    def end(self) -> None:
        """End the actors at once, and give their devices back."""
        if self._group is None or self._abandoned:
            return
        import ray
        from ray.util.placement_group import remove_placement_group

        with suppress(Exception):  # they have ended, or the cluster has
            for member in self._members:
                ray.kill(member)
        with suppress(Exception):
            remove_placement_group(self._group)
        self._group, self._members, self._machines = None, [], []


def _why(error: Exception) -> str:
    """Why an actor has ended: of all that Ray says, the first sentence of what it calls a detail."""
    reason = reason_of(error, 2000)
    detail = reason.partition("Worker exit detail: ")[2]
    return f"{detail.partition('. ')[0]}"[:200] if detail else reason[:300]


def looker() -> Callable[[str, str, str, str], str]:
    """A function that looks, on another machine, for what actors need.

    It travels whole, because panokit may be missing there.
    """

    def look(wanted: str, folder: str, out: str, mark: str) -> str:
        import os
        import socket
        from importlib.metadata import PackageNotFoundError, version
        from pathlib import Path

        machine = f"the machine {socket.gethostname()} of the cluster"
        try:
            there = version("panokit")
        except PackageNotFoundError:
            return f"{machine} has no panokit: install panokit {wanted} there, in the environment that runs Ray"
        if there != wanted:
            return f"{machine} has panokit {there}, and this one {wanted}: install the same version on all machines"
        before = os.getcwd()
        try:
            if os.path.isdir(folder):
                os.chdir(folder)
            path = Path(out).absolute()
            if not (path / mark).exists():
                return f"{machine} does not see the files in {path}: choose a folder for --out that all machines share"
            mine = path / f"{mark}-{os.getpid()}"
            try:
                mine.touch()
                mine.unlink()
            except OSError as error:
                return f"{machine} cannot write to {path} ({error.strerror}): allow it to, or choose another folder for --out"
        finally:
            os.chdir(before)
        return ""

    return look


def threads_for(actors: int) -> int:
    """Threads of the CPU for each of several actors: as many as processes that panokit starts itself would have."""
    set_by_user = os.environ.get("OMP_NUM_THREADS", "")
    if set_by_user.isdecimal() and int(set_by_user):
        return int(set_by_user)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // actors)
