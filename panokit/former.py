"""Settings that a plugin had once: whoever still uses one reads what to write now."""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar

from panokit.errors import SettingError

Class = TypeVar("Class", bound=type)


def former_settings(**advice: str) -> Callable[[Class], Class]:
    """Decorates a plugin's class: answers old names of settings with advice.

    ```python
    @former_settings(strength="write weight")
    @dataclass(frozen=True)
    class Mine(Guidance): ...
    ```

    Args:
        advice: what to write in the place of each old setting, in a few words.
    """

    def decorate(cls: Any) -> Any:
        init = cls.__init__

        @wraps(init)
        def checked(self: Any, *args: Any, **settings: Any) -> None:
            for name in settings.keys() & advice.keys():
                raise SettingError(answer(cls, cls.__name__, name))
            init(self, *args, **settings)

        cls.__init__ = checked
        cls._former_settings = advice
        return cls

    return decorate


def answer(cls: type, plugin: str, name: str) -> str | None:
    """What to say about an old setting of a class; None if it never had one of that name.

    Args:
        cls: the plugin's class.
        plugin: what the user calls it.
        name: of the setting.
    """
    advice: Mapping[str, str] = getattr(cls, "_former_settings", {})
    return f"{plugin} has no setting {name!r} any more: {advice[name]}" if name in advice else None
