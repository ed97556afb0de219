"""What ranks do in the tests of sharding: each function runs in every process, started by `panokit.testing.processes`."""

import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from panokit import (
    DiffusersScheduler,
    Guidance,
    Runtime,
    Sampler,
    checkpoint,
    decoding,
    files,
    painting,
    panorama,
)
from panokit.checkpoint import Checkpoint
from panokit.cli import main
from panokit.errors import OutputError, PanokitError, SettingError
from panokit.run import Run
from panokit.runtime import group
from panokit.testing.tiny import tiny_model
from panokit_msd import HeadStart, MSDGuidance, MSDPaper
from panokit_multidiffusion import MultiDiffusion
from panokit_syncdiffusion import SyncDiffusion


def runtime(**options: Any) -> Runtime:
    return Runtime(accelerator="cpu", micro_batch=2, **options)


def guidances(name: str) -> list[Guidance]:
    sync = SyncDiffusion(metric=lambda a, b: (a - b).square().flatten(1).sum(1), weight=1.0)
    return {
        "none": [],
        "sync": [sync],
        "msd": [MSDGuidance(levels=2, head_start=0.25)],
        "msd3": [MSDGuidance(levels=3, until=1.0)],
        "paper": [MSDPaper(levels=2)],
        "head_start": [HeadStart(0.5), sync],
        "both": [sync, MSDGuidance(levels=2)],
    }[name]


def latents(path: str, cases: list[tuple[str, str, str]]) -> None:
    """The latents of all cases, (guidance, scheduler, wrap), as each rank has them, in PATH.RANK."""
    shared = runtime()
    made: list[Tensor] = []
    for name, scheduler, wrap in cases:
        sampler = Sampler(
            tiny_model(),
            scheduler=DiffusersScheduler(scheduler),
            fuser=MultiDiffusion(),
            guidances=guidances(name),
            runtime=shared,
        )
        size = {"height": 64, "width": 64} if name == "msd3" else {"height": 32, "width": 64}
        for run in sampler.stream("a lake", **size, steps=2, seed=3, wrap=wrap or False):  # noqa: B007 - only the last counts
            pass
        made.append(run.canvas)
    torch.save(made, f"{path}.{shared.global_rank}")


def outcome(work: Callable[[], Any]) -> int:
    """Print what came of it, for the test to read."""
    try:
        print("done", work(), flush=True)
    except PanokitError as error:
        print(type(error).__name__, error, flush=True)
        return 1
    except KeyboardInterrupt as interrupt:
        print("KeyboardInterrupt", interrupt, flush=True)
        return 130
    return 0


def mapped(kind: str, timeout: float = 60.0, rank: int = 1) -> int:
    """A map of 8 windows in which one rank does something out of turn, and another after it."""
    shared = runtime(timeout=timeout)
    shared.launch()

    def fn(index: list[int]) -> tuple[Tensor]:
        if shared.global_rank == rank and 2 * rank in index:
            if kind == "raises":
                raise ZeroDivisionError("no light")
            if kind == "refuses":
                raise SettingError("weight is -1")
            if kind == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "hangs":
                time.sleep(600)
            if kind == "stops":
                os.kill(os.getpid(), signal.SIGSTOP)
        if shared.global_rank != 1 and kind == "dies while others compute":
            time.sleep(600)
        if shared.global_rank == 1 and kind == "dies while others compute":
            os.kill(os.getpid(), signal.SIGKILL)
        return (torch.tensor(index, dtype=torch.float32),)

    status = outcome(lambda: shared.map(fn, 8, [()])[0].tolist())
    if kind in ("raises", "refuses"):  # the group has lived
        outcome(lambda: shared.map(lambda index: (torch.tensor(index, dtype=torch.float32),), 3, [()])[0].tolist())
    return status


def paused(folder: str) -> int:
    """A map in which rank 0 waits for rank 1, for longer than the test stops both."""
    shared = runtime(timeout=2.0)
    shared.launch()

    def fn(index: list[int]) -> tuple[Tensor]:
        if shared.global_rank == 1 and 2 in index:
            Path(folder, "computes").touch()
            for _ in range(14):  # what is left of one sleep would be over after the pause
                time.sleep(0.05)
        return (torch.tensor(index, dtype=torch.float32),)

    return outcome(lambda: shared.map(fn, 8, [()])[0].tolist())


def failing_beside_one_that_hangs() -> int:
    """Rank 0 fails in a window, inside two blocks that agree, and rank 1 never comes to hear of it."""
    shared = runtime(timeout=1.5)
    shared.launch()

    def fn(index: list[int]) -> tuple[Tensor]:
        if shared.global_rank == 0:
            raise RuntimeError("no light")
        time.sleep(600)
        return (torch.tensor(index, dtype=torch.float32),)

    def nested() -> None:
        with shared.agreeing(), shared.agreeing():
            shared.map(fn, 8, [()])

    return outcome(nested)


