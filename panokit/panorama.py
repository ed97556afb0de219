"""The result of a run."""

import io
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from panokit.files import check_format, check_output, write_picture, written_aside
from panokit.recipe import embedded

if TYPE_CHECKING:
    from PIL.Image import Image

_SHEET, _CAPTION = 2048, 20
"""Pixels of a contact sheet's width, and of the height of a line on it."""


@final
@dataclass(frozen=True, eq=False)
class Panorama:
    """A finished panorama.

    Attributes:
        latents: the canvas that the picture was decoded from, `c h w`.
        image: the picture, RGB with 8 bits a channel.
        recipe: everything that is needed to make the picture again, as plain data.
    """

    latents: Float[Tensor, "c h w"]
    image: "Image"
    recipe: Mapping[str, Any]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the latents on the CPU: another process may not have this device."""
        return Panorama, (self.latents.cpu(), self.image, self.recipe)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the picture to a file. It is written under another name and then renamed, so there is never half a file.

        PNG, JPEG and WebP carry the recipe: `panokit rerun` makes the picture again from the file.

        Args:
            path: the file, whose ending names the format.

        Raises:
            OutputError: the ending is unknown, or the file cannot be written.
        """
        path = check_output(path, self.image.size)
        write_picture(path, self.image, **embedded(self.recipe, check_format(path)))

    def save_latents(self, path: str | os.PathLike[str]) -> None:
        """Write the latents as safetensors, as one tensor `latents`, `c h w`. There is never half a file.

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

        return cell(self.image, self.recipe)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.image.save(buffer, format="png")
        return buffer.getvalue()


def to_image(picture: Float[Tensor, "3 H W"]) -> "Image":
    """Round a picture to 8 bits a channel; numbers outside [0, 1] are clamped."""
    from PIL import Image

    return Image.fromarray(rearrange((picture.clamp(0, 1) * 255).round().byte(), "c h w -> h w c").cpu().numpy())


def is_whole(picture: Path, latents: Path | None = None) -> bool:
    """Whether the files that `save` and `save_latents` wrote are there, and complete. The picture's checksums are compared.

    Args:
        picture: a PNG.
        latents: the file of the latents; None if there need be none.
    """
    from safetensors.torch import load_file

    try:
        return _has_checksums(picture) and (latents is None or "latents" in load_file(latents))
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
    columns, heights, rows = _arranged([image.size for image in pictures], width)
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
