"""The result of a run."""

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from panokit.errors import OutputError

if TYPE_CHECKING:
    from PIL.Image import Image


@final
@dataclass(frozen=True, eq=False)
class Panorama:
    """A finished panorama.

    Attributes:
        latents: the canvas it was decoded from, `c h w`.
        image: the picture.
        recipe: everything needed to make it again, as plain data.
    """

    latents: Float[Tensor, "c h w"]
    image: "Image"
    recipe: Mapping[str, Any]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the picture; the ending names the format. It is written aside and renamed: never half a file.

        Raises:
            OutputError: the ending is unknown, or the place cannot be written to.
        """
        path = check_output(path, self.image.size)
        aside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
        try:
            self.image.save(aside)
            aside.replace(path)
        except (OSError, ValueError) as cause:
            reason = cause.strerror if isinstance(cause, OSError) else None
            raise OutputError(f"cannot write {path}: {reason or cause}") from cause
        finally:
            aside.unlink(missing_ok=True)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.image.save(buffer, format="png")
        return buffer.getvalue()


_FORMATS: dict[str | None, int] = {
    "PNG": 1 << 31,
    "JPEG": 65_500,
    "WEBP": 16_383,
    "TIFF": 1 << 31,
    "BMP": 1 << 31,
    "PPM": 1 << 31,
}
"""What pictures are written as, and how many pixels a side each format holds."""


def to_image(picture: Float[Tensor, "3 H W"]) -> "Image":
    """A picture in [0, 1] in 8 bits a channel, rounded and clamped."""
    from PIL import Image

    return Image.fromarray(rearrange((picture.clamp(0, 1) * 255).round().byte(), "c h w -> h w c").cpu().numpy())


def check_output(path: str | os.PathLike[str], size: tuple[int, int] = (1, 1)) -> Path:
    """The path, if a picture of `size`, (width, height), can be written there; asked before a long run as well as after it.

    Raises:
        OutputError: the ending is unknown, its format does not hold such a picture, the folder is missing, or it cannot be
            written to.
    """
    from PIL import Image

    path = Path(path)
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in _FORMATS:
        raise OutputError(f"cannot write {path}: its ending {path.suffix!r} names no picture format; try .png, .jpg or .webp")
    largest = _FORMATS[kind]
    if max(size) > largest:
        raise OutputError(f"cannot write {path}: {kind} holds {largest} pixels a side, and the picture is {size}; try .png")
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; name a file in it")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise OutputError(f"cannot write {path}: permission denied; choose another place")
    return path
