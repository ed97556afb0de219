"""The fixture `bench`, and the table of all cases at the end of the session."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import jaxtyping
import pytest
import torch
from diffusers.utils import logging

from measuring import Bench, table

RESULTS = Path(__file__).with_name("results.json")
BENCH = pytest.StashKey[Bench]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "measured: no test without --benchmark-enable, because there is a test of the same elsewhere"
    )
    config.stash[BENCH] = Bench(enabled=bool(config.getoption("--benchmark-enable")))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.stash[BENCH].enabled:
        left_out = [item for item in items if item.get_closest_marker("measured")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> Bench:
    """Where cases are recorded: `bench.record("P5", "what", value, "unit", most=1.03, peer=...)`."""
    return request.config.stash[BENCH]


@pytest.fixture(autouse=True)
def _as_a_user_runs_it() -> Iterator[None]:
    """Run on one thread, with a silent log, and without the checks of annotations that tests add."""
    threads, verbosity, checks = torch.get_num_threads(), logging.get_verbosity(), jaxtyping.config.jaxtyping_disable
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", checks)
    logging.set_verbosity(verbosity)
    torch.set_num_threads(threads)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table and write the file."""
    cases = config.stash[BENCH].cases
    if not cases:
        return
    machine = config.hook.pytest_benchmark_generate_machine_info(config=config)
    cpu = machine["cpu"].get("brand_raw", machine["machine"])
    where = {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "system": f"{machine['system']} {machine['release']}",
        "python": machine["python_version"],
        **{name: version(name) for name in ("panokit", "torch", "diffusers", "lightning")},
    }
    commit = config.hook.pytest_benchmark_generate_commit_info(config=config)
    rows = [{**asdict(case), "bar": case.bar, "holds": case.holds} for case in cases]
    RESULTS.write_text(json.dumps({"machine": where, "commit": commit, "cases": rows}, indent=1, ensure_ascii=False) + "\n")
    terminalreporter.section("cases")
    terminalreporter.write_line(table(cases))
    terminalreporter.write_line(f"{', '.join(f'{key} {value}' for key, value in where.items())}; one thread")
    terminalreporter.write_line(f"written to {RESULTS}; {sum(not case.holds for case in cases)} of {len(cases)} fail")
