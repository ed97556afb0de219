"""The check for plugins of every kind: a plugin is a value, so that recipes can hold it and processes can send it."""

import pickle
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

from panokit.testing.demands import ConformanceError, demand


def pickles_and_reprs(make: Callable[[], Any]) -> None:
    """An unpickled plugin equals the original. Its repr shows its class and settings, and no memory address."""
    plugin = make()
    name = type(plugin).__name__
    try:
        back = pickle.loads(pickle.dumps(plugin))
    except Exception as cause:  # pickle stumbles in many ways
        raise ConformanceError(
            f"{name} cannot be pickled ({cause}): hold only settings, and functions and classes from the top level of a "
            "module, no lambdas or local functions"
        ) from cause
    demand(back == plugin, f"{name} is not equal to its own copy by pickle: make it a @dataclass(frozen=True) of its settings")
    text = repr(plugin)
    demand(
        re.search(r"\b0x[0-9a-f]+", text) is None,
        f"the repr {text} has a memory address, which differs between processes: make it a @dataclass(frozen=True), and define "
        "__repr__ for the objects in it",
    )
    demand(name in text, f"the repr {text} does not name its class: it must show {name} and its settings")
    for setting, value in _shown(plugin).items():
        demand(
            repr(value) in text,
            f"the repr {text} does not show that {setting} is {value!r}: use the repr of @dataclass(frozen=True), or add it",
        )


def _shown(plugin: Any) -> dict[str, Any]:
    """The settings that are numbers or text."""
    if not is_dataclass(plugin):
        return {}
    settings = {field.name: getattr(plugin, field.name) for field in fields(plugin) if field.repr}
    return {name: value for name, value in settings.items() if isinstance(value, int | float | str)}
