"""Pictures as tensors, from files, from Pillow, or from tensors."""

import hashlib
import io
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from panokit.errors import SettingError


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
    from PIL import Image, ImageOps

    if isinstance(source, Tensor):
        pixels = source.detach().cpu().float()
        pixels = pixels.expand(3, *pixels.shape) if pixels.ndim == 2 else pixels
        if pixels.ndim != 3 or len(pixels) != 3 or not ((pixels >= 0) & (pixels <= 1)).all():
            raise SettingError(
                f"{name} came as a tensor {tuple(source.shape)}: it must be 3 H W, or H W, with numbers from 0 to 1"
            )
        return pixels, hashlib.sha256(pixels.numpy().tobytes()).hexdigest()
    if isinstance(source, Image.Image):
        image, digest = source, hashlib.sha256(source.tobytes()).hexdigest()
    elif isinstance(source, str | Path):
        if str(source).startswith("sha256:"):
            raise SettingError(f"the recipe's {name} was given in Python and is in no file: pass it again, {name}=FILE")
        path = Path(source).expanduser()
        try:
            data = path.read_bytes()
        except OSError as cause:
            raise SettingError(f"{name} {source} cannot be read: {cause.strerror or cause}") from cause
        try:
            image = Image.open(io.BytesIO(data))
            image.load()
        except Exception as cause:  # a damaged file can break its reader anywhere
            raise SettingError(f"{name} {source} is no picture that can be read: give a PNG, JPEG or WebP file") from cause
        digest = hashlib.sha256(data).hexdigest()
    else:
        raise SettingError(f"{name} came as a {type(source).__name__}: give a file, a picture of Pillow, or a tensor 3 H W")
    from torchvision.transforms.functional import pil_to_tensor

    return pil_to_tensor(ImageOps.exif_transpose(image).convert("RGB")).float() / 255, digest


def label(source: Any, digest: str = "") -> str:
    """How settings and recipes name a picture: by its file, or by its SHA-256."""
    return str(source) if isinstance(source, str | Path) else f"sha256:{digest}"
