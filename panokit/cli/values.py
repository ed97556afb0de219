"""The values of options on the command line: texts, as the types that the options ask for."""

import os
from collections.abc import Mapping
from functools import reduce
from operator import or_
from types import NoneType
from typing import Any

from panokit.errors import SettingError
from panokit.hints import alternatives, fit, words
from panokit.options import plain

FILES = (
    *("prompts", "jobs", "image", "mask", "control_image", "ip_adapter_image", "out", "sheet", "preview", "resume"),
    *("config", "reference_folder", "model", "files"),
)
"""The options that name a file or a folder; a model may be one."""

_MAY_BE_EMPTY = ("negative_prompt",)


def read(name: str, text: str, hint: Any) -> Any:
    """The value of an option.

    A text stays as it is, whatever YAML would read in it: `null`, `# x` and `1e2` are names of files.

    Args:
        name: the option.
        text: its value, as it stands on the command line.
        hint: the type that the option asks for.

    Raises:
        SettingError: it is no value of that type, or empty.
    """
    if not text.strip() and name not in _MAY_BE_EMPTY:
        kind = "the name of a file" if name in FILES else words(hint)
        raise SettingError(f"{name} came empty: it must be {kind}; give a value, or leave the option out")
    kinds = [kind for kind in alternatives(hint) if kind is not NoneType]
    others = tuple(kind for kind in kinds if kind is not str)
    try:
        if others:
            return fit(plain(text), reduce(or_, others))
    except TypeError:
        if str not in kinds:
            raise SettingError(f"{name} came as {text!r:.80}: it must be {words(hint)}") from None
    return expanded(name, text)


def expanded(name: str, value: Any) -> Any:
    """The value of an option; if it names a file, with the home folder for `~`, which shells leave alone in `--out=~/a.png`."""
    return os.path.expanduser(value) if name in FILES and isinstance(value, str) else value


def all_expanded(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options by name, with the home folder for `~` in those that name files."""
    return {name: expanded(name, value) for name, value in options.items()}