def different() -> int:
    """Ranks that are about to make different pictures."""
    shared = runtime()
    sampler = Sampler(tiny_model(), runtime=shared)
    return outcome(lambda: sampler.begin("a lake", height=16, width=32, steps=2 + shared.global_rank, seed=shared.global_rank))


def written() -> int:
    """What the first rank alone does, and fails at."""
    shared = runtime()
    shared.launch()
    outcome(lambda: shared.broadcast(lambda: shared.global_rank))

    def full() -> None:
        raise OutputError("cannot write a.png: No space left on device")

    return outcome(lambda: shared.broadcast(full))


def slow() -> int:
    """Work of one rank that takes longer than the timeout, wherever a rank may do some, and a window that hangs after it."""
    shared = runtime(timeout=0.7)
    shared.launch()

    def work(rank: int) -> int:
        time.sleep(1.1 * (shared.global_rank == rank))
        return shared.global_rank

    def inside() -> None:
        with shared.working():
            shared.map(lambda index: (torch.full((len(index),), float(work(1 if 2 in index else -1))),), 8, [()])

    outcome(lambda: shared.broadcast(lambda: work(0)))
    outcome(lambda: shared.barrier(lambda: work(1)) - shared.global_rank)
    outcome(lambda: shared.ranks.gather(lambda: work(1)))
    return outcome(inside)


def replicas(path: str, prompts: list[str]) -> None:
    """Several prompts, as each rank has their panoramas."""
    shared = runtime()
    made = Sampler(tiny_model(), runtime=shared)(prompts, height=16, width=32, steps=2)
    torch.save([panorama.latents for panorama in made], f"{path}.{shared.global_rank}")


def failing_replica() -> int:
    """Of three pieces of work on two ranks the second fails."""
    shared = runtime()
    shared.launch()

    def work(k: int) -> int:
        if k == 1:
            raise SettingError("the second cannot be")
        return k

    return outcome(lambda: shared.replicas(work, 3))


def hanging_replica() -> int:
    """Of two pieces of work on two ranks the second is never done."""
    shared = runtime(timeout=1.5)
    shared.launch()
    return outcome(lambda: shared.replicas(lambda k: time.sleep(600 * k), 2))


def owing(when: str) -> int:
    """A callback of rank 1 alone raises after the first step, or at the end."""
    shared = runtime()

    class Fails:
        def on_step_end(self, run: Run) -> None:
            if shared.global_rank == 1 and when == "step" and run.level.step == 1:
                raise OutputError("cannot write a.png: No space left on device")

        def on_run_end(self) -> None:
            if shared.global_rank == 1 and when == "end":
                raise ZeroDivisionError("no steps")

    sampler = Sampler(tiny_model(), runtime=shared, callbacks=[Fails()])
    status = outcome(lambda: sampler("a lake", height=16, width=32, steps=2))
    outcome(lambda: Sampler(tiny_model(), runtime=shared)("a lake", height=16, width=32, steps=2).image.size)
    return status


