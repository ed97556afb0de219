"""The command line: it turns words into a command, and errors into one line and an exit status."""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from difflib import get_close_matches
from functools import cache
from importlib.metadata import version
from signal import SIGTERM
from typing import TYPE_CHECKING, Any, TextIO, TypeVar, cast

import yaml

from panokit import launcher, registry
from panokit.cli import commands
from panokit.cli.groups import Devices, Prompts
from panokit.cli.words import PARTS, Words, sort
from panokit.errors import (
    ContractError,
    FallbackWarning,
    LauncherError,
    NotFiniteError,
    OutOfMemoryError,
    PanokitError,
    PromptWarning,
    RankError,
    RankFailedError,
    SettingError,
    ShardingWarning,
    reason_of,
)
from panokit.hints import hints_of, make
from panokit.memory import ADVICE, is_out_of_memory
from panokit.options import assign, configuration, objection, plain
from panokit.output import Output
from panokit.settings import Composition, Settings, unknown_option
from panokit.signals import TerminatedError, terminated

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

Made = TypeVar("Made")

_LONGEST = 600
"""The most characters of a message. A longer one quotes a long value; its ends say what came and what to do."""
_SUMMARY = "Makes panoramas with pretrained diffusion models, from interchangeable parts."
_COMMANDS: dict[str, Callable[..., Any]] = {
    "generate": commands.generate,
    "rerun": commands.rerun,
    "studio": commands.studio,
    "evaluate": commands.evaluate,
    "plugins": commands.plugins,
    "check": commands.check,
}
_GROUPS: Mapping[type, set[str | int]] = {
    Prompts: set(),
    Settings: {"seed"},
    Composition: set(),
    Devices: set(),
    Output: {"again"},
}
"""The groups of options of `generate`, and the fields that are not options. The seed of `Prompts` may be a range."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: the words after `panokit`; None takes those of this process.

    Returns:
        The exit status: 0 for success, 2 for a mistake of the user, 1 for any other error, 130 if interrupted, 143 if
        terminated.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # before torch is imported: its warnings are for developers
    launcher.forget()
    launcher.watch()
    try:
        with _warnings_in_one_line(), terminated() as received:
            try:
                return _run(list(sys.argv[1:] if args is None else args))
            except Exception as error:  # an import that is interrupted may fail with any error
                if received:
                    raise (TerminatedError if SIGTERM in received else KeyboardInterrupt) from error
                raise
    except (ContractError, NotFiniteError, OutOfMemoryError, RankError, RankFailedError) as error:
        return _complain(error, 1)
    except PanokitError as error:
        return _complain(error, 2)
    except KeyboardInterrupt as interrupt:
        what, status = ("terminated", 143) if isinstance(interrupt, TerminatedError) else ("interrupted", 130)
        return status if launcher.rank() else _complain(": ".join(filter(None, (what, str(interrupt)))), status)
    except BrokenPipeError:  # the reader has closed the pipe, as in `panokit plugins | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # the user sees one line for every error
        if is_out_of_memory(error):
            return _complain(f"there is not enough memory ({reason_of(error)}): {ADVICE}", 1)
        return _complain(f"unexpected {type(error).__name__}: {error}", 1)


def _run(args: list[str]) -> int:
    command = args[0] if args else ""
    if command not in _COMMANDS:
        return _without_command(args)
    registry.plugins("models")  # packages that cannot be read are left out before other libraries meet them
    hints = _hints(command)
    words = sort(args, hints, [name for name, hint in hints.items() if hint is bool])
    for setting in words.settings:
        if setting.key == "help":
            commands.explain(PARTS[setting.part], setting.value)
            return 0
    if command == "generate":
        return _generate(words, hints)
    if command == "rerun":
        words.options += [f"--set={setting.part}.{setting.key}={setting.value}" for setting in words.settings]
    elif words.settings:
        first = words.settings[0]
        raise SettingError(f"panokit {command} takes no settings of a plugin, --{first.part}.{first.key}")
    given = _parsed(_function_parser(command), [*words.options, *(["--", *words.texts] if words.texts else [])], hints)
    return _COMMANDS[command](**given) or 0


def _without_command(args: Sequence[str]) -> int:
    """Print the version, or the list of commands."""
    parser = argparse.ArgumentParser(prog="panokit", usage="panokit COMMAND ...", description=_SUMMARY, add_help=False)
    parser.add_argument("-h", "--help", action="store_true", help="Show this; panokit COMMAND --help shows its options.")
    parser.add_argument("--version", action="store_true", help="Show the version.")
    subcommands = parser.add_subparsers(metavar="COMMAND", title="commands")
    for name, function in _COMMANDS.items():
        subcommands.add_parser(name, help=(function.__doc__ or "").partition("\n")[0])
    if args[:1] == ["--version"]:
        print(f"panokit {version('panokit')}")
        return 0
    if args and args[0] not in ("-h", "--help"):
        close = get_close_matches(args[0], _COMMANDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(_COMMANDS)}"
        raise SettingError(f"there is no command {args[0]!r}: {hint}")
    parser.print_help(sys.stdout if args else sys.stderr)
    return 0 if args else 2


def _generate(words: Words, hints: Mapping[str, Any]) -> int:
    """Run `generate`. A configuration overrides defaults and earlier configurations; the command line overrides all."""
    options: dict[str, Any] = {}
    for path in words.configs:
        for name, value in configuration(path).items():
            if name not in hints:
                raise SettingError(unknown_option(str(name), [*hints, "config"], "--"))
            options[name] = value
    options |= _parsed(_generate_parser(), words.options, hints, defaults=False)
    if words.texts:
        options["prompt"] = words.texts
    show = options.pop("print_config", False)
    _set_parts(options, words)
    given = {name: value for name, value in options.items() if value is not None}

    def group(cls: type[Made]) -> Made:
        names = {field.name for field in fields(cast("Any", cls))} - _GROUPS[cls]
        return make(cls, {name: given[name] for name in names & given.keys()})

    prompts, settings, composition = group(Prompts), group(Settings), group(Composition)
    devices, output = group(Devices), group(Output)
    if not show:
        return commands.generate(prompts, settings, composition, devices, output)
    shown = {**asdict(prompts), **asdict(settings), **commands.resolved(composition), **asdict(devices), **asdict(output)}
    shown = {name: value for name, value in shown.items() if name in hints} | {"seed": prompts.seed}
    print(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True), end="")
    return 0


def _set_parts(options: dict[str, Any], words: Words) -> None:
    """Add the plugins that the command line names, and set their settings."""
    for name, value in words.parts:
        if name == "guidances+":
            options["guidances"] = [*_listed(options.get("guidances")), plain(value)]
        else:  # the name of a model may be any path
            options[name] = value if name == "model" and not value.startswith("{") else plain(value)
    for setting in words.settings:
        path = f"{setting.part}.{setting.key}"
        if setting.part == "guidances" and not setting.key[0].isdecimal():
            which = len(_listed(options.get("guidances"))) - 1 - (words.added - setting.added)
            if which < 0:
                raise SettingError(f"--{path} has no guidance to change: add one before it, --guidances+=NAME")
            path = f"guidances.{which}.{setting.key}"
        if options.get(setting.part) is None:
            options[setting.part] = getattr(Composition(), setting.part)
        assign(options, path, plain(setting.value))


def _listed(guidances: Any) -> list[Any]:
    if guidances is None:
        return []
    if not isinstance(guidances, list):
        raise SettingError(f"guidances came as {guidances!r:.80}: it must be a list, [{guidances!r:.80}]")
    return guidances


def _hints(command: str) -> dict[str, Any]:
    """The types of the options of a command, by name."""
    if command != "generate":
        hints = hints_of(_COMMANDS[command])
        return {name: hint for name, hint in hints.items() if name not in ("return", "changes")}
    return {
        field.name: hints_of(group)[field.name]
        for group, skipped in _GROUPS.items()
        for field in fields(group)
        if field.name not in skipped
    }


def _parsed(
    parser: "ArgumentParser", options: Sequence[str], hints: Mapping[str, Any], *, defaults: bool = True
) -> dict[str, Any]:
    """Parse the options.

    Args:
        parser: the parser of the command.
        options: the words, as `--name=value`.
        hints: the types of the options, for errors.
        defaults: whether to add options that are not among the words, with their defaults.

    Returns:
        The values of the options, by name.
    """
    from jsonargparse import ArgumentError

    try:
        return dict(vars(parser.parse_args(list(options), defaults=defaults)))
    except ArgumentError as error:
        raise SettingError(objection(str(error), hints)) from error
    except OverflowError as error:
        raise SettingError(
            "a number among the options is larger than any that can be computed with: give a smaller one"
        ) from error


@cache
def _generate_parser() -> "ArgumentParser":
    parser = _parser("generate [PROMPT ...]")
    parser.add_argument(
        "--config", metavar="FILE", help="A YAML file of options. If there are several, a later one overrides an earlier one."
    )
    parser.add_argument(
        "--print_config", action="store_true", help="Print all options as a configuration, and do nothing else."
    )
    for group, skipped in _GROUPS.items():
        parser.add_class_arguments(group, skip=skipped)
    return parser


@cache
def _function_parser(command: str) -> "ArgumentParser":
    """The parser of a command. Its options are the arguments of the function."""
    parser = _parser(command)
    skip: set[str | int] = set()
    if command == "rerun":
        skip = {"changes"}
        parser.add_argument(
            "--set",
            dest="changes",
            action="append",
            metavar="NAME=VALUE",
            default=[],
            help="Change one option of the recipe, such as seed=3.",
        )
    if command == "plugins":
        skip = {"name"}
        parser.add_argument("name", nargs="?", help="An installed plugin, or module:Class. Without it, all plugins are listed.")
    parser.add_function_arguments(_COMMANDS[command], as_positional=command != "evaluate", skip=skip)
    return parser


def _parser(usage: str) -> "ArgumentParser":
    from jsonargparse import ArgumentParser  # imported here, because `panokit --help` does not need it

    return ArgumentParser(prog=f"panokit {usage}", exit_on_error=False, print_config=None, allow_abbrev=False)


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Print warnings for the user in one line, and drop those of libraries for their developers."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: Any = None,
    ) -> None:
        # Every rank has the same prompts and fallbacks, so the first one warns for all. Free memory differs between ranks.
        if issubclass(category, ShardingWarning) or (
            issubclass(category, (PromptWarning, FallbackWarning)) and not launcher.rank()
        ):
            _complain(f"warning: {message}", 0)

    before = warnings.showwarning
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


def _complain(what: object, status: int) -> int:
    """Print one line, unless this is another rank than the first and the first one prints the same."""
    rank = launcher.rank()
    alike = status == 2 and not isinstance(what, LauncherError)  # the ranks of a machine have the same command
    same = getattr(what, "reported", False) or (alike and launcher.local_rank())
    if not (rank and same):
        line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(str(what).split()))
        line = line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
        with suppress(OSError):  # a full disk takes no lines, and a run goes on without them
            print(f"panokit: {f'rank {rank}: ' if rank else ''}{line}", file=sys.stderr, flush=True)
    return status
