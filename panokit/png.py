"""PNG, written a few rows at a time: the file of a picture that is never whole in the memory, or what another program reads."""

import struct
import zlib
from collections.abc import Mapping
from io import BufferedIOBase
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.uint8]
"""Some rows of a picture, `h W 3`, in RGB with 8 bits a channel."""
STORED = 0
"""The compression of a stream that another program reads at once: none."""
_MOST = 1 << 24
"""The most bytes of a chunk before it is compressed, about."""


@final
class PngWriter:
    """Writes the rows of a picture from top to bottom.

    Pillow writes whole pictures alone. libvips writes rows, but its text is Latin-1, and a prompt may be in any script.

    Args:
        file: gets the bytes.
        size: width and height in pixels.
        texts: texts by their keywords, which stand before the pixels, as chunks `iTXt`.
        level: how well it compresses, as zlib counts.
    """

    def __init__(self, file: BufferedIOBase, size: tuple[int, int], texts: Mapping[str, str], level: int = 6) -> None:
        self._file, (self._width, self._missing), self._filtered = file, size, level != STORED
        self._deflate = zlib.compressobj(level, strategy=zlib.Z_FILTERED)
        self._above: Rows = np.zeros((1, size[0], 3), np.uint8)
        file.write(b"\x89PNG\r\n\x1a\n")
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
        for keyword, text in texts.items():
            self._chunk(b"iTXt", keyword.encode("latin-1") + b"\0\0\0\0\0" + text.encode())

    def write(self, rows: Rows) -> None:
        """Write the next rows.

        Args:
            rows: as wide as the picture.
        """
        self._missing -= len(rows)
        step = max(1, _MOST // (3 * self._width))
        for top in range(0, len(rows), step):
            self._write(rows[top : top + step])

    def _write(self, rows: Rows) -> None:
        lines = np.empty((len(rows), 1 + 3 * self._width), np.uint8)
        lines[:, 0] = 2 if self._filtered else 0
        if self._filtered:  # each row less the one above it, which is smaller numbers
            above = np.concatenate([self._above, rows[:-1]])
            np.subtract(rows.reshape(len(rows), -1), above.reshape(len(rows), -1), out=lines[:, 1:])
            self._above = rows[-1:].copy()
        else:
            lines[:, 1:] = rows.reshape(len(rows), -1)
        self._chunk(b"IDAT", self._deflate.compress(lines.data))

    def close(self) -> None:
        """Write the end. The file stays open.

        Raises:
            ValueError: rows are missing, or there were too many.
        """
        if self._missing:
            raise ValueError(f"{self._missing} of its rows are missing")
        self._chunk(b"IDAT", self._deflate.flush())
        self._chunk(b"IEND", b"")

    def _chunk(self, kind: bytes, content: Any) -> None:
        self._file.write(struct.pack(">I", len(content)) + kind)
        self._file.write(content)
        self._file.write(struct.pack(">I", zlib.crc32(content, zlib.crc32(kind))))
