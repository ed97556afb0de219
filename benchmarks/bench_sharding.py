"""What ranks share, what it costs, and the failures that a run survives.

Two ranks must do at least 0.92 of twice the work of one, with the same bits. A checkpoint must cost at most a hundredth of a
step. Killed runs must continue with the same bits: while measuring, 20 ranks and 20 writes are killed.
"""

import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from measuring import Bench, seconds
from panokit import DiffusersScheduler, Runtime, Sampler
from panokit.checkpoint import Checkpoint
from panokit.runtime.sharding import better, busiest
from panokit.testing.processes import Processes
from sides import null_model

pytestmark = pytest.mark.xdist_group("ranks")  # with the tests of groups of processes: they fork one server of processes
SCRIPT = Path(__file__).parents[1] / "tests" / "runtime" / "ranks.py"


def made(folder: Path, size: int, function: str, *args: object) -> list[Any]:
    """What a function of `ranks.py` saves on each rank."""
    path = folder / f"{function} {size}"
    started = Processes(size, SCRIPT, function, (str(path), *args), folder)
    assert started.wait(timeout=300.0) == [0] * size, started.outputs()
    return [torch.load(f"{path}.{rank}", weights_only=True) for rank in range(size)]


def test_no_rank_has_more_windows_than_its_share(bench: Bench) -> None:
    """With one window at once, and with as many at once as `Runtime` advises where its 8 leave ranks idle."""
    ranks, windows = (range(1, 65), range(1, 601)) if bench.enabled else ((2, 3, 7, 64), (1, 45, 64, 600))
    pairs = [(n, size) for n in windows for size in ranks]
    single = sum(busiest(n, 1, size) != -(-n // size) for n, size in pairs)
    advised = sum(busiest(n, better(n, 8, size) or 8, size) != -(-n // size) for n, size in pairs)
    for what, count in (("one window at once", single), ("as many at once as is advised", advised)):
        bench.record(
            "P12",
            f"shares of {windows[-1]} windows or less on {ranks[-1]} ranks or less, {what}",
            count,
            f"of {len(pairs):,} larger than the least possible",
            exactly=0,
            always=True,
        )


@pytest.mark.measured
def test_the_same_bits_on_any_number_of_ranks(bench: Bench, tmp_path: Path) -> None:
    """MultiDiffusion with noise at each step, MSD and SyncDiffusion. tests/runtime has more of them."""
    cases = [("none", "ddpm", "x"), ("paper", "dpm++_2m", ""), ("sync", "euler_a", "")]
    (alone,) = made(tmp_path, 1, "latents", cases)
    canvases = [canvas for size in (2, 3) for canvas in made(tmp_path, size, "latents", cases)]
    other = sum(not torch.equal(a, b) for canvas in canvases for a, b in zip(canvas, alone, strict=True))
    what = "canvases on 2 and 3 ranks: MultiDiffusion, MSD, SyncDiffusion"
    count = f"of {len(canvases) * len(cases)} with other bits than on one"
    bench.record("P13", what, other, count, exactly=0)


def test_two_ranks_do_the_work_of_one(bench: Bench, tmp_path: Path) -> None:
    """28 windows in micro-batches of 2, one thread for each rank: T1 / (2 max T2), which is 1 if sharding costs nothing."""
    pairs, steps = (7, 6) if bench.enabled else (1, 2)
    efficiencies = [made(tmp_path, 1, "timed", steps)[0] / (2 * max(made(tmp_path, 2, "timed", steps))) for _ in range(pairs)]
    what = "28 windows on two ranks: CPU time of one rank alone"
    bench.record("P14", what, statistics.median(efficiencies), "of twice that of the busier", least=0.92, peer="no cost: 1")


@pytest.mark.measured
@pytest.mark.parametrize(
    ("name", "collectives"),
    [("none", [[(45, 256)]] * 2), ("paper", [[(7, 256), (45, 2 * 256 + 3)], [(45, 256)]])],
    ids=["MultiDiffusion", "MSD as in the paper"],
)
def test_a_step_exchanges_what_its_windows_made_and_nothing_more(
    bench: Bench, request: pytest.FixtureRequest, tmp_path: Path, name: str, collectives: Sequence[Sequence[tuple[int, int]]]
) -> None:
    """The paper's panorama at an eighth of its size, on two ranks: 45 windows and 7 below. tests/runtime has other ones."""
    received, _ = made(tmp_path, 2, "collectives", name, len(collectives), 128)
    for step, expected, taken in zip(("first", "last"), collectives, received, strict=True):
        what = f"{request.node.callspec.id}, the {step} step, {'guided' if len(expected) > 1 else 'not guided'}"
        bench.record("P15", f"{what}: exchanges of all ranks", len(taken), "a step", exactly=len(expected))
        rows = sum(4 * n * width for n, width in expected)
        bench.record("P15", f"{what}: received", sum(taken) / rows, "of the windows' bytes", most=1.05)


def test_a_checkpoint_costs_a_hundredth_of_a_step(bench: Bench, tmp_path: Path) -> None:
    size = {"height": 256, "width": 1024 if bench.enabled else 256}
    run = Sampler("landscapes", runtime=Runtime(accelerator="cpu")).begin("a lake", **size, steps=4)
    kept, ratios = Checkpoint(tmp_path / "a"), []
    for _ in range(4 if bench.enabled else 1):
        step = seconds(run.step)
        ratios.append(seconds(lambda: kept.write(run)) / step)
    bench.record("P17", "a checkpoint, landscapes", statistics.median(ratios), "of a step's CPU time", most=0.01)


def test_a_checkpoint_costs_milliseconds(bench: Bench, tmp_path: Path) -> None:
    """With the memory of a solver of two steps. The network costs nothing here."""
    runtime = Runtime(accelerator="cpu", micro_batch=8)
    sampler = Sampler(null_model(), scheduler=DiffusersScheduler("dpm++_2m"), runtime=runtime)
    run = sampler.begin("a lake", height=256, width=1024, stride=64, steps=20)
    assert run.canvas.shape == (4, 128, 512)
    kept, taken = Checkpoint(tmp_path / "a"), []
    for _ in range(15 if bench.enabled else 1):
        run.step()
        taken.append(seconds(lambda: kept.write(run)))
    bench.record("P17", "a checkpoint of 128 x 512 cells", 1000 * statistics.median(taken), "ms of CPU time", most=10)


def test_what_is_killed_goes_on_to_the_same_bits(bench: Bench, tmp_path: Path) -> None:
    """Kill a random rank at a random step, and rank 0 during a write; then resume on one to three ranks."""
    count = 20 if bench.enabled else 1
    chance = random.Random(0)

    def run(size: int, folder: Path, function: str, *args: object) -> list[int | None]:
        folder.mkdir(exist_ok=True)
        return Processes(size, SCRIPT, function, (str(folder), *args), folder).wait()

    assert run(1, tmp_path / "whole", "killed", -1, -1, 1000, False) == [0]
    expected = torch.load(tmp_path / "whole" / "latents.0", weights_only=True)
    tally = {"a rank": 0, "a write": 0}
    for k in range(count):
        for what in tally:
            folder, size, again = tmp_path / f"{what}-{k}", chance.choice((2, 3)), chance.choice((1, 2, 3))
            if what == "a rank":
                statuses = run(size, folder, "killed", chance.randrange(size), chance.randint(1, 5), 1, False)
            else:
                statuses = run(
                    size, folder, "killed_in_write", chance.choice(("half", "whole", "between")), chance.randint(2, 5)
                )
            assert -9 in statuses
            assert 0 not in statuses
            assert run(again, folder, "killed", -1, -1, 1000, True) == [0] * again
            latents = [torch.load(folder / f"latents.{rank}", weights_only=True) for rank in range(again)]
            tally[what] += all(torch.equal(canvas, expected) for canvas in latents)
    for what, kept in tally.items():
        case = f"{what} of 2 or 3 ranks is killed, and the run resumed on 1 to 3: the same bits"
        bench.record("P16", case, kept, f"of {count} times", exactly=count, always=True)
