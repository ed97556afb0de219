"""What the signals that end a process mean: an exception, so that no half file is left; or a checkpoint first."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from signal import SIGINT, SIGTERM, signal
from threading import current_thread, main_thread


class TerminatedError(KeyboardInterrupt):
    """SIGTERM, as Ctrl-C is a KeyboardInterrupt."""


@contextmanager
def terminated() -> Iterator[None]:
    """Inside, SIGTERM raises a TerminatedError."""

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
    """Inside, the first SIGINT or SIGTERM calls `stop`, and the next does what it did before."""
    heard: list[int] = []

    def ask(number: int, frame: object) -> None:
        heard.append(number)
        stop()
        for each, handler in before.items():
            signal(each, handler)

    before = {each: signal(each, ask) for each in (SIGINT, SIGTERM)} if current_thread() is main_thread() else {}
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if SIGTERM in heard:
            raise TerminatedError(*interrupt.args) from None
        raise
    finally:
        for each, handler in before.items():
            signal(each, handler)
