"""Lifelines: connections that show at once when another rank has ended.

Collectives notice late that a process has ended: gloo when its connection closes, NCCL at the timeout of a watchdog. So each
rank keeps a connection to rank 0. When it closes, the process at the other end has ended, whatever the reason. Rank 0 then
tells the others which rank that was. Signs of life and arrivals at meetings take the same way. So a rank that waits for
another one knows whether it works or hangs, and can be interrupted, which it could not in a collective.
"""

import os
import re
import secrets
import selectors
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from threading import Condition, Event, Lock, Thread
from typing import final

from panokit.errors import PanokitError, RankError

GRACE = 0.8
"""Seconds in which a waiting rank may raise the error itself. After that its process is ended."""

_BEAT = 0.25
"""Seconds from one sign of life to the next, at least."""

_MESSAGE = struct.Struct("!ii")


class Word(IntEnum):
    """What a message is about. Its number belongs to it."""

    LOST = 0
    """A rank has ended: its number."""
    LEFT = 1
    """Rank 0 ends, and has reported the reason."""
    STOP = 2
    """A rank was asked to stop, in the turn of that number."""
    ARRIVED = 3
    """A rank has arrived at the next meeting: its number."""
    BEAT = 4
    """A rank makes progress: its number."""
    FAILED = 5
    """A rank has arrived at the next meeting, with an error that it raised before: its number."""


