"""The words of a command line, sorted into options, plugins, settings of plugins and prompts."""

import re
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, final

from panokit.errors import SettingError
from panokit.options import plain
from panokit.registry import Kind
from panokit.settings import SETTINGS, unknown_option

PARTS: dict[str, Kind] = {
    "model": "models",
    "layout": "layouts",
    "guidances": "guidances",
    "fuser": "fusers",
    "scheduler": "schedulers",
}
"""The options that name plugins, and their kinds."""
FLAGS = ("help", "print_config")
"""Options without a value, which every command has, or `generate` alone."""
_SWITCHED = ("true", "false", "yes", "no", "on", "off")
"""The words after a switch that are its value, and no prompt."""
_SETTING = re.compile(rf"({'|'.join(PARTS)})\.(\w+(?:\.\w+)*)")


class PartSetting(NamedTuple):
    """`--guidances.weight=5`: a setting of a part of the composition."""

    part: str
    key: str
    value: str
    added: int
    """Number of guidances that are added before it on the command line."""


@final
@dataclass
class Words:
    """The sorted words of a command line.

    Attributes:
        command: the command; empty if the line names none.
        flags: those of `FLAGS` that are there.
        configs: the configurations, in order.
        parts: plugins, as text: pairs of `fuser`, `scheduler` or `guidances+`, and a value. No parser of the command line
            reads them, because one that knows classes would import what they name.
        settings: settings of parts, in order.
        options: all other options: pairs of a name and a value.
        texts: prompts, and other words that are not options.
    """

    command: str = ""
    flags: set[str] = field(default_factory=set)
    configs: list[str] = field(default_factory=list)
    parts: list[tuple[str, str]] = field(default_factory=list)
    settings: list[PartSetting] = field(default_factory=list)
    options: list[tuple[str, str]] = field(default_factory=list)
    texts: list[Any] = field(default_factory=list)

    @property
    def added(self) -> int:
        """Number of guidances that are added."""
        return sum(name == "guidances+" for name, _ in self.parts)


def sort(args: Sequence[str], names: Collection[str], switches: Collection[str]) -> Words:
    """Sort the words of a command line. Each sort keeps its order, because a setting belongs to the plugin before it.

    Names may be written with hyphens: `--guidance-scale` is `--guidance_scale`.

    Args:
        args: the words.
        names: the options of the command.
        switches: the options that need no value; alone they mean true.

    Raises:
        SettingError: an option is unknown, came without a value, or adds several guidances at once.
    """
    left = deque(args)
    words = Words(left.popleft() if left and not left[0].startswith("-") else "")
    while left:
        word = left.popleft()
        if word == "--":
            words.texts.extend(left)
            break
        if not word.startswith("--") and word != "-h":
            if re.fullmatch(r"-[A-Za-z]\w*(=.*)?", word):
                raise SettingError(
                    f"there is no option {word:.80}: options have two hyphens; write -- before a prompt with one"
                )
            words.texts.append(word)
            continue
        name, sign, value = word.partition("=")
        option = "help" if word == "-h" else name[2:].replace("-", "_")
        if option in FLAGS:
            if sign:
                raise SettingError(f"--{option} takes no value, and {value!r:.80} came: write --{option}")
            words.flags.add(option)
            continue
        if not _is_known(option, words.command, names):
            if words.command == "rerun" and option in (*SETTINGS, *PARTS, "prompt"):
                raise SettingError(f"panokit rerun changes an option of the recipe with --set {option}=VALUE")
            raise SettingError(unknown_option(name, [*names, *_more(words.command)], "--"))
        if option in switches and not sign:
            value = left.popleft().lower() if left and left[0].lower() in _SWITCHED else "true"
        elif not sign:
            if not left or left[0].startswith("--"):
                raise SettingError(f"{word} came without a value: write {word}=VALUE")
            value = left.popleft()
        if match := _SETTING.fullmatch(option):
            words.settings.append(PartSetting(match[1], match[2], value, words.added))
        elif words.command == "generate" and option.rstrip("+") in PARTS:
            _check_part(option, value)
            words.parts.append((option, value))
        elif option == "config" and words.command != "evaluate":  # its configuration is a study, not options
            words.configs.append(value)
        elif option == "prompt" and words.command == "generate":
            boxes = value.lstrip().startswith(("{", "["))
            words.texts += _listed(plain(value)) if boxes else [value]
        else:
            words.options.append((option, value))
    return words


def _is_known(option: str, command: str, names: Collection[str]) -> bool:
    """Whether a command has an option. Settings of plugins count as options of every command."""
    return option in (*names, *_more(command)) or bool(_SETTING.fullmatch(option))


def _more(command: str) -> tuple[str, ...]:
    """The options of a command that are no arguments of its function."""
    return {"generate": ("config", "guidances+"), "rerun": ("set",)}.get(command, ())


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _check_part(option: str, value: str) -> None:
    if option == "guidances":
        raise SettingError(f"guidances came as {value!r:.80}: add one with --guidances+=NAME")
    if not value.strip():
        raise SettingError(f"{option.rstrip('+')} came empty: give a name, or leave the option out")
    if option == "guidances+" and value.lstrip().startswith("["):
        raise SettingError(f"--{option}={value} adds several at once: add them one by one, --guidances+=NAME")
