"""Paintings: what is painted on the page, as masks. For regions each colour stands for a text."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

COLOURS = {"red": "#e5484d", "yellow": "#f5c518", "green": "#30a46c", "blue": "#3e63dd"}
"""The colours that regions are painted with."""
SIZE = (800, 200)
"""Width and height of the sheet that regions are painted on, which is stretched over the canvas."""


def mask_of(painted: Mapping[str, Any] | None, size: tuple[int, int]) -> Image.Image | None:
    """What is painted over a picture, in white; None if nothing is.

    Args:
        painted: the value of an editor.
        size: width and height of the mask.
    """
    layer = _layer(painted)
    where = layer[..., 3] > 127
    return Image.fromarray(where.astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST) if where.any() else None


def areas_of(painted: Mapping[str, Any] | None) -> dict[str, Image.Image]:
    """What is painted with each colour, in white, by the names of the colours; without those that nothing is painted with.

    Args:
        painted: the value of an editor.
    """
    layer = _layer(painted)
    palette = np.array([_rgb(colour) for colour in COLOURS.values()])
    nearest = np.abs(layer[..., None, :3].astype(int) - palette).sum(-1).argmin(-1)  # a stroke has softer colours at its edge
    areas = {name: (nearest == k) & (layer[..., 3] > 127) for k, name in enumerate(COLOURS)}
    return {name: Image.fromarray(area.astype(np.uint8) * 255) for name, area in areas.items() if area.any()}


def painting(areas: Mapping[str, Image.Image], sheet: Image.Image | None = None) -> dict[str, Any]:
    """The value of an editor that shows areas.

    Args:
        areas: masks by the names of their colours, white where the colour is.
        sheet: the picture below; None for a white sheet.
    """
    sheet = (sheet or Image.new("RGB", SIZE, "white")).convert("RGBA")
    layer = Image.new("RGBA", sheet.size)
    for name, area in areas.items():
        layer.paste(Image.new("RGBA", sheet.size, COLOURS[name]), mask=area.resize(sheet.size, Image.Resampling.NEAREST))
    return {"background": sheet, "layers": [layer] if areas else [], "composite": Image.alpha_composite(sheet, layer)}


def _layer(painted: Mapping[str, Any] | None) -> Any:
    """All layers of an editor as one, `H W 4`."""
    layers: Sequence[Image.Image] = (painted or {}).get("layers") or []
    whole = Image.new("RGBA", layers[0].size if layers else (1, 1))
    for layer in layers:
        whole = Image.alpha_composite(whole, layer.convert("RGBA").resize(whole.size))
    return np.asarray(whole)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
