"""A plugin is a value: what every kind of it must be, so that recipes can hold it and processes can send it."""

import pickle
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

from panokit.testing.demands import ConformanceError, demand


def pickles_and_reprs(make: Callable[[], Any]) -> None:
    """A pickled plugin comes back equal, and its repr shows its class and settings and no address."""
    plugin = make()
    name = type(plugin).__name__
    try:
        back = pickle.loads(pickle.dumps(plugin))
    except Exception as cause:  # pickle stumbles in many ways
        raise ConformanceError(
            f"{name} cannot be pickled ({cause}): hold settings alone, with functions and classes of a module's top level "
            "instead of lambdas and local ones"
        ) from cause
    demand(back == plugin, f"{name} is not equal to its own pickle: make it a @dataclass(frozen=True) of its settings")
    text = repr(plugin)
    demand(
        re.search(r"\b0x[0-9a-f]+", text) is None,
        f"the repr {text} holds an address, which is another in every process: make it a @dataclass(frozen=True), and give "
        "what it holds a repr of its own",
    )
    demand(name in text, f"the repr {text} does not name its class: it must say {name} and its settings")
    for setting, value in _shown(plugin).items():
        demand(
            repr(value) in text,
            f"the repr {text} does not show that {setting} is {value!r}: leave it to @dataclass(frozen=True), or add it",
        )


def _shown(plugin: Any) -> dict[str, Any]:
    """The settings that are numbers and texts."""
    if not is_dataclass(plugin):
        return {}
    settings = {field.name: getattr(plugin, field.name) for field in fields(plugin) if field.repr}
    return {name: value for name, value in settings.items() if isinstance(value, int | float | str)}
