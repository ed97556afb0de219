"""Being asked to stop: by a signal, or by a program that watches a run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from signal import SIGINT, SIGTERM, signal
from threading import current_thread, main_thread
from typing import final


class TerminatedError(KeyboardInterrupt):
    """SIGTERM, as Ctrl-C is a KeyboardInterrupt."""


@final
@dataclass
class Stop:
    """A request that a run ends after its current step. It belongs to one run and is never taken back.

    Any rank may be asked, and at different times. The request travels with the windows of the next step, so all ranks learn
    of it at once and end after the same step.

    Attributes:
        asked: whether this rank was asked.
        agreed: whether all ranks know.
    """

    asked: bool = False
    agreed: bool = False


@contextmanager
def terminated() -> Iterator[None]:
    """Inside, SIGTERM raises a TerminatedError, so that no half file is left."""

    def stop(number: int, frame: object) -> None:
        raise TerminatedError

    before = signal(SIGTERM, stop) if current_thread() is main_thread() else None
    try:
        yield
    finally:
        if before is not None:
            signal(SIGTERM, before)


@contextmanager
def asking(stop: Callable[[], None]) -> Iterator[None]:
    """Inside, the first SIGINT or SIGTERM calls `stop`, and the next one does what it did before."""
    received: list[int] = []

    def ask(number: int, frame: object) -> None:
        received.append(number)
        stop()
        for name, handler in before.items():
            signal(name, handler)

    before = {name: signal(name, ask) for name in (SIGINT, SIGTERM)} if current_thread() is main_thread() else {}
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if SIGTERM in received:
            raise TerminatedError(*interrupt.args) from None
        raise
    finally:
        for name, handler in before.items():
            signal(name, handler)
