"""The command line: it turns words into a command, and errors into one line and an exit status."""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from difflib import get_close_matches
from importlib.metadata import version
from inspect import Parameter, signature
from signal import SIGTERM
from typing import TYPE_CHECKING, Any, TextIO, TypeVar, cast, get_origin

import yaml

from panokit import launcher, registry
from panokit.cli import commands
from panokit.cli.groups import Devices, Engine, Prompts
from panokit.cli.values import all_expanded, read
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
from panokit.options import assign, configuration, plain
from panokit.output import Output
from panokit.settings import Composition, Settings, unknown_option
from panokit.signals import TerminatedError, terminated

if TYPE_CHECKING:
    from argparse import ArgumentParser

Made = TypeVar("Made")

_LONGEST = 600
"""The most characters of a message. A longer one quotes a long value; its ends say what came and what to do."""
_SUMMARY = "Makes panoramas with pretrained diffusion models, from interchangeable parts."
_COMMANDS: dict[str, Callable[..., Any]] = {
    "generate": commands.generate,
    "rerun": commands.rerun,
    "view": commands.view,
    "studio": commands.studio,
    "evaluate": commands.evaluate,
    "plugins": commands.plugins,
    "check": commands.check,
    "completion": commands.completion,
}
_GROUPS: Mapping[type, set[str]] = {
    Prompts: set(),
    Settings: {"seed"},
    Composition: set(),
    Devices: set(),
    Engine: set(),
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
    if "help" in words.flags:
        parser(command).print_help()
        return 0
    if command == "generate":
        return _generate(words, hints)
    changes = [value for name, value in words.options if name == "set"]
    if command == "rerun":
        changes += [f"{setting.part}.{setting.key}={setting.value}" for setting in words.settings]
    elif words.settings:
        first = words.settings[0]
        raise SettingError(f"panokit {command} takes no settings of a plugin, --{first.part}.{first.key}")
    given = _arguments(command, words, hints)
    return _COMMANDS[command](**given, **({"changes": changes} if changes else {})) or 0


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
    options |= {name: read(name, value, hints[name]) for name, value in words.options}
    if words.texts:
        options["prompt"] = words.texts
    _set_parts(options, words)
    given = {name: value for name, value in all_expanded(options).items() if value is not None}

    def group(cls: type[Made]) -> Made:
        names = {field.name for field in fields(cast("Any", cls))} - _GROUPS[cls]
        return make(cls, {name: given[name] for name in names & given.keys()})

    prompts, settings, composition = group(Prompts), group(Settings), group(Composition)
    devices, engine, output = group(Devices), group(Engine), group(Output)
    if "print_config" not in words.flags:
        return commands.generate(prompts, settings, composition, devices, engine, output)
    shown = {**asdict(prompts), **asdict(settings), **commands.resolved(composition), **asdict(devices)}
    shown |= {**asdict(engine), **asdict(output)}
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


def _arguments(command: str, words: Words, hints: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a command's function, by name. Those before the `*` in its signature need no name.

    Raises:
        SettingError: one is missing, there are too many, or a value is of another type.
    """
    for name, _ in words.options:
        if get_origin(hints.get(name)) is list:
            raise SettingError(f"there is no option --{name}: write the names alone, panokit {command} FILE")
    given = {name: read(name, value, hints[name]) for name, value in words.options if name in hints}
    texts = [str(text) for text in words.texts]
    for place in _places(command):
        if place.name in given:
            continue
        if get_origin(hints[place.name]) is list:
            given[place.name], texts = [read(place.name, text, str) for text in texts], []
        elif texts:
            given[place.name] = read(place.name, texts.pop(0), hints[place.name])
        if not given.get(place.name) and place.default is place.empty:
            name = place.name.upper()
            raise SettingError(f"panokit {command} needs {name}: write panokit {command} {name}; see panokit {command} --help")
    if texts:
        raise SettingError(f"there is one word too many, {texts[0]!r:.80}: the names of options begin with --; see --help")
    return given


def _places(command: str) -> list[Parameter]:
    """The arguments of a command that need no name."""
    return [place for place in signature(_COMMANDS[command]).parameters.values() if place.kind is place.POSITIONAL_OR_KEYWORD]


def parser(command: str) -> "ArgumentParser":
    """The parser of a command, for its help."""
    from panokit.cli.help import Option, options_of, parser_of

    summary = (_COMMANDS[command].__doc__ or "").partition("\n\n")[0]
    if command == "generate":
        groups = {_title(group): [*options_of(group, [*skipped, "prompt"])] for group, skipped in _GROUPS.items()}
        groups["configuration"] = [
            Option("config", str, None, "A YAML file of options. If there are several, a later one overrides an earlier one."),
            Option("print_config", bool, False, "Print all options as a configuration, and do nothing else."),
        ]
        places = [Option("prompt", list[str], None, "What to paint: one or more texts.")]
        return parser_of("panokit generate", summary, groups, places)
    options = [*options_of(_COMMANDS[command], ["changes"])]
    if command == "rerun":
        options.append(Option("set", str, None, "Change one option of the recipe. It may be given several times."))
    names = [place.name for place in _places(command)]
    named = [option for option in options if option.name not in names]
    return parser_of(f"panokit {command}", summary, {"options": named}, [option for option in options if option.name in names])


def completion_script(shell: str) -> str:
    """The script with which a shell completes the words of panokit."""
    from panokit.cli.completion import script

    return script(shell, _COMMANDS, parser)


def _title(group: type) -> str:
    return (group.__doc__ or "").partition(".\n")[0].lower()


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
