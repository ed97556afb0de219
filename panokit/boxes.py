"""What the files of films say of themselves: MP4 is boxes in boxes, and WebM is elements in elements.

A film may come from a stranger. So only its boxes are read here, few of them and little of each, and nothing is decoded.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, final

from panokit.errors import SettingError

ENDINGS = (".mp4", ".webm")
"""The endings of the files."""
LONGEST = 1 << 19
"""The most bytes of a text that are read."""
_MOST = 20_000
"""The most boxes of a file that are looked at."""
_CONTAINERS = {".mp4": {b"moov", b"trak", b"udta", b"meta", b"ilst", b"\xa9cmt"}}
_CONTAINERS[".webm"] = {bytes.fromhex(kind) for kind in ("18538067", "1654ae6b", "ae", "e0", "1254c367", "7373", "67c8")}
"""The boxes that hold others in which something is read."""
_WIDE, _HIGH, _NAME, _STRING = b"\xb0", b"\xba", b"\x45\xa3", b"\x44\x87"


@final
class Notes(NamedTuple):
    """What a film says of itself.

    Attributes:
        text: its comment, in which panokit keeps the recipe; empty if there is none.
        size: width and height in pixels; zeros if it does not say.
        whole: whether its last box ends where the file ends, and the pictures are in it.
    """

    text: str
    size: tuple[int, int]
    whole: bool


@final
class _Box(NamedTuple):
    kind: bytes
    start: int
    end: int
    depth: int


def is_boxed(path: str | os.PathLike[str]) -> bool:
    """Whether the name of a file is that of an MP4 or a WebM."""
    return Path(path).suffix.lower() in ENDINGS


def read(path: str | os.PathLike[str]) -> Notes:
    """Read what a film says of itself.

    Args:
        path: the file, whose ending names the format.

    Raises:
        SettingError: there is no such file, or it is no film.
    """
    ending = Path(path).suffix.lower()
    try:
        with open(path, "rb") as file:
            length = os.fstat(file.fileno()).st_size
            head = file.read(12)
            if not (head[4:8] == b"ftyp" if ending == ".mp4" else head[:4] == b"\x1a\x45\xdf\xa3"):
                raise SettingError(f"{path} cannot be read as a film: give an MP4 or WebM file")
            return (_mp4 if ending == ".mp4" else _webm)(file, length)
    except FileNotFoundError as cause:
        raise SettingError(f"there is no film {path}") from cause
    except OSError as cause:
        raise SettingError(f"{path} cannot be read: {cause.strerror}") from cause
    except (ValueError, IndexError, struct.error) as cause:
        if isinstance(cause, SettingError):
            raise
        raise SettingError(f"{path} is damaged, and cannot be read as a film") from cause


def _mp4(file: BinaryIO, length: int) -> Notes:
    text, size, ends, last = b"", (0, 0), 0, set[bytes]()
    comment = False
    for box in _boxes(file, ".mp4", length):
        if box.depth == 0:
            ends = box.end
            last.add(box.kind)
        if box.kind != b"data":
            comment = box.kind == b"\xa9cmt"
        elif comment and not text:
            text = _bytes(file, box._replace(start=box.start + 8))  # after its type and its language
        if box.kind == b"tkhd" and 0 in size:
            wide, high = struct.unpack(">II", _bytes(file, box)[-8:])
            size = wide >> 16, high >> 16
    return Notes(text.decode("utf-8", "replace"), size, ends == length and {b"moov", b"mdat"} <= last)


def _webm(file: BinaryIO, length: int) -> Notes:
    text, name, sides, ends = b"", b"", {_WIDE: 0, _HIGH: 0}, 0
    for box in _boxes(file, ".webm", length):
        if box.depth == 0:
            ends = box.end
        if box.kind in sides and not sides[box.kind]:
            sides[box.kind] = int.from_bytes(_bytes(file, box)[:8])
        elif box.kind == _NAME:
            name = _bytes(file, box)
        elif box.kind == _STRING and name == b"COMMENT" and not text:
            text = _bytes(file, box)
    return Notes(text.decode("utf-8", "replace"), (sides[_WIDE], sides[_HIGH]), ends == length)


def _boxes(file: BinaryIO, ending: str, length: int) -> Iterator[_Box]:
    """The boxes of a file in their order, and those in the boxes that hold some, each after the box that holds it."""
    head = _mp4_head if ending == ".mp4" else _webm_head
    place, holders = 0, list[int]()
    for _ in range(_MOST):
        while holders and place >= holders[-1]:
            holders.pop()
        if place >= length:
            return
        limit = holders[-1] if holders else length
        file.seek(place)
        kind, start, end = head(file, place, limit)
        yield _Box(kind, start, end, len(holders))
        if kind in _CONTAINERS[ending] and len(holders) < 8:
            place = start + 4 * (kind == b"meta")  # that one has a version first
            holders.append(min(end, limit))
        else:
            place = min(end, limit) if holders else end


def _mp4_head(file: BinaryIO, place: int, limit: int) -> tuple[bytes, int, int]:
    """Kind, start and end of the box at a place."""
    size, kind = struct.unpack(">I4s", file.read(8))
    start = place + 8
    if size == 1:
        (size,) = struct.unpack(">Q", file.read(8))
        start += 8
    end = limit if size == 0 else place + size
    if end < start:
        raise ValueError("a box ends before its start")
    return kind, start, end


def _webm_head(file: BinaryIO, place: int, limit: int) -> tuple[bytes, int, int]:
    """Kind, start and end of the element at a place."""
    head = file.read(12)
    wide = 9 - head[0].bit_length()  # bytes of its kind
    more = 9 - head[wide].bit_length()  # and of its length
    if wide > 4 or more > 8 or len(head) < wide + more:
        raise ValueError("this is no element")
    start = place + wide + more
    size = int.from_bytes(head[wide : wide + more]) & ((1 << 7 * more) - 1)
    return head[:wide], start, limit if size == (1 << 7 * more) - 1 else start + size


def _bytes(file: BinaryIO, box: _Box) -> bytes:
    file.seek(box.start)
    return file.read(max(0, min(box.end - box.start, LONGEST)))
