"""Pictures as tensors, from files, from Pillow, or from tensors."""

import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from panokit.errors import SettingError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP")
"""The formats that are read, in Pillow's names. Others can start programs, as EPS does."""


def read(source: Any, name: str) -> tuple[Float[Tensor, "3 H W"], str]:
    """Read a picture.

    Args:
        source: a file, a picture of Pillow, or a tensor `3 H W` or `H W` in [0, 1].
        name: what the picture is for, for errors.

    Returns:
        The pixels in [0, 1], and the SHA-256 of the file or the pixels.

    Raises:
        SettingError: it is no picture, or cannot be read.
    """
    from PIL import Image

    if isinstance(source, Tensor):
        pixels = source.detach().cpu().float()
        pixels = pixels.expand(3, *pixels.shape) if pixels.ndim == 2 else pixels
        if pixels.ndim != 3 or len(pixels) != 3 or not ((pixels >= 0) & (pixels <= 1)).all():
            raise SettingError(
                f"{name} came as a tensor {tuple(source.shape)}: it must be 3 H W, or H W, with numbers from 0 to 1"
            )
        return pixels, _digest(pixels)
    if isinstance(source, Image.Image):
        pixels = _pixels(source)
        return pixels, _digest(pixels)
    if not isinstance(source, str | Path):
        raise SettingError(f"{name} came as a {type(source).__name__}: give a file, a picture of Pillow, or a tensor 3 H W")
    if str(source).startswith("sha256:"):
        raise SettingError(f"the recipe's {name} was given in Python and is in no file: pass it again, {name}=FILE")
    try:
        data = Path(source).expanduser().read_bytes()
    except (OSError, ValueError, RuntimeError) as cause:  # no such file, no such name, no such home
        raise SettingError(f"{name} {source!s:.200} cannot be read: {getattr(cause, 'strerror', None) or cause}") from cause
    try:
        pixels = _pixels(Image.open(io.BytesIO(data), formats=FORMATS))
    except Exception as cause:  # a damaged file can break its reader anywhere
        raise SettingError(f"{name} {source!s:.200} is no picture that can be read: give a PNG, JPEG or WebP file") from cause
    return pixels, hashlib.sha256(data).hexdigest()


def _pixels(image: "Image") -> Float[Tensor, "3 H W"]:
    """The pixels of a picture, upright, in [0, 1]. Grey with 16 bits keeps its shades; what is transparent becomes black."""
    from PIL import Image, ImageOps
    from torchvision.transforms.functional import pil_to_tensor

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return (pil_to_tensor(image).float() / 65535).clamp(0, 1).expand(3, -1, -1)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
    return pil_to_tensor(image.convert("RGB")).float() / 255


def _digest(pixels: Tensor) -> str:
    return hashlib.sha256(repr(tuple(pixels.shape)).encode() + pixels.contiguous().numpy().tobytes()).hexdigest()


def label(source: Any, digest: str) -> str:
    """How settings and recipes name a picture: by its file, or by its SHA-256."""
    return str(source) if isinstance(source, str | Path) else f"sha256:{digest}"
