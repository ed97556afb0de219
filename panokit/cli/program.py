"""The command line: `panokit generate`, `rerun`, `plugins` and `check`. Options are the arguments in `panokit.cli.commands`."""

import json
import os
import re
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from inspect import signature
from typing import Any, NamedTuple, TextIO

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from panokit.cli import commands
from panokit.errors import (
    ContractError,
    FallbackWarning,
    NotFiniteError,
    OutOfMemoryError,
    PanokitError,
    PromptWarning,
    RankError,
    RankFailedError,
    SettingError,
    ShardingWarning,
)
from panokit.options import assign, configuration, no_option, objection, plain
from panokit.registry import Kind
from panokit.signals import TerminatedError, terminated

_PARTS: dict[str, Kind] = {"guidances": "guidances", "fuser": "fusers", "scheduler": "schedulers"}
_SETTING = re.compile(rf"--({'|'.join(_PARTS)})\.(\w+(?:\.\w+)*)")
_ALONE = ("--help", "--print_config")
"""Options without a value."""


class _PartSetting(NamedTuple):
    """`--guidances.weight=5`: a setting of a part of the composition."""

    part: str
    key: str
    value: str
    added: int
    """How many guidances are added before it."""


class _Words(NamedTuple):
    """What the command line says, by who reads it."""

    command: str
    configs: list[str]
    settings: list[_PartSetting]
    options: list[str]
    texts: list[str]
    added: int
    """How many guidances are added."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0; 2 for what the user got wrong; 1 for anything else; 130 when interrupted.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # before torch is imported: its warnings are for developers
    try:
        with _warnings_in_one_line(), terminated():
            return _run(list(sys.argv[1:] if args is None else args))
    except ArgumentError as error:
        return _complain(error, 2)
    except (ContractError, NotFiniteError, OutOfMemoryError, RankError, RankFailedError) as error:
        return _complain(error, 1)
    except PanokitError as error:
        return _complain(error, 2)
    except KeyboardInterrupt as interrupt:
        what, status = ("terminated", 143) if isinstance(interrupt, TerminatedError) else ("interrupted", 130)
        return status if _rank() else _complain(": ".join(filter(None, (what, str(interrupt)))), status)
    except BrokenPipeError:  # `panokit plugins | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # the user sees one line, whatever it was
        return _complain(f"unexpected {type(error).__name__}: {error}", 1)


def _run(args: list[str]) -> int:
    words = _sorted(args)
    for setting in words.settings:
        if setting.key == "help":
            commands.explain(_PARTS[setting.part], setting.value)
            return 0
    # Configurations go first, wherever they stand: what is said on the command line itself has the last word.
    configs = [f"--config={json.dumps(configuration(path), default=str)}" for path in words.configs]
    texts = ["--", *words.texts] if words.texts else []
    try:
        given = _parser(words.command).parse_args([words.command, *configs, *words.options, *texts])
    except ArgumentError as error:
        raise SettingError(_objection(str(error), words.command)) from error
    options = given[given.command]
    if given.command == "rerun":
        options.changes += [f"{each.part}.{each.key}={each.value}" for each in words.settings]
    elif given.command != "generate" and words.settings:
        first = words.settings[0]
        raise SettingError(f"panokit {given.command} takes no settings of a plugin, --{first.part}.{first.key}")
    if given.command != "generate":
        return _COMMANDS[given.command](**vars(options)) or 0
    for setting in words.settings:
        path = f"{setting.part}.{setting.key}"
        if setting.part == "guidances" and not setting.key[0].isdecimal():
            which = len(options.guidances) - 1 - (words.added - setting.added)
            if which < 0:
                raise SettingError(f"--{path} has no guidance to set it of: add one before it, --guidances+=NAME")
            path = f"guidances.{which}.{setting.key}"
        assign(options, path, plain(setting.value))
    return _generate(options)


def _generate(options: Namespace) -> int:
    options.pop("config", None)
    if options.pop("print_config"):
        options.prompt = options.pop("texts") or options.prompt
        print(yaml.safe_dump(commands.resolved(options.as_dict()), sort_keys=False, allow_unicode=True), end="")
        return 0
    return commands.generate(**vars(options))


def _plain_parser(function: Callable[..., Any]) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, print_config=None, allow_abbrev=False)
    parser.add_function_arguments(function, as_positional=True)
    return parser


def _generate_parser(function: Callable[..., Any]) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, print_config=None, allow_abbrev=False)
    parser.add_argument("texts", nargs="*", default=[], metavar="PROMPT", help="What to paint; several make a panorama each.")
    parser.add_argument("--config", action="config", help="A YAML file of options; several are merged, the last has its way.")
    parser.add_argument("--print_config", action="store_true", help="Print all options as such a file, and do nothing else.")
    parser.add_function_arguments(function, skip={"texts"})
    return parser


def _rerun_parser(function: Callable[..., Any]) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, print_config=None, allow_abbrev=False)
    parser.add_argument("--set", dest="changes", action="append", metavar="NAME=VALUE", default=[], help="Change one thing.")
    parser.add_function_arguments(function, as_positional=True, skip={"changes"})
    return parser


def _evaluate_parser(function: Callable[..., Any]) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, print_config=None, allow_abbrev=False)
    parser.add_function_arguments(function)
    return parser


def _plugins_parser(function: Callable[..., Any]) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, print_config=None, allow_abbrev=False)
    parser.add_argument("name", nargs="?", help="An installed plugin, or module:Class; all of them unless given.")
    parser.add_function_arguments(function, skip={"name"})
    return parser


_PARSERS: dict[str, Callable[[Callable[..., Any]], ArgumentParser]] = {
    "generate": _generate_parser,
    "rerun": _rerun_parser,
    "plugins": _plugins_parser,
    "evaluate": _evaluate_parser,
}


@cache
def _parser(command: str) -> ArgumentParser:
    """All commands by name, and the options of one of them."""
    parser = ArgumentParser(
        prog="panokit",
        exit_on_error=False,
        print_config=None,
        allow_abbrev=False,
        description="Panoramas from pretrained diffusion models, in parts that exchange.",
    )
    subcommands = parser.add_subcommands(required=True, dest="command", metavar="COMMAND")
    for name, function in _COMMANDS.items():
        options = (
            _PARSERS.get(name, _plain_parser)(function)
            if name == command
            else ArgumentParser(exit_on_error=False, allow_abbrev=False)
        )
        subcommands.add_subcommand(name, options, help=(function.__doc__ or "").partition("\n")[0])
    return parser


_COMMANDS: dict[str, Callable[..., Any]] = {
    "generate": commands.generate,
    "rerun": commands.rerun,
    "evaluate": commands.evaluate,
    "plugins": commands.plugins,
    "check": commands.check,
}
_SWITCHES = {
    f"--{name}"
    for function in _COMMANDS.values()
    for name, parameter in signature(function).parameters.items()
    if parameter.annotation is bool
}
"""Options that are true when they stand alone."""


def _sorted(args: Sequence[str]) -> _Words:
    """The words of a command line, in order within each sort: settings belong to what stands before them."""
    left = deque(args)
    command = left.popleft() if left and not left[0].startswith("-") else ""
    words = _Words(command or "--help", [], [], [], [], 0)
    while left:
        word = left.popleft()
        name, sign, value = word.partition("=")
        if word == "--":
            words.texts.extend(left)
            break
        if not word.startswith("--"):
            (words.options if word == "-h" else words.texts).append(word)
            continue
        if name in _SWITCHES and not sign:
            value = left.popleft().lower() if left and left[0].lower() in ("true", "false") else "true"
        elif not sign and name not in _ALONE:
            if not left or left[0].startswith("--"):
                names = signature(_COMMANDS[command]).parameters if command in _COMMANDS else ()
                if name.lstrip("-").partition(".")[0].rstrip("+") not in {*names, "config", "set"}:
                    raise SettingError(no_option(name, names))
                raise SettingError(f"{word} came without a value: write {word}=VALUE")
            value = left.popleft()
        if match := _SETTING.fullmatch(name):
            words.settings.append(_PartSetting(match[1], match[2], value, words.added))
        elif name == "--config" and command != "evaluate":  # whose study it is
            words.configs.append(value)
        elif name == "--prompt" and command == "generate" and not value.lstrip().startswith(("{", "[")):
            words.texts.append(value)
        else:
            words.options.append(word if name in _ALONE else f"{name}={value}")
        if name.startswith("--guidances+"):
            if value.lstrip().startswith("["):
                raise SettingError(f"{name}={value} adds several at once: add them one by one, --guidances+=NAME")
            words = words._replace(added=words.added + 1)
    return words


def _objection(message: str, command: str) -> str:
    """What jsonargparse objects to, in one line that says what to do."""
    if found := re.search(r"invalid choice: '(.*?)' \(choose from", " ".join(message.split())):
        close = get_close_matches(found[1], _COMMANDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(_COMMANDS)}"
        return f"there is no command {found[1]!r}: {hint}"
    return objection(message, _COMMANDS.get(command, main))


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Warnings meant for the user, in one line; those of libraries to their developers not at all."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: Any = None,
    ) -> None:
        # The first rank of all meets the same prompts and fallbacks as the others, and not the same memory.
        if issubclass(category, ShardingWarning) or (issubclass(category, (PromptWarning, FallbackWarning)) and not _rank()):
            _complain(f"warning: {message}", 0)

    before = warnings.showwarning
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


def _complain(what: object, status: int) -> int:
    """Say it in one line; on other ranks than the first only what the first will not say."""
    rank = _rank()
    same = getattr(what, "told", False) or (status == 2 and os.environ.get("LOCAL_RANK", "0") != "0")
    if not (rank and same):
        line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(str(what).split()))
        print(f"panokit: {f'rank {rank}: ' if rank else ''}{line}", file=sys.stderr, flush=True)
    return status


def _rank() -> int:
    """Which process of many this is, as its launcher says."""
    return int(next((os.environ[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in os.environ), "0"))
