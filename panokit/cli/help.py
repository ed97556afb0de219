"""The help of the commands: their options in groups, each with its meaning, its default and an example."""

import argparse
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin

from panokit.cli.values import FILES
from panokit.cli.words import PARTS
from panokit.hints import alternatives, hints_of, meanings_of

WIDTH = 100
"""The most columns of a line."""

EXAMPLES: Mapping[str, str] = {
    "at": "240,48",
    "attention": "sliced",
    "checkpoint_every": "5",
    "config": "panorama.yaml",
    "control_image": "edges.png",
    "devices": "2",
    "dry_run": "",
    "fps": "16",
    "frame_stride": "8",
    "frames": "81",
    "fuser": "multidiffusion",
    "guidance_end": "0.8",
    "guidance_scale": "7.5",
    "guidances": "msd",
    "guided_micro_batch": "2",
    "height": "512",
    "image": "lake.png",
    "ip_adapter_image": "style.png",
    "jobs": "jobs.jsonl",
    "kind": "guidances",
    "layout": "spotdiffusion",
    "mask": "mask.png",
    "micro_batch": "4",
    "model": "stabilityai/stable-diffusion-2-base",
    "negative_prompt": "people",
    "num_nodes": "2",
    "engine": "ray",
    "address": "auto",
    "devices_per_picture": "2",
    "out": "lake.png",
    "panoramas": "2",
    "part": "2/8",
    "host": "0.0.0.0",
    "password": "PASSWORD",
    "port": "7861",
    "precision": "bf16-true",
    "preview": "preview.png",
    "progress": "json",
    "prompt": "a lake",
    "prompts": "prompts.txt",
    "reference_folder": "photographs/",
    "references": "20",
    "resume": "lake.png.checkpoint",
    "scheduler": "dpm++_2m",
    "seed": "7",
    "set": "seed=3",
    "sheet": "sheet.png",
    "steps": "25",
    "strength": "0.6",
    "stride": "64",
    "sweep": "guidances.weight=0,1,10",
    "tile": "256",
    "tile_overlap": "64",
    "timeout": "60",
    "width": "2048",
    "wrap": "x",
    "evaluate.out": "results/",
    "view.out": "page.html",
}
"""A value of each option that takes one, by its name; of some commands, by the name of the command and its own."""


class Option(NamedTuple):
    """An option of a command.

    Attributes:
        name: its name.
        hint: its type.
        default: its default; None where there is none.
        meaning: what it does, as the docstring of its class or function says.
        example: a value of it.
    """

    name: str
    hint: Any
    default: Any
    meaning: str
    example: str = ""

    @property
    def is_switch(self) -> bool:
        """Whether it needs no value."""
        return self.hint is bool

    @property
    def choices(self) -> list[str]:
        """The words that it may be, if there are only some."""
        kinds = [kind for kind in alternatives(self.hint) if kind is not NoneType]
        words = [str(choice) for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
        return words + ["true", "false"] * (bool in kinds and len(kinds) > 1)

    @property
    def metavar(self) -> str:
        """What stands for its value."""
        kinds = alternatives(self.hint)
        if self.name in FILES and self.name != "model":
            return "FILE"
        if self.name in PARTS:
            return "NAME"
        number = "N" if int in kinds else "X" if float in kinds else ""
        return "|".join(filter(None, (number, *self.choices))) or "TEXT"

    @property
    def words(self) -> str:
        """Its meaning, its default and an example."""
        default = "off" if self.default is False else "none" if self.default in (None, "", MISSING) else str(self.default)
        notes = [] if "default" in self.meaning else [f"default: {default}"]
        example = self.example or EXAMPLES.get(self.name, "")
        plus = "+" * (self.name == "guidances")
        notes += [f"example: --{self.name}{plus}{'=' if plus else ' '}{_quoted(example)}"] if example else []
        return f"{self.meaning} ({'; '.join(notes)})" if notes else self.meaning


def options_of(source: type | Callable[..., Any], skipped: Sequence[str] = ()) -> Iterator[Option]:
    """The options that are the fields of a dataclass, or the arguments of a function.

    Args:
        source: the class or function.
        skipped: fields and arguments that are no options.
    """
    hints = hints_of(source)
    meanings = meanings_of(source)
    if isinstance(source, type):
        defaults = {field.name: field.default for field in fields(source)}
    else:
        parameters = inspect.signature(source).parameters.values()
        defaults = {one.name: None if one.default is one.empty else one.default for one in parameters}
    for name, default in defaults.items():
        if name not in skipped:
            yield Option(name, hints[name], default, meanings.get(name, ""), EXAMPLES.get(f"{source.__name__}.{name}", ""))


def parser_of(
    usage: str, summary: str, groups: Mapping[str, Sequence[Option]], places: Sequence[Option]
) -> argparse.ArgumentParser:
    """The parser of a command, which prints its help, and from which the completion of a shell is made.

    Args:
        usage: the command, such as `panokit generate`.
        summary: what it does.
        groups: its options, by the title of their group.
        places: its arguments without a name.
    """
    parser = argparse.ArgumentParser(
        prog=usage, description=summary, formatter_class=_formatter, add_help=False, allow_abbrev=False
    )
    for place in places:
        several = get_origin(place.hint) is list
        optional = NoneType in alternatives(place.hint) or place.name == "prompt"
        nargs = ("*" if optional else "+") if several else ("?" if optional else None)
        parser.add_argument(place.name, metavar=place.name.upper(), nargs=nargs, help=_escaped(place.meaning))
    for title, options in groups.items():
        group = parser.add_argument_group(title)
        for option in options:
            name = f"--{option.name}{'+' * (option.name == 'guidances')}"
            if option.is_switch:
                group.add_argument(name, dest=option.name, action="store_true", help=_escaped(option.words))
            else:
                group.add_argument(name, dest=option.name, metavar=option.metavar, help=_escaped(option.words))
    parser.add_argument_group("help").add_argument("-h", "--help", action="store_true", help="Show this.")
    parser.usage = f"{usage}{''.join(' ' + _shown(place) for place in places)} [--OPTION VALUE ...]"
    return parser


def _formatter(prog: str) -> argparse.HelpFormatter:
    columns = min(WIDTH, int(os.environ.get("COLUMNS", WIDTH)) if os.environ.get("COLUMNS", "").isdecimal() else WIDTH)
    return argparse.HelpFormatter(prog, max_help_position=28, width=max(60, columns))


def _shown(place: Option) -> str:
    name = place.name.upper()
    several = f"{name} ..." if get_origin(place.hint) is list else name
    return f"[{several}]" if NoneType in alternatives(place.hint) or place.name == "prompt" else several


def _quoted(text: str) -> str:
    return f'"{text}"' if " " in text else text


def _escaped(text: str) -> str:
    return text.replace("%", "%%")
