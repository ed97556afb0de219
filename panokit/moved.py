"""Names that have changed: an old one is answered with the new one, in a line."""

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any, TypeVar, final

from panokit.errors import ContractError, SettingError

Class = TypeVar("Class", bound=type)

MODULES = {
    "panokit.commands": "panokit.cli.commands",
    **{
        f"panokit.{name}": f"panokit.runtime.{name}"
        for name in ("group", "launch", "lifeline", "offload", "pieces", "sharding", "strategy")
    },
    "panokit.backbones.diffusers.attention": "panokit.backbones.diffusers.execution",
}
"""Modules by their old names."""

ATTRIBUTES: Mapping[str, Mapping[str, str]] = {
    "Runtime": {
        "first": "broadcast",
        "together": "barrier",
        "owe": "agreeing",
        "alike": "require_same",
        "rank": "global_rank",
        "has": "placement.holds",
        "stop": "Run.stop, as each run is stopped by itself",
        "stopping": "Run.stopping",
    },
    "Run": {
        "grid": "windows",
        "denoiser": "parts.denoiser",
        "embeddings": "parts.embeddings",
        "fuser": "parts.fuser",
        "estimate": "pass_over",
        "look": "model_pass.look",
        "predict": "model_pass.predict",
        "read": "model_pass.read",
        "below": "model_pass.below",
    },
    "Plan": {"grid": "windows"},
    "CanvasStep": {"grid": "windows"},
    "Sampler": {"check": "plan(...).check()", "grid": "plan(...).windows", "recipe": "plan(...).recipe"},
    "Worker": {"prepared": "plan"},
}
"""What objects have, by class and old name."""


def no_attribute(owner: object, name: str) -> AttributeError:
    """The error for an attribute that a class does not have, with its new name if it had it once."""
    cls = type(owner).__name__
    new = ATTRIBUTES[cls].get(name)
    return AttributeError(f"{cls}.{name} is {new} now" if new else f"a {cls} has no attribute {name!r}")


def require_arguments(cls: type, method: str, *names: str) -> None:
    """Check that a plugin's method takes the arguments of today's contract. A class calls it when it is subclassed.

    Args:
        cls: the plugin's class.
        method: the name of the method.
        names: the names of its arguments, without `self`.

    Raises:
        ContractError: the class has the method with other arguments.
    """
    function = vars(cls).get(method)
    if not inspect.isfunction(function):
        return
    try:
        inspect.signature(function).bind(None, *names)
    except TypeError:
        came = ", ".join(list(inspect.signature(function).parameters)[1:])
        raise ContractError(
            f"{cls.__name__}.{method}({came}) is of an older contract: it is {method}({', '.join(names)}) now, see CHANGELOG.md"
        ) from None


@final
class _OldModules:
    """The last of the finders: nobody else knows the module."""

    @staticmethod
    def find_spec(name: str, path: Iterable[str] | None = None, target: Any = None) -> None:
        """Raise if the module has moved."""
        if name in MODULES:
            raise ModuleNotFoundError(f"{name} is {MODULES[name]} now: import it from there", name=name)


def answer_old_imports() -> None:
    """From here on an import of a module that has moved fails with its new name."""
    if _OldModules not in sys.meta_path:
        sys.meta_path.append(_OldModules)


def former_settings(meant: Mapping[str, Any] | None = None, /, **advice: str) -> Callable[[Class], Class]:
    """Decorates a plugin's class: answers old names of settings with advice.

    ```python
    @former_settings(strength="write weight")
    @dataclass(frozen=True)
    class Mine(Guidance): ...
    ```

    Args:
        meant: old settings with the values that meant what the class does now. A recipe that has them is still a recipe of the
            same picture, so plain data may have them.
        advice: what to write in the place of each old setting, in a few words.
    """

    def decorate(cls: Any) -> Any:
        init = cls.__init__

        @wraps(init)
        def checked(self: Any, *args: Any, **settings: Any) -> None:
            for name in settings:
                if answer := no_setting(cls, cls.__name__, name):
                    raise SettingError(answer)
            init(self, *args, **settings)

        cls.__init__ = checked
        cls._former_settings, cls._meant = advice, dict(meant or {})
        return cls

    return decorate


def means_the_same(cls: type, name: str, value: object) -> bool:
    """Whether an old setting of a class, with this value, meant what the class does now."""
    meant: Mapping[str, Any] = getattr(cls, "_meant", {})
    return name in meant and bool(meant[name] == value)


def no_setting(cls: type, plugin: str, name: str) -> str | None:
    """What to say about an old setting of a class; None if it never had one of that name.

    Args:
        cls: the plugin's class.
        plugin: what the user calls it.
        name: of the setting.
    """
    advice: Mapping[str, str] = getattr(cls, "_former_settings", {})
    return f"{plugin} has no setting {name!r} any more: {advice[name]}" if name in advice else None
