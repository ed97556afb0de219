"""The command line: `python -m panokit_sphere faces`, `views` and `mesh`."""

import sys
from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

from panokit import SettingError
from panokit.cli.help import options_of, parser_of
from panokit.cli.values import read
from panokit.cli.words import sort
from panokit.errors import PanokitError
from panokit.hints import hints_of
from panokit.settings import unknown_option
from panokit_sphere import commands

_COMMANDS: dict[str, Callable[..., None]] = {"faces": commands.faces, "views": commands.views, "mesh": commands.mesh}
_PROGRAM = "python -m panokit_sphere"


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: the words after the name of the program; None takes those of this process.

    Returns:
        The exit status: 0 for success, 2 for a mistake of the user, 130 if interrupted.
    """
    try:
        return _run(list(sys.argv[1:] if args is None else args))
    except PanokitError as error:
        print(f"panokit_sphere: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("panokit_sphere: interrupted", file=sys.stderr)
        return 130


def _run(args: list[str]) -> int:
    command = args[0] if args else "--help"
    if command in ("-h", "--help"):
        print(f"usage: {_PROGRAM} COMMAND ...\n")
        for name, function in _COMMANDS.items():
            print(f"  {name:8}{(function.__doc__ or '').partition(chr(10))[0]}")
        return 0 if args else 2
    if command not in _COMMANDS:
        raise SettingError(f"there is no command {command!r}: there are {', '.join(_COMMANDS)}")
    hints = {name: hint for name, hint in hints_of(_COMMANDS[command]).items() if name != "return"}
    words = sort(args, hints, [name for name, hint in hints.items() if hint is bool])
    if "help" in words.flags:
        _print_help(command)
        return 0
    for other in [*("--config" for _ in words.configs), *(f"--{one.part}.{one.key}" for one in words.settings), *words.flags]:
        raise SettingError(unknown_option(other, hints, "--"))
    _COMMANDS[command](**_arguments(command, dict(words.options), list(map(str, words.texts)), hints))
    return 0


def _arguments(command: str, options: dict[str, str], texts: list[str], hints: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a command's function. Those before the `*` in its signature need no name."""
    for place in signature(_COMMANDS[command]).parameters.values():
        if place.kind is place.POSITIONAL_OR_KEYWORD and place.name not in options and texts:
            options[place.name] = texts.pop(0)
        if place.default is place.empty and place.name not in options:
            name = place.name.upper() if place.kind is place.POSITIONAL_OR_KEYWORD else f"--{place.name}"
            raise SettingError(f"{_PROGRAM} {command} needs {name}: see {_PROGRAM} {command} --help")
    if texts:
        raise SettingError(f"there is one word too many, {texts[0]!r:.80}: the names of options begin with --; see --help")
    return {name: read(name, text, hints[name]) for name, text in options.items()}


def _print_help(command: str) -> None:
    function = _COMMANDS[command]
    named = [place.name for place in signature(function).parameters.values() if place.kind is place.KEYWORD_ONLY]
    options = list(options_of(function))
    summary = (function.__doc__ or "").partition("\n\n")[0]
    groups = {"options": [option for option in options if option.name in named]}
    places = [option for option in options if option.name not in named]
    parser_of(f"{_PROGRAM} {command}", summary, groups, places).print_help()


if __name__ == "__main__":
    sys.exit(main())
