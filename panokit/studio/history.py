"""The pictures of a session, in files that go when the session goes."""

import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, final

from PIL.Image import Image

from panokit.errors import SettingError
from panokit.panorama import Panorama
from panokit.recipe import name_of
from panokit.studio.asked import Asked

LONGEST = 60
"""The most pictures of a session. The oldest goes first."""


@final
@dataclass(frozen=True, eq=False)
class Entry:
    """A picture that was made.

    Attributes:
        asked: what was asked for.
        recipe: the recipe of the picture.
        path: its file, which holds the recipe.
    """

    asked: Asked
    recipe: dict[str, Any]
    path: Path


@final
class Session:
    """What one tab of a browser has made.

    Args:
        folder: a folder for the pictures, whose name nobody can guess.

    Attributes:
        entries: the pictures, the oldest first.
        current: the picture that is shown.
        kept: the picture that others are compared with.
        start: the picture that the next one starts from.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._closed = False
        self.entries: list[Entry] = []
        self.current: Entry | None = None
        self.kept: Entry | None = None
        self.start: Image | None = None

    def add(self, asked: Asked, panorama: Panorama) -> Entry:
        """Write a picture to a file, and remember what was asked for.

        Args:
            asked: what was asked for.
            panorama: the picture.

        Raises:
            OutputError: the file cannot be written.
            SettingError: the session is closed.
        """
        if self._closed:
            raise SettingError("the page is closed: open it again")
        place = self._folder / secrets.token_hex(8)
        place.mkdir(parents=True)
        recipe = dict(panorama.recipe)
        entry = Entry(asked, recipe, place / f"{name_of(recipe)}.png")
        panorama.save(entry.path)
        self.entries.append(entry)
        for old in self.entries[:-LONGEST]:
            if old is not self.kept:
                shutil.rmtree(old.path.parent, ignore_errors=True)
        del self.entries[:-LONGEST]
        return entry

    def close(self) -> None:
        """Remove the pictures."""
        self._closed = True
        shutil.rmtree(self._folder, ignore_errors=True)


@final
class Sessions:
    """The sessions of a server.

    Args:
        folder: a folder for the pictures of all.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, Lock()
        self._sessions: dict[str, Session] = {}

    def of(self, name: str | None) -> Session:
        """The session of a name; a new one, if there is none yet.

        Args:
            name: what the browser calls the session.

        Raises:
            SettingError: there is no name.
        """
        if not name:
            raise SettingError("the request belongs to no page: open the studio in a browser")
        with self._lock:
            if name not in self._sessions:
                self._sessions[name] = Session(self._folder / secrets.token_hex(16))
            return self._sessions[name]

    def leave(self, name: str | None) -> None:
        """Forget a session, and remove its pictures.

        Args:
            name: what the browser calls the session.
        """
        with self._lock:
            session = self._sessions.pop(name or "", None)
        if session:
            session.close()
