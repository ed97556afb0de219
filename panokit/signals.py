"""Requests to stop a run, by a signal or by a program that watches the run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from signal import SIGINT, SIGTERM, default_int_handler, getsignal, signal
from threading import current_thread, main_thread
from typing import final


class TerminatedError(KeyboardInterrupt):
    """The process got SIGTERM, as a KeyboardInterrupt means Ctrl-C."""


@final
@dataclass
class Stop:
    """A request to end a run after its current step. It belongs to one run, and is never taken back.

    Any rank may get the request, at any time. The request travels with the windows of the next step. So all ranks learn of it
    at once, and end after the same step.

    Attributes:
        asked: whether this rank got the request.
        agreed: whether all ranks know of it.
    """

    asked: bool = False
    agreed: bool = False


@contextmanager
def terminated() -> Iterator[list[int]]:
    """Inside, SIGTERM raises a TerminatedError and SIGINT a KeyboardInterrupt, so that files are closed or removed.

    Yields:
        The signals that came. An import that one of them interrupts may fail with any error, then or later.
    """
    received: list[int] = []

    def stop(number: int, frame: object) -> None:
        received.append(number)
        raise TerminatedError if number == SIGTERM else KeyboardInterrupt

    names = (SIGTERM, SIGINT) if getsignal(SIGINT) == default_int_handler else (SIGTERM,)  # a shell's background ignores it
    before = {name: signal(name, stop) for name in names} if current_thread() is main_thread() else {}
    try:
        yield received
    finally:
        for name, handler in before.items():
            signal(name, handler)


@contextmanager
def asking(stop: Callable[[], None]) -> Iterator[None]:
    """Inside, the first SIGINT or SIGTERM calls `stop`. The next one does what it did outside.

    Args:
        stop: asks a run to stop.

    Raises:
        TerminatedError: the run was interrupted, and the signal was SIGTERM.
    """
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
