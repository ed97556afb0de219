"""What benchmarks measure with: cases with bars, and CPU time in turns.

A case is a number, the bar that it must keep, and what a peer needs for the same. With `--benchmark-enable` all cases become
the lines of one table, at the end of the session, and of one file, `benchmarks/results.json`. Without it benchmarks are plain
tests: they run in small, and assert what does not depend on the machine.
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple, final


@final
@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        number: which of the cases of docs/speed.md it belongs to, such as `P5`.
        what: what is measured.
        value: what was measured.
        unit: what the value counts.
        least: the least value that is good; None for no such bar.
        most: the largest value that is good; None for no such bar.
        peer: what another system, or another way, needs for the same, in the same unit or in words.
    """

    number: str
    what: str
    value: float
    unit: str
    least: float | None = None
    most: float | None = None
    peer: float | str = ""

    @property
    def holds(self) -> bool:
        """Whether the value keeps its bar."""
        return (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)

    @property
    def bar(self) -> str:
        """The bar in words."""
        if self.least == self.most:
            return "" if self.least is None else f"= {shown(self.least)}"
        if self.least is not None and self.most is not None:
            return f"{shown(self.least)} to {shown(self.most)}"
        return f"≤ {shown(self.most)}" if self.least is None else f"≥ {shown(self.least)}"


@final
class Bench:
    """Records cases. Tests get it as the fixture `bench`.

    Args:
        enabled: whether to measure. If not, a test makes a small case of it.

    Attributes:
        cases: what was recorded while measuring.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.cases: list[Case] = []

    def record(
        self,
        number: str,
        what: str,
        value: float,
        unit: str,
        *,
        least: float | None = None,
        most: float | None = None,
        exactly: float | None = None,
        peer: float | str = "",
        always: bool = False,
    ) -> None:
        """Record a value, and assert its bar.

        Args:
            number: see `Case`, as all that follow but the last two.
            what: what is measured.
            value: what was measured.
            unit: what the value counts, such as "of diffusers' time".
            least: the bar, if more is better.
            most: the bar, if less is better.
            exactly: the bar, if the value is a count.
            peer: what another system needs.
            always: whether to assert the bar in plain tests too, because it does not depend on the machine.

        Raises:
            AssertionError: the value does not keep its bar.
        """
        if exactly is not None:
            least = most = exactly
        case = Case(number, what, value, unit, least, most, peer)
        if self.enabled:
            self.cases.append(case)
        if self.enabled or always:
            assert case.holds, f"{number}, {what}: {shown(value)} {unit}, and the bar is {case.bar}"


class Turns(NamedTuple):
    """CPU seconds of two sides that took turns.

    Attributes:
        ratio: ours over theirs: the median over the turns.
        ours: the median of our side.
        theirs: the median of the other side.
    """

    ratio: float
    ours: float
    theirs: float


def seconds(work: Callable[[], Any]) -> float:
    """The CPU time of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def in_turns(
    pairs: int,
    ours: Callable[[], float],
    theirs: Callable[[], float],
    enough: Callable[[Turns, int], bool] = lambda turns, pairs: False,
) -> Turns:
    """Measure two sides in turns, so that what disturbs the machine disturbs both.

    Args:
        pairs: how many turns each side has.
        ours: returns the CPU seconds of our side, as `seconds` measures them.
        theirs: returns the CPU seconds of the other side.
        enough: gets the result so far and its number of turns, and returns whether no more are needed.
    """
    timed: list[tuple[float, float]] = []

    def turns() -> Turns:
        own, other = zip(*timed, strict=True)
        return Turns(median(a / b for a, b in timed), median(own), median(other))

    gc.collect()
    gc.disable()  # as timeit does: a collection also visits what earlier tests have left, and would count for one side
    try:
        for turn in range(pairs):
            if turn % 2:  # neither side is always the first
                other = theirs()
                timed.append((ours(), other))
            else:
                timed.append((ours(), theirs()))
            if enough(turns(), len(timed)):
                break
    finally:
        gc.enable()
    return turns()


def table(cases: Sequence[Case]) -> str:
    """A table of cases in Markdown, in the order of their numbers."""
    header = ("case", "what is measured", "panokit", "bar", "peer", "")
    ordered = sorted(cases, key=lambda case: (case.number[:1], int(case.number[1:] or 0)))
    rows = [header] + [
        (
            case.number,
            case.what,
            f"{shown(case.value)} {case.unit}",
            case.bar,
            case.peer if isinstance(case.peer, str) else shown(case.peer),
            "pass" if case.holds else "FAIL",
        )
        for case in ordered
    ]
    widths = [max(len(row[k]) for row in rows) for k in range(len(header))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def shown(value: float) -> str:
    """A number as a reader wants it: counts in full, others to three digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:#.3g}"