def decoded(path: str, wrap: bool) -> None:
    """A canvas that is decoded in tiles."""
    shared = runtime()
    shared.launch()
    codec = tiny_model().codec
    decoding.WHOLE, decoding.TILE = 64, 12  # in this process alone
    canvas = torch.randn(4, 20, 60, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.save(decoding.decode(codec, canvas, (False, wrap), shared), f"{path}.{shared.global_rank}")


def stopped(folder: str) -> int:
    """A run of which rank 1 is asked to stop after its second step."""
    shared = runtime()

    class Asks:
        def on_step_end(self, run: Run) -> None:
            if shared.global_rank == shared.world_size - 1 and run.level.step == 2:
                run.stop()

    return run_to_end(shared, folder, [Asks()], every=1000)


def killed(folder: str, rank: int, step: int, every: int, resume: bool) -> int:
    """A run of which one rank kills itself after a step, or after step -STEP of the smaller canvas. Rank -1 is none."""
    shared = runtime()

    class Dies:
        def on_step_end(self, run: Run) -> None:
            if shared.global_rank == rank and run.level.step == step:
                os.kill(os.getpid(), signal.SIGKILL)

        def on_inner_step_end(self, run: Run) -> None:
            assert run.inner
            if shared.global_rank == rank and run.inner.level.step == -step:
                os.kill(os.getpid(), signal.SIGKILL)

    return run_to_end(shared, folder, [Dies()], every=every, resume=resume)


def run_to_end(shared: Runtime, folder: str, callbacks: list[object], every: int, resume: bool = False) -> int:
    path = f"{folder}/run.checkpoint"
    sampler = Sampler(
        tiny_model(),
        scheduler=DiffusersScheduler("dpm++_2m_sde"),
        guidances=[MSDGuidance(levels=2, until=0.5)],
        runtime=shared,
        callbacks=[Checkpoint(path, every, resume=path if resume else None), *callbacks],
    )
    steps: list[int] = []

    def run() -> str:
        for run in sampler.stream("a lake", height=32, width=48, steps=6, seed=1):
            steps.append(run.level.step)
        torch.save(run.canvas, f"{folder}/latents.{shared.global_rank}")
        return f"from step {steps[0]}"

    return outcome(run)


def told(kind: str) -> int:
    """What is said of how windows and ranks go together."""
    warnings.simplefilter("always")
    shared = Runtime(accelerator="cpu", micro_batch=8 if kind == "few" else 5)
    width = 32 if kind == "few" else 96
    sampler = Sampler(tiny_model(), runtime=shared)
    for _ in range(2):
        sampler.begin("a lake", height=16, width=width, steps=2)
    return 0


def command(words: list[str]) -> int:
    """The command line."""
    sys.path[:0] = filter(None, [os.environ.get("PYTHONPATH")])
    return main(words)


def command_of_each(*words: list[str]) -> int:
    """The command line, with words of its own on each rank."""
    return main(words[int(os.environ["RANK"])])


def command_on_a_slow_disk(words: list[str], rank: int, seconds: float) -> int:
    """The same; one rank writes each file so slowly."""
    written_aside = files.written_aside

    @contextmanager
    def slowly(path: Path) -> Iterator[Path]:
        with written_aside(path) as aside:
            yield aside
            time.sleep(seconds if int(os.environ["RANK"]) == rank else 0.0)

    for module in (checkpoint, files, painting, panorama):
        module.written_aside = slowly  # in this process alone
    return main(words)


def command_that_dies(words: list[str], step: int) -> int:
    """The same; the last rank is killed in a step."""
    return struck(words, step, signal.SIGKILL)


def command_that_is_terminated(words: list[str], step: int) -> int:
    """The same; the last rank is asked to end."""
    return struck(words, step, signal.SIGTERM)


def struck(words: list[str], step: int, what: signal.Signals) -> int:
    proceed = Run.step

    def strikes(run: Run) -> None:
        proceed(run)
        if run.level.step == step and run.runtime.global_rank == run.runtime.world_size - 1:
            os.kill(os.getpid(), what)

    Run.step = strikes  # in this process alone
    return main(words)


def killed_in_write(folder: str, point: str, step: int) -> int:
    """A run whose first rank is killed while it writes a step's checkpoint: half of it, all of it, or between renamings."""
    shared = runtime()
    calls = {"write": 0, "replace": 0}
    step += 5  # those of the smaller canvas that is painted first
    write, replace = Path.write_bytes, Path.replace

    def writes(path: Path, data: bytes) -> int:
        calls["write"] += 1
        if calls["write"] == step and point == "half":
            write(path, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return write(path, data)

    def replaces(path: Path, target: Path) -> Path:
        calls["replace"] += 1
        fatal = {"whole": 2 * step - 2, "between": 2 * step - 1}.get(point)  # the first checkpoint is renamed once
        if calls["replace"] == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(path, target)

    Path.write_bytes, Path.replace = writes, replaces  # in this process alone
    return run_to_end(shared, folder, [], every=1)


def collectives(path: str, name: str, steps: int, width: int = 64) -> None:
    """How many collectives each step of a run takes, and how many bytes of them this rank receives."""
    shared = runtime()
    sampler = Sampler(tiny_model(), guidances=guidances(name), runtime=shared)
    run = sampler.begin("a lake", height=32, width=width, steps=steps)
    taken: list[int] = []
    gather = group._all_gather

    def counted(received: Tensor, sent: Tensor) -> None:
        taken.append(received.numel() * received.element_size())
        gather(received, sent)

    group._all_gather = counted
    told: list[list[int]] = []
    while not run.done:
        run.step()
        told.append(taken[:])
        taken.clear()
    torch.save(told, f"{path}.{shared.global_rank}")


def timed(path: str, steps: int) -> None:
    """The CPU time of a run of 28 windows."""
    shared = runtime()
    sampler = Sampler("landscapes", runtime=shared)
    run = sampler.begin("a lake", height=128, width=128 + 27 * 16, stride=16, steps=steps)
    run.step()
    start = time.process_time()
    while not run.done:
        run.step()
    torch.save(time.process_time() - start, f"{path}.{shared.global_rank}")
