"""Lifelines: connections that show at once when another rank has ended.

Collectives notice late that a process has ended: gloo when its connection closes, NCCL at the timeout of a watchdog. So each
rank keeps an idle connection to rank 0. When it closes, the process at the other end has ended, whatever the reason. Rank 0
then sends the number of that rank to the others.
"""

import os
import secrets
import selectors
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import final

from panokit.errors import PanokitError, RankError

GRACE = 0.8
"""Seconds in which a waiting rank may raise the error itself. After that its process is ended."""

_WORD = struct.Struct("!i")
_LEFT, _STOP = -1, -2
"""Words that are sent in the place of a lost rank's number. `_LEFT`: rank 0 ends, and has reported the reason.
`_STOP - turn`: a rank was asked to stop in that turn."""


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
    """

    def __init__(self, rank: int, size: int, broadcast: Callable[[object], tuple[str, int, bytes]], patience: float) -> None:
        self._rank, self.lost = rank, -1
        self.stops: set[int] = set()
        self._reported = False
        self._free, self._known = Event(), Event()
        self._free.set()
        self._ends: dict[int, socket.socket] = {}
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
            end.sendall(token + _WORD.pack(rank))
            end.settimeout(None)
            self._ends[0] = end
        Thread(target=self._listen, daemon=True, name="panokit-lifeline").start()

    def _accept(self, server: socket.socket, token: bytes) -> None:
        """Accept one connection; close it again if the other side does not know the token."""
        end, _ = server.accept()
        end.settimeout(server.gettimeout())
        message = _receive(end, len(token) + _WORD.size)
        if message[: len(token)] == token:
            self._ends[_WORD.unpack(message[len(token) :])[0]] = end
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
            reason = str(cause).partition("\n")[0][:200]
            raise RankError(f"the other ranks could not be reached: {reason}") from cause
        finally:
            self._free.set()

    def check(self) -> None:
        """Raise a RankError if another rank has ended."""
        if self._known.is_set():
            error = RankError(_ended(self.lost))
            error.reported = self._reported
            raise error

    def stop(self, turn: int) -> None:
        """Tell the other ranks that this one was asked to stop: they add the turn, 0 or more, to `stops`."""
        self._send(_STOP - turn)

    def close(self) -> None:
        """Close the connections. Rank 0 first tells the others that it has reported why it ends."""
        if self._rank == 0:
            self._send(_LEFT)
        for end in self._ends.values():
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _send(self, word: int, skip: int = -1) -> None:
        """Send a word to rank 0; on rank 0, to all ranks but `skip`."""
        for rank, end in self._ends.items():
            if rank != skip:
                with suppress(OSError):  # a rank that has ended is no reason not to tell the others
                    end.sendall(_WORD.pack(word))

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, end in self._ends.items():
                end.setblocking(True)
                selector.register(end, selectors.EVENT_READ, rank)
            while self.lost < 0:
                for key, _ in selector.select():
                    self._handle(key.data)
        self._known.set()
        if not self._free.wait(GRACE):  # it is in a kernel, or in a collective that does not notice
            if not (self._rank and self._reported):
                print("panokit:", _ended(self.lost), file=sys.stderr, flush=True)
            os._exit(1)

    def _handle(self, rank: int) -> None:
        """Handle what comes from a rank: a word, or the end of its connection."""
        message = _receive(self._ends[rank], _WORD.size)
        (word,) = _WORD.unpack(message) if message else (rank,)
        if self._rank == 0:
            self._send(word, skip=rank)
        if word <= _STOP:
            self.stops.add(_STOP - word)
        elif self.lost < 0:
            self.lost, self._reported = max(word, 0), word != 0  # rank 0 reports all others


def _ended(rank: int) -> str:
    return f"rank {rank} has ended, and its windows are missing: look at its last output"


def _receive(end: socket.socket, length: int) -> bytes:
    """Read that many bytes; none if the other side has ended."""
    message = b""
    with suppress(OSError):
        while len(message) < length and (more := end.recv(length - len(message))):
            message += more
    return message if len(message) == length else b""
