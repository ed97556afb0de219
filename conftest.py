"""How tests run: side by side, on one thread each; and, asked for by `--sweeps`, at their full length."""

import gc
import inspect
import os
import sys
from collections.abc import Callable
from functools import cache, wraps
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


def pytest_configure(config: pytest.Config) -> None:
    """The marker of tests that sweeps alone run."""
    config.addinivalue_line("markers", "sweep: no test without --sweeps, because it takes many seconds")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests that sweeps alone run."""
    if not config.getoption("--sweeps"):
        left_out = [item for item in items if item.get_closest_marker("sweep")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


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


def _jaxtyped(*, typechecker: Any, jaxtyped: Any = jaxtyping.jaxtyped) -> Callable[[Any], Any]:
    """A decorator that checks annotations with the type checker, and their shapes in one context of jaxtyping for each call.

    jaxtyping's own decorator makes the same checks. It also binds the arguments of each call to their names, for shapes that
    name them, which panokit has none of. That takes 30 microseconds a call, and a third of the tests' time. The checks of a
    function are made at its first call. Making all of them takes a worker seven seconds.

    Args:
        typechecker: the decorator of the type checker.
        jaxtyped: jaxtyping's own decorator, which makes the contexts.
    """

    def check(function: Any) -> Any:
        hints = function.__annotations__.values()
        if any(isinstance(hint, str) for hint in hints):  # jaxtyping leaves names out that only type checkers know
            return jaxtyped(function, typechecker=typechecker)
        typed = typechecker(function)
        if not any("jaxtyping" in repr(hint) for hint in hints):
            return typed

        @wraps(function)
        def with_shapes(*args: Any, **kwargs: Any) -> Any:
            with jaxtyped("context"):
                return typed(*args, **kwargs)

        return with_shapes

    def decorate(function: Any) -> Any:
        if inspect.isclass(function):  # a decorated constructor was checked before it was decorated
            wrapped = hasattr(function.__init__, "__wrapped__")
            return function if wrapped else jaxtyped(function, typechecker=typechecker)
        checked = None

        @wraps(function)
        def checked_at_first_call(*args: Any, **kwargs: Any) -> Any:
            nonlocal checked
            if jaxtyping.config.jaxtyping_disable:
                return function(*args, **kwargs)
            if checked is None:
                checked = check(function)
            return checked(*args, **kwargs)

        return checked_at_first_call

    return decorate


jaxtyping.jaxtyped = _jaxtyped  # the import hook of jaxtyping puts this around every function


def pytest_collection_finish() -> None:
    """Exclude the objects that imports have made from garbage collection: they live until the end.

    Fabric looks for callbacks of other packages each time it is made, in the metadata of all of them. Here it does so once.
    """
    if registry := sys.modules.get("lightning.fabric.utilities.registry"):
        registry.entry_points = cache(registry.entry_points)
    gc.freeze()


@pytest.fixture(scope="session")
def sweeps(request: pytest.FixtureRequest) -> bool:
    """Whether sweeps run whole."""
    return bool(request.config.getoption("--sweeps"))