@final
class Lifeline:
    """The connections of one rank, and a thread that listens to them.

    Args:
        rank: the number of this rank.
        size: the number of ranks.
        broadcast: takes a value of rank 0, and returns it on every rank.
        patience: seconds to wait for the others to connect.

    Attributes:
        lost: the first rank that ended; -1 while all are there.
        stops: the turns in which another rank was asked to stop.
        beats: how often each rank has given a sign of life.
        working: whether this rank does something that is no work on windows, such as writing a file. The thread then gives
            signs of life for it, as long as the process runs.

    Raises:
        RankError: the others did not connect in time.
    """

    def __init__(self, rank: int, size: int, broadcast: Callable[[object], tuple[str, int, bytes]], patience: float) -> None:
        self._rank, self.lost = rank, -1
        self.stops: set[int] = set()
        self.beats, self._arrivals, self._failures = [0] * size, [0] * size, [0] * size
        self.working, self._beaten = False, 0.0
        self._reported = False
        self._free, self._known = Event(), Event()
        self._free.set()
        self._heard, self._sending = Condition(), Lock()
        self._ends: dict[int, socket.socket] = {}
        try:
            if rank == 0:
                with socket.create_server(("", 0)) as server:
                    server.settimeout(patience)
                    token = secrets.token_bytes(16)
                    broadcast((os.environ.get("MASTER_ADDR") or socket.gethostname(), server.getsockname()[1], token))
                    while len(self._ends) < size - 1:
                        self._accept(server, token)
            else:
                address, port, token = broadcast(None)
                end = socket.create_connection((address, port), timeout=patience)
                end.sendall(token + _MESSAGE.pack(Word.ARRIVED, rank))
                end.settimeout(None)
                self._ends[0] = end
        except (OSError, RuntimeError) as cause:
            reason = str(cause).partition("\n")[0][:200]
            raise RankError(f"rank {rank} of {size} could not connect to the others: {reason}") from cause
        Thread(target=self._listen, daemon=True, name="panokit-lifeline").start()

    def _accept(self, server: socket.socket, token: bytes) -> None:
        """Accept one connection; close it again if the other side does not know the token."""
        end, _ = server.accept()
        end.settimeout(server.gettimeout())
        message = _receive(end, len(token) + _MESSAGE.size)
        if message[: len(token)] == token:
            self._ends[_MESSAGE.unpack(message[len(token) :])[1]] = end
        else:
            end.close()

    @contextmanager
    def needed(self) -> Iterator[None]:
        """Inside, this rank waits for the others. If one of them ends, the waiting ends too.

        Raises:
            RankError: a rank has ended, or did not come within the group's timeout.
        """
        self.check()
        self._free.clear()
        try:
            yield
        except RuntimeError as cause:
            if isinstance(cause, PanokitError):
                raise
            self._known.wait(GRACE / 2)  # the thread may learn in a moment which rank has ended
            self.check()
            reason = re.sub(r"^\[\S*\] ", "", str(cause)).partition("\n")[0][:200]  # gloo begins with its file and line
            raise RankError(f"the other ranks could not be reached: {reason}") from cause
        finally:
            self._free.set()

    def check(self) -> None:
        """Raise a RankError if another rank has ended."""
        if self._known.is_set():
            error = RankError(_ended(self.lost))
            error.reported = self._reported
            raise error

    def arrive(self, *, failed: bool) -> None:
        """Tell the others that this rank has arrived at its next meeting.

        Args:
            failed: whether it raised an error since the last one.
        """
        word = Word.FAILED if failed else Word.ARRIVED
        self._count(word, self._rank)
        self._send(word, self._rank)

    def _count(self, word: Word, rank: int) -> None:
        self._arrivals[rank] += 1
        if word == Word.FAILED:
            self._failures[rank] = self._arrivals[rank]

    def missing(self, timeout: float) -> list[int]:
        """The ranks that have not arrived yet where this one has. If there are some, it first waits for news of them."""

        def late() -> list[int]:
            return [rank for rank, count in enumerate(self._arrivals) if count < self._arrivals[self._rank]]

        with self._heard:
            if self.lost < 0 and late():
                self._heard.wait(timeout)
            return late()

    def failed(self) -> list[int]:
        """The ranks that have arrived with an error at this meeting. All ranks get the same answer, once none is missing."""
        return [rank for rank, meeting in enumerate(self._failures) if meeting == self._arrivals[self._rank]]

    def beat(self) -> None:
        """Give the others a sign of life, if the last one was some time ago."""
        if time.monotonic() - self._beaten >= _BEAT:
            self._beaten = time.monotonic()
            self._send(Word.BEAT, self._rank)

    def stop(self, turn: int) -> None:
        """Tell the other ranks that this one was asked to stop: they add the turn, 0 or more, to `stops`."""
        self._send(Word.STOP, turn)

    def close(self) -> None:
        """Close the connections. Rank 0 first tells the others that it has reported why it ends."""
        if self._rank == 0:
            self._send(Word.LEFT, 0)
        for end in self._ends.values():
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _send(self, word: Word, number: int, skip: int = -1) -> None:
        """Send a message to rank 0; on rank 0, to all ranks but `skip`."""
        with self._sending:
            for rank, end in self._ends.items():
                if rank != skip:
                    with suppress(OSError):  # a rank that has ended is no reason not to tell the others
                        end.sendall(_MESSAGE.pack(word, number))

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, end in self._ends.items():
                end.setblocking(True)
                selector.register(end, selectors.EVENT_READ, rank)
            while self.lost < 0:
                for key, _ in selector.select(_BEAT):
                    self._handle(key.data)
                if self.working:
                    self.beat()
        self._known.set()
        if not self._free.wait(GRACE):  # it is in a kernel, or in a collective that does not notice
            if not (self._rank and self._reported):
                print("panokit:", _ended(self.lost), file=sys.stderr, flush=True)
            os._exit(1)

    def _handle(self, rank: int) -> None:
        """Handle what comes from a rank: a message, or the end of its connection."""
        message = _receive(self._ends[rank], _MESSAGE.size)
        word, number = _MESSAGE.unpack(message) if message else (Word.LOST, rank)
        if self._rank == 0:
            self._send(word, number, skip=rank)
        with self._heard:
            if word in (Word.ARRIVED, Word.FAILED):
                self._count(word, number)
            elif word == Word.BEAT:
                self.beats[number] += 1
            elif word == Word.STOP:
                self.stops.add(number)
            elif self.lost < 0:
                self.lost, self._reported = number, word == Word.LEFT or number != 0  # rank 0 reports all others
            self._heard.notify_all()


def _ended(rank: int) -> str:
    return f"rank {rank} has ended, and its windows are missing: look at its last output"


def _receive(end: socket.socket, length: int) -> bytes:
    """Read that many bytes; none if the other side has ended."""
    message = b""
    with suppress(OSError):
        while len(message) < length and (more := end.recv(length - len(message))):
            message += more
    return message if len(message) == length else b""
