"""Completion of words in a shell: commands, options, choices, names of plugins and files."""

import argparse
from collections.abc import Callable, Mapping
from typing import Any

import shtab

from panokit import registry
from panokit.cli.values import FILES
from panokit.cli.words import PARTS


def script(shell: str, commands: Mapping[str, Callable[..., Any]], parser: Callable[[str], argparse.ArgumentParser]) -> str:
    """The script that a shell reads to complete the words of panokit.

    Args:
        shell: one that shtab knows.
        commands: the commands by name.
        parser: makes the parser of a command.
    """
    panokit = argparse.ArgumentParser(prog="panokit", add_help=False)
    panokit.add_argument("--help", action="store_true", help="Show this.")
    panokit.add_argument("--version", action="store_true", help="Show the version.")
    subcommands = panokit.add_subparsers()
    for name, function in commands.items():
        command = parser(name)
        for action in command._actions:
            _complete(action)
        summary = (function.__doc__ or "").partition("\n")[0]
        subcommands.add_parser(name, help=summary, parents=[command], add_help=False, conflict_handler="resolve")
    return str(shtab.complete(panokit, shell))


def _complete(action: Any) -> None:
    """Say what an option may be, in the attributes that shtab reads."""
    if action.dest in PARTS:
        action.choices = sorted({plugin.name for plugin in registry.plugins(PARTS[action.dest])})
    elif action.dest in ("name", "plugin"):
        action.choices = sorted({plugin.name for kind in registry.KINDS for plugin in registry.plugins(kind)})
    elif action.dest in FILES:
        action.complete = shtab.FILE
    elif action.metavar and "|" in action.metavar:
        action.choices = [choice for choice in action.metavar.split("|") if choice not in ("N", "X")]
    elif action.dest == "shell":
        action.choices = ["bash", "zsh", "tcsh"]
