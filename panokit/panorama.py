"""The result of a run: a picture, or a film."""

import io
import os
import zlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from panokit import deepzoom, films
from panokit.errors import OutputError
from panokit.files import check_format, write_picture, written_aside
from panokit.output import check_file
from panokit.png import Rows
from panokit.recipe import embedded, unbounded
from panokit.writing import is_streamed, writing

if TYPE_CHECKING:
    from PIL.Image import Image

SMALL = 2048
"""The most pixels along a side of a smaller copy."""
_SHEET, _CAPTION = 2048, 20
"""Pixels of a contact sheet's width, and of the height of a line on it."""


@final
@dataclass(frozen=True, eq=False)
class Panorama:
    """A finished panorama.

    Attributes:
        latents: the canvas that the picture was decoded from, `c *size`: `c h w`, of a film `c t h w`, unless it is no plane.
        image: the picture, RGB with 8 bits a channel; a smaller copy, of up to `SMALL` pixels a side, if `file` is set. Of a
            film, the frame in its middle.
        recipe: everything that is needed to make the picture again, as plain data.
        size: width and height of the picture in pixels. The default is that of `image`.
        file: the file of the picture, if it was written while it was decoded; None for a picture in the memory, `image`.
        frames: all frames of a film, `T H W 3`, of type uint8; None for a picture.
    """

    latents: Float[Tensor, "c *size"]
    image: "Image"
    recipe: Mapping[str, Any]
    size: tuple[int, int] = (0, 0)
    file: Path | None = None
    frames: np.ndarray[Any, np.dtype[np.uint8]] | None = None

    def __post_init__(self) -> None:
        if self.size == (0, 0):
            object.__setattr__(self, "size", self.image.size)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the latents on the CPU: another process may not have this device."""
        return Panorama, (self.latents.cpu(), self.image, self.recipe, self.size, self.file, self.frames)

    @classmethod
    def of(cls, latents: Tensor, picture: Float[Tensor, "3 *pixels"], recipe: Mapping[str, Any]) -> "Panorama":
        """The result of a decoded canvas.

        Args:
            latents: the canvas.
            picture: the picture, `3 H W`, or the film, `3 T H W`.
            recipe: how it is made, as plain data.
        """
        if picture.ndim == 3:
            return cls(latents, to_image(picture), recipe)
        frames = np.stack([to_rows(frame) for frame in picture.unbind(1)])
        return cls(latents, to_image(picture[:, len(frames) // 2]), recipe, frames=frames)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the picture to a file. It is written under another name and then renamed, so there is never half a file.

        PNG, JPEG, WebP, TIFF and Deep Zoom pictures carry the recipe: `panokit rerun` makes the picture again from the file.
        Films are MP4, WebM and WebP, and carry it, too.

        Args:
            path: the file, whose ending names the format.

        Raises:
            OutputError: the ending is unknown, the file cannot be written, or the picture was written to another one while it
                was decoded, and is not in the memory.
            SettingError: a package is missing that writes such a picture.
        """
        if self.file is not None:
            raise OutputError(
                f"cannot write {path}: the picture was written to {self.file} while it was decoded, and image is a smaller "
                f"copy: copy that file, or make the panorama again with out={str(path)!r}"
            )
        path = Path(path)
        check_file(path, self.size, 1 if self.frames is None else len(self.frames))
        if self.frames is not None:
            films.write(path, self.frames, films.fps_of(self.recipe), self.recipe)
        elif is_streamed(path, self.size):
            with writing(path, self.size, self.recipe) as write:
                write(np.asarray(self.image.convert("RGB")))
        else:
            write_picture(path, self.image, **embedded(self.recipe, check_format(path)))

    def save_latents(self, path: str | os.PathLike[str]) -> None:
        """Write the latents as safetensors, as one tensor `latents`, `c *size`. There is never half a file.

        Args:
            path: the file.

        Raises:
            OutputError: the file cannot be written.
        """
        from safetensors.torch import save

        with written_aside(Path(path)) as aside:
            aside.write_bytes(save({"latents": self.latents.detach().cpu().contiguous()}))

    def _repr_html_(self) -> str:
        from panokit.view.cell import cell  # a notebook alone needs it

        return cell(self.image, self.recipe, self.size, self.frames)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.image.save(buffer, format="png")
        return buffer.getvalue()


def to_rows(picture: Float[Tensor, "3 h W"]) -> Rows:
    """Round a picture, or a strip of it, to 8 bits a channel; numbers outside [0, 1] are clamped."""
    return rearrange((picture.clamp(0, 1) * 255).round().byte(), "c h w -> h w c").cpu().numpy()


def to_image(picture: Float[Tensor, "3 H W"]) -> "Image":
    """Round a picture to 8 bits a channel; numbers outside [0, 1] are clamped."""
    from PIL import Image

    return Image.fromarray(to_rows(picture))


