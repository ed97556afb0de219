"""The cost of sharding, and the failures that it survives.

Two ranks must do at least 0.92 of twice the work of one. A checkpoint must cost at most a hundredth of a step. Killed runs must
continue with the same bits: `pytest benchmarks/bench_sharding.py --benchmark-enable -s` kills 20 ranks and 20 writes.
"""

import random
import statistics
import time
from pathlib import Path

import pytest
import torch

from panokit import Runtime, Sampler
from panokit.checkpoint import Checkpoint
from panokit.testing.processes import Processes

pytestmark = pytest.mark.xdist_group("ranks")  # with the tests of groups of processes: they fork one server of processes
SCRIPT = Path(__file__).parents[1] / "tests" / "runtime" / "ranks.py"


def seconds(folder: Path, size: int, steps: int) -> list[float]:
    """The CPU time of each rank."""
    started = Processes(size, SCRIPT, "timed", (str(folder / "time"), steps), folder)
    assert started.wait(timeout=300.0) == [0] * size, started.outputs()
    return [torch.load(folder / f"time.{rank}", weights_only=True) for rank in range(size)]


def test_two_ranks_do_the_work_of_one(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """28 windows in micro-batches of 2, one thread for each rank: T1 / (2 max T2), which is 1 if sharding costs nothing."""
    measured = request.config.getoption("--benchmark-enable")
    pairs, steps = (7, 6) if measured else (1, 2)
    efficiencies = [seconds(tmp_path, 1, steps)[0] / (2 * max(seconds(tmp_path, 2, steps))) for _ in range(pairs)]
    print(
        f"\nefficiency of two ranks: {statistics.median(efficiencies):.3f} ({min(efficiencies):.3f} to {max(efficiencies):.3f})"
    )
    if measured:
        assert statistics.median(efficiencies) >= 0.92


def test_a_checkpoint_costs_a_hundredth_of_a_step(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    measured = request.config.getoption("--benchmark-enable")
    size = {"height": 256, "width": 1024 if measured else 256}
    run = Sampler("landscapes", runtime=Runtime(accelerator="cpu")).begin("a lake", **size, steps=4)
    kept, ratios = Checkpoint(tmp_path / "a"), []
    for _ in range(4 if measured else 1):
        start = time.process_time()
        run.step()
        middle = time.process_time()
        kept.write(run)
        ratios.append((time.process_time() - middle) / (middle - start))
    print(f"\na checkpoint of a step: {statistics.median(ratios):.4f}")
    if measured:
        assert statistics.median(ratios) <= 0.01


def test_what_is_killed_goes_on_to_the_same_bits(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Kill a random rank at a random step, and rank 0 during a write; then resume on one to three ranks."""
    count = 20 if request.config.getoption("--benchmark-enable") else 1
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
            made = [torch.load(folder / f"latents.{rank}", weights_only=True) for rank in range(again)]
            tally[what] += all(torch.equal(latents, expected) for latents in made)
    print("\nkilled, resumed, and the same bits:", ", ".join(f"{what} {kept} of {count}" for what, kept in tally.items()))
    assert set(tally.values()) == {count}
