"""What came of the checks and measurements: one file of JSON, and one page of tables."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

Status = Literal["passed", "failed", "skipped", "noted"]
Numbers = Mapping[str, float | int | str | bool | None]


@final
class Skipped(Exception):
    """A check cannot be made here. The message says why."""


@final
class Outcome(NamedTuple):
    """What a check has seen.

    Attributes:
        passed: whether it is as it must be; None where nothing is promised.
        numbers: what was measured, by name and unit.
        note: more, in words.
    """

    passed: bool | None
    numbers: Numbers
    note: str = ""


@final
@dataclass(frozen=True)
class Entry:
    """One check or measurement in a report.

    Attributes:
        section: the section that it is in.
        name: what was checked.
        status: what came of it. `noted` is a measurement, or something that is not promised.
        numbers: what was measured, by name and unit.
        note: more, in words; why, if it was skipped or failed.
        seconds: how long it took.
    """

    section: str
    name: str
    status: Status
    numbers: Numbers = field(default_factory=dict)
    note: str = ""
    seconds: float = 0.0


@final
class Report:
    """Collects entries, and writes all of them after each one: a run that is killed loses nothing.

    Args:
        out: the files, without their endings.
        facts: what a reader must know of the machine and the versions.
    """

    def __init__(self, out: Path, facts: Mapping[str, Any]) -> None:
        self.out, self.facts = out, facts
        self.entries: list[Entry] = []

    @property
    def failed(self) -> bool:
        """Whether a check failed."""
        return any(entry.status == "failed" for entry in self.entries)

    def add(self, entry: Entry) -> None:
        """Add an entry, print it, and write all."""
        self.entries.append(entry)
        print(f"{entry.status:8}{entry.seconds:6.1f} s  {entry.name}: {_in_words(entry)}", flush=True)
        self.write()

    def write(self) -> None:
        """Write both files, whole."""
        self.out.parent.mkdir(parents=True, exist_ok=True)
        content = {**self.facts, "entries": [{**asdict(entry), "numbers": _finite(entry.numbers)} for entry in self.entries]}
        _write(self.out.with_name(f"{self.out.name}.json"), json.dumps(content, indent=2, allow_nan=False) + "\n")
        _write(self.out.with_name(f"{self.out.name}.md"), self.page())

    def page(self) -> str:
        """The results for people."""
        facts = "; ".join(f"{name} {_shown(value)}" for name, value in self.facts.items() if value is not None)
        lines = [f"# panokit on {self.facts.get('card')}", "", facts + ".", "", "| section | what | result | numbers |"]
        lines.append("|---|---|---|---|")
        for entry in self.entries:
            lines.append(f"| {entry.section} | {entry.name} | {entry.status} | {_in_words(entry).replace('|', '/')} |")
        return "\n".join(lines) + "\n"


def _in_words(entry: Entry) -> str:
    numbers = ", ".join(f"{name} {_shown(value)}" for name, value in entry.numbers.items() if value is not None)
    return "; ".join(filter(None, (numbers, " ".join(entry.note.split()))))


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _finite(numbers: Numbers) -> dict[str, Any]:
    """The numbers as JSON has them: it knows no NaN."""
    return {name: str(v) if isinstance(v, float) and not math.isfinite(v) else v for name, v in numbers.items()}


def _write(path: Path, text: str) -> None:
    aside = path.with_name(path.name + ".part")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