@final
class SmallCopy:
    """A smaller copy of a picture, which is made of its strips as they pass. A pixel is the mean of a square of pixels.

    Args:
        size: width and height of the picture, in pixels.
        side: the most pixels along a side of the copy.
    """

    def __init__(self, size: tuple[int, int], side: int) -> None:
        self._factor = -(-max(size) // side)
        self._made: list[Tensor] = []
        self._rest = torch.empty(3, 0, size[0])

    def add(self, strip: Float[Tensor, "3 h W"]) -> None:
        """Add the next strip, from the top."""
        strip = torch.cat([self._rest.to(strip), strip], dim=1)
        whole = strip.shape[1] // self._factor * self._factor
        self._shrink(strip[:, :whole])
        self._rest = strip[:, whole:].clone()

    @property
    def image(self) -> "Image":
        """The copy, once all strips are added."""
        self._shrink(self._rest)
        self._rest = self._rest[:, :0]
        return to_image(torch.cat(self._made, dim=1))

    def _shrink(self, rows: Tensor) -> None:
        if rows.shape[1]:
            high = min(self._factor, rows.shape[1])
            self._made.append(nn.functional.avg_pool2d(rows.clamp(0, 1), (high, self._factor), ceil_mode=True).cpu())


def is_whole(picture: Path, latents: Path | None = None) -> bool:
    """Whether the files that `save` and `save_latents` wrote are there, and complete.

    The checksums of a PNG are compared. Other formats have none: of a TIFF all tiles must be in the file, of a Deep Zoom
    picture all tiles must be there, and a film or a WebP must end where its format says.

    Args:
        picture: a PNG, a TIFF, a WebP, a film or a Deep Zoom picture.
        latents: the file of the latents; None if there need be none.
    """
    from safetensors.torch import load_file

    try:
        kinds = {".tif": _has_parts, ".tiff": _has_parts, deepzoom.ENDING: lambda path: deepzoom.read(path).is_whole}
        kinds |= dict.fromkeys(films.ENDINGS, films.is_whole)
        whole = kinds.get(picture.suffix.lower(), _has_checksums)(picture)
        return whole and (latents is None or "latents" in load_file(latents))
    except Exception:  # a damaged file can break its reader anywhere
        return False


def _has_checksums(picture: Path) -> bool:
    """Whether each chunk of a PNG up to the last has its checksum. Pillow's `verify` skips that of the last one."""
    with picture.open("rb") as file:
        kind, same = b"", file.read(8) == b"\x89PNG\r\n\x1a\n"
        while same and kind != b"IEND":
            length, kind = int.from_bytes(file.read(4)), file.read(4)
            same = zlib.crc32(file.read(length), zlib.crc32(kind)).to_bytes(4) == file.read(4)
    return same


def _has_parts(picture: Path) -> bool:
    """Whether all strips or tiles of a TIFF lie in its file, at each of its scales."""
    from PIL.TiffImagePlugin import TiffImageFile
    from PIL.TiffTags import TAGS_V2

    end, names = picture.stat().st_size, {name: tag for tag, (_, name, *_) in TAGS_V2.items()}
    with unbounded(), closing(TiffImageFile(picture)) as image:
        for frame in range(image.n_frames):
            image.seek(frame)
            kind = "Tile" if names["TileOffsets"] in image.tag_v2 else "Strip"
            starts, counts = (image.tag_v2[names[f"{kind}{what}"]] for what in ("Offsets", "ByteCounts"))
            if not starts or any(start + count > end for start, count in zip(starts, counts, strict=True)):
                return False
    return True


def sheet_size(sizes: Sequence[tuple[int, int]], width: int = _SHEET) -> tuple[int, int]:
    """Width and height of the contact sheet of pictures with these widths and heights."""
    _, _, rows = _arranged(sizes, width)
    return width, sum(rows)


def contact_sheet(panoramas: Sequence[Panorama], width: int = _SHEET) -> "Image":
    """Put all pictures on one sheet, each above its prompt and seed. Wide pictures stand one below the other.

    Args:
        panoramas: one or more.
        width: of the sheet, in pixels.
    """
    from PIL import Image, ImageDraw, ImageFont

    pictures = [panorama.image for panorama in panoramas]
    columns, heights, rows = _arranged([panorama.size for panorama in panoramas], width)
    cell = width // columns
    font = ImageFont.load_default(12)
    sheet = Image.new("RGB", (width, sum(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for k, (image, panorama) in enumerate(zip(pictures, panoramas, strict=True)):
        left, top = k % columns * cell, sum(rows[: k // columns])
        sheet.paste(image.resize((cell, heights[k]), Image.Resampling.LANCZOS), (left, top))
        prompt, seed = panorama.recipe["prompt"], panorama.recipe["seed"]
        text = f"{prompt if isinstance(prompt, str) else 'regions'}, seed {seed}"
        draw.text((left + 4, top + heights[k] + 2), text[: cell // 7], fill="black", font=font)
    return sheet


def _arranged(sizes: Sequence[tuple[int, int]], width: int) -> tuple[int, list[int], list[int]]:
    """The columns of a contact sheet, the height of each picture on it, and the height of each row with its captions."""
    columns = max(1, min(len(sizes), round(4 * max(high / wide for wide, high in sizes))))
    heights = [max(1, round(high * (width // columns) / wide)) for wide, high in sizes]
    return columns, heights, [max(heights[k : k + columns]) + _CAPTION for k in range(0, len(heights), columns)]
