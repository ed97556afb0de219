"""Noticing at once that another rank has ended.

What waits for another process waits long: gloo until its connection closes, NCCL until a watchdog's timeout. So each rank keeps
a connection to the first one on which nothing is ever said. When it closes, whoever was at the other end has ended, however it
ended, and the first rank tells the others who it was.
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
"""Seconds that a rank which waits for one that has ended has to say so itself."""

_WORD = struct.Struct("!i")
_LEFT, _STOP = -1, -2
"""What is said in the place of the number of a rank that has ended: one was asked to stop; the first has said why it ends."""


@final
class Lifeline:
    """The connections of one rank, and a thread that listens on them.

    Args:
        rank: this one.
        size: how many there are.
        tell: takes what rank 0 says and returns it on every rank.
        patience: seconds to wait for the others to connect.
    """

    def __init__(self, rank: int, size: int, tell: Callable[[object], tuple[str, int, bytes]], patience: float) -> None:
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
                tell((os.environ.get("MASTER_ADDR") or socket.gethostname(), server.getsockname()[1], token))
                while len(self._ends) < size - 1:
                    self._accept(server, token)
        else:
            address, port, token = tell(None)
            end = socket.create_connection((address, port), timeout=patience)
            end.sendall(token + _WORD.pack(rank))
            end.settimeout(None)
            self._ends[0] = end
        Thread(target=self._listen, daemon=True, name="panokit-lifeline").start()

    def _accept(self, server: socket.socket, token: bytes) -> None:
        """One more rank; or not, if it does not know the token."""
        end, _ = server.accept()
        end.settimeout(server.gettimeout())
        said = _received(end, len(token) + _WORD.size)
        if said[: len(token)] == token:
            self._ends[_WORD.unpack(said[len(token) :])[0]] = end
        else:
            end.close()

    @contextmanager
    def needed(self) -> Iterator[None]:
        """While this rank waits for the others: should one end, so does the waiting.

        Raises:
            RankError: one has ended, or did not come within the group's timeout.
        """
        self.check()
        self._free.clear()
        try:
            yield
        except RuntimeError as cause:
            if isinstance(cause, PanokitError):
                raise
            self._known.wait(GRACE / 2)  # the thread may be about to learn who it was
            self.check()
            why = str(cause).partition("\n")[0][:200]
            raise RankError(f"the other ranks could not be reached: {why}") from cause
        finally:
            self._free.set()

    def check(self) -> None:
        """Raise a RankError if another rank has ended."""
        if self._known.is_set():
            error = RankError(_ended(self.lost))
            error.reported = self._reported
            raise error

    def stop(self, turn: int) -> None:
        """Let all ranks know that this one was asked to stop: the turn, 0 or more, goes into `stops` everywhere else."""
        self._say(_STOP - turn)

    def close(self) -> None:
        """Let the others know that this rank ends, and has said what there was to say."""
        if self._rank == 0:
            self._say(_LEFT)
        for end in self._ends.values():
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _say(self, word: int, but: int = -1) -> None:
        """Say it to the first rank; the first rank says it to all but one."""
        for rank, end in self._ends.items():
            if rank != but:
                with suppress(OSError):  # of a rank that has ended, too
                    end.sendall(_WORD.pack(word))

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, end in self._ends.items():
                end.setblocking(True)
                selector.register(end, selectors.EVENT_READ, rank)
            while self.lost < 0:
                for key, _ in selector.select():
                    self._hear(key.data)
        self._known.set()
        if not self._free.wait(GRACE):  # in a kernel, or in a collective that does not notice
            if not (self._rank and self._reported):
                print("panokit:", _ended(self.lost), file=sys.stderr, flush=True)
            os._exit(1)

    def _hear(self, rank: int) -> None:
        """What comes from a rank: a word, or its end."""
        said = _received(self._ends[rank], _WORD.size)
        (word,) = _WORD.unpack(said) if said else (rank,)
        if self._rank == 0:
            self._say(word, but=rank)
        if word <= _STOP:
            self.stops.add(_STOP - word)
        elif self.lost < 0:
            self.lost, self._reported = max(word, 0), word != 0  # of any other rank the first one tells


def _ended(rank: int) -> str:
    return f"rank {rank} has ended, and its windows are missing: look at what it said last"


def _received(end: socket.socket, length: int) -> bytes:
    """So many bytes, or none if the other side has ended."""
    said = b""
    with suppress(OSError):
        while len(said) < length and (more := end.recv(length - len(said))):
            said += more
    return said if len(said) == length else b""
