"""How tests run: side by side, on one thread each; and, asked for by `--sweeps`, at their full length."""

import os
from pathlib import Path

import pytest

# Before torch is imported: workers share the cores, and sums have one order on every machine.
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    """What pytest takes beside its own options."""
    parser.addoption("--sweeps", action="store_true", help="run sweeps whole, where tests make a few cases: minutes more")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """How many processes share the tests: one a core, up to eight, because each imports torch and diffusers for itself.

    None beside this one where they would only cost time: for one file that is named, on one core, and for measurements, which
    another process would disturb.
    """
    first, *more = {arg.partition("::")[0] for arg in config.args}
    if (not more and Path(first).is_file()) or config.option.collectonly or config.getoption("--benchmark-enable"):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8) if cores > 1 else 0


@pytest.fixture(scope="session")
def sweeps(request: pytest.FixtureRequest) -> bool:
    """Whether sweeps run whole."""
    return bool(request.config.getoption("--sweeps"))
