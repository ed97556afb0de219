"""Deep Zoom pictures: a file NAME.dzi, and beside it a folder NAME_files of tiles at each scale, which viewers load as needed.

The recipe is a file of its own among the tiles, as what libvips notes of a picture is. Viewers read neither. In NAME.dzi it
would be a comment, because the schema of the format has no place for it, and programs that change the file drop comments. A
folder of tiles with that file is panokit's own, and may be replaced; any other is somebody else's.
"""

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, final

from panokit.errors import SettingError

ENDING = ".dzi"
"""The ending of the file."""
TILE, OVERLAP, FORMAT = 254, 1, "jpg"
"""Pixels along a side of a tile, pixels that it shares with each neighbour, and what it is encoded as."""
RECIPE = "panokit.json"
"""The file of the recipe, among the tiles."""
_LONGEST = 1 << 16
"""The most bytes of the file that are read."""


@final
class DeepZoom(NamedTuple):
    """What the file of a Deep Zoom picture says.

    Attributes:
        folder: the folder of the tiles.
        size: width and height in pixels.
        tile: pixels along a side of a tile, without those that it shares.
        overlap: pixels that a tile shares with each neighbour.
        format: the ending of the tiles.
    """

    folder: Path
    size: tuple[int, int]
    tile: int
    overlap: int
    format: str

    @property
    def levels(self) -> list[tuple[int, int]]:
        """Width and height at each scale. The first is one pixel, and the last is the picture."""
        scales = [self.size]
        while max(scales[-1]) > 1:
            scales.append((-(-scales[-1][0] // 2), -(-scales[-1][1] // 2)))
        return scales[::-1]

    @property
    def is_whole(self) -> bool:
        """Whether all tiles are there, and none is empty."""
        for level, size in enumerate(self.levels):
            columns, rows = (-(-pixels // self.tile) for pixels in size)
            with os.scandir(self.folder / str(level)) as entries:
                there = {entry.name for entry in entries if entry.stat().st_size}
            if not {f"{x}_{y}.{self.format}" for x in range(columns) for y in range(rows)} <= there:
                return False
        return True

    def small(self, side: int) -> Path:
        """The tile that is the whole picture, where its longer side first has `side` pixels, or all that one tile holds.

        Args:
            side: pixels.
        """
        single = [level for level, size in enumerate(self.levels) if max(size) <= self.tile]
        level = next((level for level in single if max(self.levels[level]) >= side), single[-1])
        return self.folder / str(level) / f"0_0.{self.format}"


def is_deep_zoom(path: str | os.PathLike[str]) -> bool:
    """Whether the name of a file is that of a Deep Zoom picture."""
    return Path(path).suffix.lower() == ENDING


def folder_of(path: Path) -> Path:
    """The folder of the tiles of a picture, beside its file."""
    return path.with_name(f"{path.stem}_files")


def is_own(folder: Path) -> bool:
    """Whether a folder of tiles is one that panokit wrote."""
    return (folder / RECIPE).is_file()


def read(path: str | os.PathLike[str]) -> DeepZoom:
    """Read the file of a Deep Zoom picture. It may be from a stranger, so it is not parsed as XML, which can be a trap.

    Args:
        path: the file.

    Raises:
        SettingError: there is no such file, it is no Deep Zoom picture, or its tiles are missing.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            text = file.read(_LONGEST).decode("utf-8", "replace")
    except FileNotFoundError as cause:
        raise SettingError(f"there is no picture {path}") from cause
    except OSError as cause:
        raise SettingError(f"{path} cannot be read: {cause.strerror}") from cause
    names = ("Width", "Height", "TileSize", "Overlap")
    numbers = [re.search(rf"\b{name}\s*=\s*[\"'](\d{{1,9}})[\"']", text) for name in names]
    kind = re.search(r"\bFormat\s*=\s*[\"'](\w{1,8})[\"']", text)
    width, height, tile, overlap = (int(number[1]) if number else 0 for number in numbers)
    if kind is None or not (width and height and tile):
        raise SettingError(f"{path} cannot be read as a Deep Zoom picture: give a {ENDING} file that panokit or libvips wrote")
    folder = folder_of(path)
    if not folder.is_dir():
        raise SettingError(f"the tiles of {path} are missing: keep the folder {folder.name} beside it")
    return DeepZoom(folder, (width, height), tile, overlap, kind[1])


def put(made: Path, path: Path) -> None:
    """Put a Deep Zoom picture in the place of an older one. Its file comes last, so whoever finds the file finds the tiles.

    Args:
        made: the file of the picture, in a folder of its own beside its place; its tiles are beside it.
        path: the file of its place.

    Raises:
        OSError: something cannot be moved; the older picture is back in its place then.
    """
    older, moved = made.with_name(f"old{ENDING}"), list[tuple[Path, Path]]()
    pairs = [(path, older), (folder_of(path), folder_of(older)), (folder_of(made), folder_of(path)), (made, path)]
    try:
        for source, target in pairs:
            if source.exists():
                source.rename(target)
                moved.append((source, target))
    except BaseException:
        for source, target in reversed(moved):
            with suppress(OSError):  # the first error is the one to report
                target.rename(source)
        raise
