"""Equirectangular pictures: columns are longitudes, rows are latitudes, and viewers show them from inside the sphere.

A viewer knows such a picture by its XMP, in Google's schema GPano. It stands in a PNG as `iTXt`, in a JPEG as `APP1`, in a WebP
as a chunk, and in a TIFF as an entry. A recipe says by `projection` that its picture is one.
"""

from collections.abc import Mapping
from typing import Any

from panokit.errors import SettingError

PROJECTION = "equirectangular"
"""The projection of such a picture, in a recipe and in GPano."""
KEYWORD = "XML:com.adobe.xmp"
"""The keyword of XMP in a PNG."""
_PACKET = """<?xpacket begin="\N{ZERO WIDTH NO-BREAK SPACE}" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:GPano="http://ns.google.com/photos/1.0/panorama/"
{properties}/>
</rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""


def check_size(size: tuple[int, int], name: str = "the picture") -> None:
    """Check that a picture may show all directions: it is twice as wide as it is high.

    Args:
        size: width and height in pixels.
        name: what the picture is called in the error.

    Raises:
        SettingError: it has other proportions.
    """
    width, height = size
    if height < 1 or width != 2 * height:
        raise SettingError(
            f"{name} has {width} x {height} pixels: an equirectangular picture is twice as wide as it is high; a flat panorama "
            "shows no whole sphere"
        )


def packet(size: tuple[int, int]) -> str:
    """The XMP of a picture that shows the whole sphere.

    Args:
        size: width and height in pixels.

    Raises:
        SettingError: it is not twice as wide as it is high.
    """
    check_size(size)
    width, height = size
    properties = {
        "ProjectionType": PROJECTION,
        "UsePanoramaViewer": "True",
        "FullPanoWidthPixels": width,
        "FullPanoHeightPixels": height,
        "CroppedAreaImageWidthPixels": width,
        "CroppedAreaImageHeightPixels": height,
        "CroppedAreaLeftPixels": 0,
        "CroppedAreaTopPixels": 0,
    }
    return _PACKET.format(properties="\n".join(f'GPano:{name}="{value}"' for name, value in properties.items()))


def packet_of(recipe: Mapping[str, Any]) -> str | None:
    """The XMP of the picture that a recipe makes; None if that shows no whole sphere. A picture is never lost for its XMP.

    Args:
        recipe: the recipe.
    """
    width, height = recipe.get("width", 0), recipe.get("height", 0)
    whole = recipe.get("projection") == PROJECTION and 0 < width == 2 * height
    return packet((width, height)) if whole else None
