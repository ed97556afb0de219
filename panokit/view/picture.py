"""A picture or a film on a page: how large it is, how it is shown, and what its file says about it."""

import base64
import io
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, final

from panokit.errors import SettingError
from panokit.films import loops
from panokit.settings import Settings

if TYPE_CHECKING:
    from PIL.Image import Image

SPHERE = 8192
"""The most pixels of a side that graphics processors take as one texture."""
WHOLE: Mapping[str, float] = {"haov": 360.0, "vaov": 180.0, "vOffset": 0.0}
"""The angles of a whole sphere, for pannellum: those of its width and height, and that of its centre above the horizon."""
_KINDS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "MPO": "image/jpeg"}
"""The formats that browsers show, in Pillow's names, and what browsers call them."""
VIDEOS = {".mp4": "video/mp4", ".webm": "video/webm"}
"""What browsers call the formats of films, by the endings of their files."""
_ORIENTATION, _QUARTER_TURNS = 0x0112, range(5, 9)
"""The entry of Exif that says how a camera was held, and its values for which width and height change places."""
_XMP = 1 << 20
"""The most bytes of XMP that are read."""


class Data(NamedTuple):
    """The bytes of a picture's file.

    Attributes:
        kind: its format, as browsers call it.
        content: the bytes.
    """

    kind: str
    content: bytes

    @property
    def text(self) -> str:
        """The bytes in base64."""
        return base64.b64encode(self.content).decode()

    @property
    def url(self) -> str:
        """The bytes as an address that holds all of them."""
        return f"data:{self.kind};base64,{self.text}"


@final
@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture on a page. Its pixels are in the page, in a file that the page names, or in tiles.

    Attributes:
        name: what stands above it.
        size: width and height in pixels.
        recipe: what it was made from; None if its file does not say.
        film: "video" for a film that a browser plays, and "image" for one that it shows as a picture that moves; empty for
            pictures.
        sphere: the angles that it covers if it is equirectangular, for pannellum; None if it is flat.
        data: its file, in the page.
        url: its file, beside the page.
        tiles: its tiles, as OpenSeadragon takes them.
        thumbnail: a small version, for a gallery.
        note: what to know about it, such as that it is shown smaller.
    """

    name: str
    size: tuple[int, int]
    recipe: Mapping[str, Any] | None = None
    film: Literal["", "video", "image"] = ""
    sphere: Mapping[str, float] | None = None
    data: Data | None = None
    url: str | None = None
    tiles: Mapping[str, Any] | None = None
    thumbnail: Data | None = None
    note: str = ""
    wraps: tuple[bool, bool] = field(init=False)
    """Whether the top joins the bottom, and the left the right. A recipe says so."""

    @property
    def loops(self) -> bool:
        """Whether it is a film that begins again at its end. A recipe says so, and films as WebP always do."""
        return self.film == "image" or (self.film == "video" and loops(self.recipe or {}))

    def __post_init__(self) -> None:
        object.__setattr__(self, "wraps", _wraps(self.recipe))


def _wraps(recipe: Mapping[str, Any] | None) -> tuple[bool, bool]:
    try:
        return Settings.of({"wrap": (recipe or {}).get("wrap") or False}).wraps
    except SettingError:  # anybody may have written the recipe
        return False, False


def kind_of(image: "Image") -> str | None:
    """What browsers call the format of a picture's file; None if they do not show it."""
    return _KINDS.get(image.format or "")


def moves(image: "Image") -> bool:
    """Whether a picture has frames that a browser shows one after another: that is a film as WebP.

    Args:
        image: the picture, opened.
    """
    return image.format == "WEBP" and getattr(image, "n_frames", 1) > 1


def size_of(image: "Image") -> tuple[int, int]:
    """Width and height of a picture as a screen shows it: upright. No pixel is decoded.

    Args:
        image: the picture, opened.
    """
    width, height = image.size
    # For a PNG without Exif before its pixels, Pillow would decode all of them to look for it.
    if image.format != "PNG" or "exif" in image.info:
        with suppress(Exception):  # anybody may have written the file
            return (height, width) if image.getexif().get(_ORIENTATION) in _QUARTER_TURNS else (width, height)
    return width, height


def upright(image: "Image") -> "Image":
    """A picture as a screen shows it: upright, in 8 bits, RGB or with transparency. Grey with 16 bits keeps its shades."""
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda shade: shade * (1 / 256)).convert("L")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def encoded(image: "Image", kind: str = "PNG", **options: Any) -> Data:
    """A picture as a file for a browser.

    Args:
        image: the picture.
        kind: the format, in Pillow's name. JPEG keeps no transparency.
        options: further arguments of Pillow's `save`.
    """
    file = io.BytesIO()
    (image.convert("RGB") if kind == "JPEG" else image).save(file, kind, **options)
    return Data(_KINDS[kind], file.getvalue())


def within(image: "Image", side: int, area: int) -> "Image":
    """A picture, or a smaller copy of it if it has too many pixels.

    Args:
        image: the picture.
        side: the most pixels of a side.
        area: the most pixels of all.
    """
    width, height = image.size
    share = min(1.0, side / max(image.size), (area / (width * height)) ** 0.5)
    return image if share == 1 else image.resize((max(1, int(width * share)), max(1, int(height * share))))


def sphere_of(image: "Image") -> dict[str, float] | None:
    """The angles that an equirectangular picture covers, as its XMP says (GPano).

    Args:
        image: the picture, opened.

    Returns:
        `haov` and `vaov`, the angles of its width and height, and `vOffset`, that of its centre above the horizon, in degrees;
        None if the picture is not equirectangular.
    """
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    text = xmp.decode("utf-8", "replace") if isinstance(xmp, bytes) else str(xmp)
    if len(text) > _XMP or _property(text, "ProjectionType") != "equirectangular":
        return None
    wide, high, left_out_above, whole_wide, whole_high = (
        _number(text, name)
        for name in (
            "CroppedAreaImageWidthPixels",
            "CroppedAreaImageHeightPixels",
            "CroppedAreaTopPixels",
            "FullPanoWidthPixels",
            "FullPanoHeightPixels",
        )
    )
    if not (0 < wide <= whole_wide and high > 0 and left_out_above + high <= whole_high):
        return {**WHOLE}
    offset = 90 - 180 * (left_out_above + high / 2) / whole_high
    return {"haov": 360 * wide / whole_wide, "vaov": 180 * high / whole_high, "vOffset": offset}


def _property(xmp: str, name: str) -> str:
    """A property of GPano in XMP, which is an attribute or an element."""
    match = re.search(rf"GPano:{name}\s*(?:=\s*[\"']|>)\s*([\w.-]{{1,40}})", xmp)
    return match[1] if match else ""


def _number(xmp: str, name: str) -> float:
    text = _property(xmp, name)
    return float(text) if re.fullmatch(r"\d{1,7}(\.\d{1,3})?", text) else 0.0
