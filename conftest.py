"""How tests run: side by side, on one thread each; and, asked for by `--sweeps`, at their full length."""

import gc
import inspect
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import jaxtyping
import pytest

# Before torch is imported: workers share the cores, and sums have one order on every machine.
os.environ["OMP_NUM_THREADS"] = "1"
# Tests make few cycles. At its own threshold the collector walks all of torch so often that it takes a tenth of the time.
gc.set_threshold(50_000)


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


def _jaxtyped(*, typechecker: Any, whole: Any = jaxtyping.jaxtyped) -> Callable[[Any], Any]:
    """Check the annotations of a function: with jaxtyping if they have shapes, else with the type checker alone.

    Nine of ten calls are of functions without an array in their signature. jaxtyping binds the arguments of a call to the
    signature all the same, in 30 microseconds: a third of the tests' time. The checks of a function are made when it is first
    called, because to make them takes a worker seven seconds.
    """

    def check(function: Any) -> Any:
        shapes = any(isinstance(hint, str) or "jaxtyping" in repr(hint) for hint in function.__annotations__.values())
        return whole(function, typechecker=typechecker) if shapes else typechecker(function)

    def decorated(thing: Any) -> Any:
        if inspect.isclass(thing):  # a constructor that is decorated was checked underneath
            return thing if hasattr(thing.__init__, "__wrapped__") else whole(thing, typechecker=typechecker)
        checked = None

        @wraps(thing)
        def called(*args: Any, **kwargs: Any) -> Any:
            nonlocal checked
            if jaxtyping.config.jaxtyping_disable:
                return thing(*args, **kwargs)
            if checked is None:
                checked = check(thing)
            return checked(*args, **kwargs)

        return called

    return decorated


jaxtyping.jaxtyped = _jaxtyped  # its import hook puts this around every function


def pytest_collection_finish() -> None:
    """Let the collector never look again at what imports have made."""
    gc.freeze()


@pytest.fixture(scope="session")
def sweeps(request: pytest.FixtureRequest) -> bool:
    """Whether sweeps run whole."""
    return bool(request.config.getoption("--sweeps"))
