"""The pictures of a session, in files that go when the session goes."""

import secrets
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any, final

from PIL import Image

from panokit.errors import OutputError, SettingError
from panokit.panorama import Panorama
from panokit.recipe import name_of
from panokit.studio.asked import Asked

LONGEST = 60
"""The most pictures of a session. The oldest goes first."""
_START = "start.png"
"""The file of the picture that an entry started from, beside that of its picture: in memory each could take 134 MB."""


@final
@dataclass(frozen=True, eq=False)
class Entry:
    """A picture that was made.

    Attributes:
        asked: what was asked for, without the picture to start from and its mask.
        recipe: the recipe of the picture.
        path: its file, which holds the recipe.
    """

    asked: Asked
    recipe: dict[str, Any]
    path: Path

    def start(self) -> Image.Image | None:
        """Read the picture that it started from; None if it started from none."""
        try:
            with Image.open(self.path.parent / _START) as image:
                image.load()
                return image
        except FileNotFoundError:
            return None


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
        self._lock, self._closed = Lock(), False
        self.entries: list[Entry] = []
        self._outlasting: list[Entry] = []
        self.current: Entry | None = None
        self.kept: Entry | None = None
        self.start: Image.Image | None = None

    def add(self, asked: Asked, panorama: Panorama) -> Entry:
        """Write a picture to a file, and remember what was asked for.

        Args:
            asked: what was asked for.
            panorama: the picture.

        Raises:
            OutputError: the file cannot be written.
            SettingError: the session is closed.
        """
        with self._lock:
            if self._closed:
                raise SettingError("the page is closed: open it again")
            entry = self._written(asked, panorama)
            self.entries.append(entry)
            gone, self.entries = self.entries[:-LONGEST], self.entries[-LONGEST:]
            self._outlasting = [old for old in (*self._outlasting, *gone) if not self._removed(old)]
        return entry

    def _written(self, asked: Asked, panorama: Panorama) -> Entry:
        """The entry of a picture, whose files are written."""
        place = self._folder / secrets.token_hex(8)
        recipe = dict(panorama.recipe)
        entry = Entry(replace(asked, image=None, mask=None), recipe, place / f"{name_of(recipe)}.png")
        try:
            place.mkdir(parents=True)
            panorama.save(entry.path)
            if asked.image is not None:
                asked.image.save(place / _START, compress_level=1)
        except OSError as cause:
            shutil.rmtree(place, ignore_errors=True)
            if isinstance(cause, OutputError):
                raise
            raise OutputError(
                f"the studio cannot write the picture ({cause.strerror or cause}): make room on its disk"
            ) from cause
        return entry

    def _removed(self, old: Entry) -> bool:
        """Whether the files of an entry are removed, as they are unless others are compared with it."""
        if old is self.kept:
            return False
        shutil.rmtree(old.path.parent, ignore_errors=True)
        return True

    def close(self) -> None:
        """Remove the pictures."""
        with self._lock:
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
