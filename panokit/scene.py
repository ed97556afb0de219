"""A scene: what is painted. Texts for the whole canvas or for its regions, and pictures that are laid on it."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, cast, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from panokit.errors import SettingError
from panokit.pixels import label, read
from panokit.windows import Projected, Windows, sampled

Number = int | float
Box = tuple[Number, Number, Number, Number]
"""Left, top, right and bottom, relative to the canvas, from 0 to 1."""
LEAST = 1 / 256
"""A smaller share of a text in a cell counts as none."""


@final
@dataclass(frozen=True, eq=False)
class Region:
    """A part of the canvas with a text of its own.

    Attributes:
        area: a box `(left, top, right, bottom)`, relative to the canvas, from 0 to 1; or a mask, which is white in the region:
            a file, a picture of Pillow, or a tensor. A mask is stretched over the canvas.
        text: what to paint there.
        negative_prompt: what to avoid there; None for the negative prompt of the scene.
        weight: None if the region lies on top of earlier ones. Where regions with weights overlap, their predictions are mixed
            in these proportions.
        ip_adapter_image: for a model with an IP-Adapter, a picture that shows how the region is to look: a file, a picture of
            Pillow, or a tensor; None for that of the scene.
        guidance_scale: how strongly the text guides, as `Scene.guidance_scale`; None for that of the scene.

    Raises:
        SettingError: a box is empty or leaves the canvas, the weight is not above 0, or the guidance scale is not finite.
    """

    area: Any
    text: str
    negative_prompt: str | None = None
    weight: Number | None = None
    ip_adapter_image: Any = None
    guidance_scale: Number | None = None

    def __post_init__(self) -> None:
        scale = self.guidance_scale
        if scale is not None and not (isinstance(scale, Number) and math.isfinite(scale)):
            raise SettingError(f"the guidance_scale of the region {self.text!r:.80} is {scale!r}: it must be a number")
        if self.weight is not None and not self.weight > 0:
            raise SettingError(f"the weight of the region {self.text!r:.80} is {self.weight}: it must be above 0")
        if isinstance(self.area, list):
            object.__setattr__(self, "area", tuple(self.area))
        if self.is_mask:
            return
        left, top, right, bottom = self.area if len(self.area) == 4 else (1, 1, 0, 0)
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise SettingError(
                f"the box {self.area} of the region {self.text!r:.80} is empty or leaves the canvas: "
                "(left, top, right, bottom) are relative, 0 <= left < right <= 1 and 0 <= top < bottom <= 1"
            )

    def _key(self) -> tuple[Any, ...]:
        area = self.area if isinstance(self.area, tuple | str) else id(self.area)  # tensors have no single truth value
        image = self.ip_adapter_image if isinstance(self.ip_adapter_image, str | None) else id(self.ip_adapter_image)
        return area, self.text, self.negative_prompt, self.weight, image, self.guidance_scale

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Region) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    @property
    def is_mask(self) -> bool:
        """Whether the area is a mask, and no box."""
        return not isinstance(self.area, tuple)

    def over(self, size: tuple[int, ...], places: Float[Tensor, "2 *size"] | None = None) -> Float[Tensor, "*size"]:
        """How much of each cell of a canvas the region covers, from 0 to 1. A box covers the cells whose centre it contains.

        Args:
            size: cells of the canvas.
            places: where each cell lies on the picture, as `Projected.places` says; None if the canvas is a plane.
        """
        if self.is_mask:
            pixels, _ = read(self.area, f"the mask of the region {self.text!r:.80}")
            if not pixels.any():
                raise SettingError(
                    f"the mask of the region {self.text!r:.80} is black everywhere: it must be white in the region"
                )
            mask = pixels.mean(0)[None]
            if places is not None:
                return sampled(mask, places)[0]
            return nn.functional.interpolate(mask[None], size=size, mode="area")[0, 0]
        left, top, right, bottom = self.area
        if places is None:
            row, column = ((torch.arange(cells, dtype=torch.float64) + 0.5) / cells for cells in size)
            row = row[:, None]
        else:
            row, column = places
        return ((row >= top) & (row < bottom) & (column >= left) & (column < right)).float()


@final
@dataclass(frozen=True)
class Regions:
    """A prompt with a text for each region. Regions without a weight lie on top of earlier ones.

    Attributes:
        regions: the regions: `Region`, or pairs of a box and a text.
        elsewhere: the text of cells in no region.
        mix: `cells`: in a window, the predictions for the texts are mixed by their share of each cell, and the window costs a
            pass for each text that has a share in it. `windows`: a window has one text, the one with the largest share; texts
            meet where windows overlap.

    Raises:
        SettingError: there is no region, or `mix` is another text.
    """

    regions: tuple[Region | Sequence[Any], ...]
    elsewhere: str = ""
    mix: Literal["cells", "windows"] = "cells"

    def __post_init__(self) -> None:
        if self.mix not in ("cells", "windows"):
            raise SettingError(f"mix of the regions is {self.mix!r}: it must be cells or windows")
        if not self.regions:
            raise SettingError("Regions came without a region: give at least one ((left, top, right, bottom), text)")
        made = tuple(region if isinstance(region, Region) else Region(*region) for region in self.regions)
        object.__setattr__(self, "regions", made)

    @property
    def parts(self) -> tuple[Region, ...]:
        """The regions."""
        return cast("tuple[Region, ...]", self.regions)

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts: `elsewhere`, then the texts of the regions in order."""
        return (self.elsewhere, *(region.text for region in self.parts))

    def maps(self, size: tuple[int, ...], places: Float[Tensor, "2 *size"] | None = None) -> Float[Tensor, "k *size"]:
        """The share of each text in each cell of a canvas. The shares of a cell sum to 1.

        Args:
            size: cells of a canvas of two axes, or of a film's three: then the regions are the same at each time.
            places: where each cell lies on the picture, as `Projected.places` says; None if the canvas is a plane.

        Raises:
            SettingError: the canvas has another number of axes, a mask cannot be read, or a region with a weight overlaps one
                without.
        """
        if places is None and len(size) == 3:
            return self.maps(size[1:])[:, None].expand(-1, *size)
        if places is None and len(size) != 2:
            raise SettingError(
                f"regions lie on a canvas of two axes, and this one has {len(size)}: give one text for all of it"
            )
        opaque, weighted = torch.zeros(2, len(self.texts), *size)
        cover = torch.zeros(size)  # by regions with a weight
        for k, region in enumerate(self.parts, start=1):
            area = region.over(size, places)
            if region.weight is None:
                opaque *= 1 - area
                opaque[k] = area
            else:
                weighted[k] = region.weight * area
                cover = torch.maximum(cover, area)
        if ((opaque.sum(0) > 0.5) & (cover > 0.5)).any():
            raise SettingError(
                "a region with a weight overlaps one without, which would lie on top of it: give both a weight, or neither"
            )
        maps = opaque + (1 - opaque.sum(0)) * cover * weighted / weighted.sum(0).clamp(min=1e-12)
        maps[0] = (1 - maps[1:].sum(0)).clamp(min=0)
        return maps

    def read(self) -> "tuple[Regions, dict[str, str]]":
        """Read all masks and pictures, once for a run.

        Returns:
            The regions with tensors in their place, and the SHA-256 of each by its place in plain data.

        Raises:
            SettingError: one cannot be read.
        """
        regions, hashes = [], {}
        for k, region in enumerate(self.parts):
            if region.is_mask:
                pixels, hashes[f"prompt.regions.{k}.mask"] = read(region.area, f"the mask of the region {region.text!r:.80}")
                region = replace(region, area=pixels)
            if region.ip_adapter_image is not None:
                name = f"the ip_adapter_image of the region {region.text!r:.80}"
                pixels, hashes[f"prompt.regions.{k}.ip_adapter_image"] = read(region.ip_adapter_image, name)
                region = replace(region, ip_adapter_image=pixels)
            regions.append(region)
        return replace(self, regions=tuple(regions)), hashes

    def as_data(self, hashes: Mapping[str, str]) -> dict[str, Any]:
        """The regions as plain data, for recipes. A mask is its file, or the SHA-256 of its pixels.

        Args:
            hashes: what `read` returned.
        """
        rest = {"elsewhere": self.elsewhere, **({"mix": self.mix} if self.mix != "cells" else {})}
        if not any(region.is_mask or region != Region(region.area, region.text) for region in self.parts):
            return {"boxes": [[list(region.area), region.text] for region in self.parts], **rest}
        regions = []
        for k, region in enumerate(self.parts):
            digest = hashes.get(f"prompt.regions.{k}.mask", "")
            area: dict[str, Any] = {"mask": label(region.area, digest)} if region.is_mask else {"box": list(region.area)}
            names = ("text", "negative_prompt", "weight", "guidance_scale")
            more: dict[str, Any] = {name: getattr(region, name) for name in names}
            if region.ip_adapter_image is not None:
                more["ip_adapter_image"] = label(
                    region.ip_adapter_image, hashes.get(f"prompt.regions.{k}.ip_adapter_image", "")
                )
            regions.append({**area, **{name: value for name, value in more.items() if value is not None}})
        return {"regions": regions, **rest}


Prompt = str | Regions
"""What to paint: one text for the whole canvas, or a text for each region."""


class Mixture(NamedTuple):
    """Which texts some windows need. A window has an entry for each of its texts, one after another.

    Attributes:
        rows: for each entry, the position of its window.
        texts: for each entry, the position of its text in `Scene.texts`.
        shares: for each entry, the share of the text in each cell, `m 1 *window`; None if every window has one text.
        scales: for each entry, the strength of classifier-free guidance; 1 or less turns it off.
    """

    rows: list[int]
    texts: list[int]
    shares: Float[Tensor, "m 1 *window"] | None
    scales: list[float]

    def mix(self, preds: Float[Tensor, "m *c_window"]) -> Float[Tensor, "n *c_window"]:
        """Mix the predictions of the entries into one for each window.

        Args:
            preds: the prediction for each entry, `m c *window`.

        Returns:
            The predictions of the windows, `n c *window`.
        """
        if self.shares is None:
            return preds
        return _summed(self.shares.to(preds) * preds, self.rows)


@final
@dataclass(frozen=True)
class Scene:
    """What is painted. `Denoiser.encode` turns it into embeddings.

    Attributes:
        prompt: a text for the whole canvas, or `Regions`.
        negative_prompt: what to avoid; an empty text for nothing.
        guidance_scale: strength of classifier-free guidance; 1 or less turns it off. Regions may have their own.
        guidance_end: the share of the steps after which classifier-free guidance is off, in [0, 1].
        fields: pictures that lie on the canvas, by name, such as a control picture: `c H W`, each stretched over the canvas.
        ip_adapter_image: how everything is to look, `3 H W` of any size in [0, 1]; None for no such picture.

    Raises:
        SettingError: a text holds bytes that are no UTF-8, such as a command line in another encoding.
    """

    prompt: Prompt
    negative_prompt: str = ""
    guidance_scale: float = 1.0
    fields: Mapping[str, Tensor] = field(default_factory=dict)
    ip_adapter_image: Tensor | None = None
    guidance_end: float = 1.0

    def __post_init__(self) -> None:
        for text in (*self.texts, *self.negatives):
            try:
                text.encode()
            except UnicodeEncodeError:
                raise SettingError(f"the text {text!r:.80} holds bytes that are no UTF-8: write it in that encoding") from None

    @property
    def ip_adapter_images(self) -> tuple[Tensor | None, ...]:
        """The picture for an IP-Adapter, for each of `texts`: that of its region, or that of the scene; None for neither."""
        regions = () if isinstance(self.prompt, str) else self.prompt.parts
        own = (region.ip_adapter_image for region in regions)
        return (self.ip_adapter_image, *(self.ip_adapter_image if image is None else image for image in own))

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts: one, or those of the regions."""
        return (self.prompt,) if isinstance(self.prompt, str) else self.prompt.texts

    @property
    def negatives(self) -> tuple[str, ...]:
        """What to avoid, for each of `texts`."""
        if isinstance(self.prompt, str):
            return (self.negative_prompt,)
        own = (region.negative_prompt for region in self.prompt.parts)
        return (self.negative_prompt, *(self.negative_prompt if text is None else text for text in own))

    @property
    def guidance_scales(self) -> tuple[float, ...]:
        """How strongly each of `texts` guides."""
        regions = () if isinstance(self.prompt, str) else self.prompt.parts
        own = (region.guidance_scale for region in regions)
        return tuple(float(self.guidance_scale if scale is None else scale) for scale in (None, *own))

    def maps(self, windows: Windows) -> Float[Tensor, "k *size"] | None:
        """The share of each text in each cell of a canvas; None if there is one text. A denoiser keeps them for each size.

        Args:
            windows: those of the canvas.
        """
        if isinstance(self.prompt, str):
            return None
        return self.prompt.maps(windows.size, windows.places() if isinstance(windows, Projected) else None)

    def mixture(self, maps: Float[Tensor, "k *size"] | None, windows: Windows, index: Sequence[int]) -> Mixture:
        """Which texts some windows need, with their shares.

        Args:
            maps: what `maps` returned for the canvas.
            windows: where the windows lie.
            index: their numbers.
        """
        scales = self.guidance_scales
        if maps is None:
            return Mixture([*range(len(index))], [0] * len(index), None, [*scales] * len(index))
        shares = windows.crop(maps, index)
        if isinstance(self.prompt, Regions) and self.prompt.mix == "windows":
            cells = shares.flatten(2).sum(2).flip(1)  # of equal shares the later one counts, which lies on top
            texts = (len(maps) - 1 - cells.argmax(1)).tolist()
            return Mixture([*range(len(index))], texts, None, [scales[k] for k in texts])
        present = (shares >= LEAST).flatten(2).any(2).tolist()
        pairs = [(row, k) for row, texts in enumerate(present) for k, there in enumerate(texts) if there]
        rows, texts = [row for row, _ in pairs], [k for _, k in pairs]
        strengths = [scales[k] for k in texts]
        if len(rows) == len(index):
            return Mixture(rows, texts, None, strengths)
        chosen = shares[rows, texts]
        return Mixture(rows, texts, (chosen / _summed(chosen, rows)[rows])[:, None], strengths)

    def crop(self, name: str, windows: Windows, index: Sequence[int], factor: int = 1) -> Tensor:
        """The part of a field that some windows cover, by the same crop as the canvas.

        Args:
            name: of the field.
            windows: where the windows lie, perhaps on a smaller canvas.
            index: their numbers.
            factor: how many times finer than a cell the result is: 8 for the pixels of Stable Diffusion.

        Returns:
            The crops, `n c *window`, with `factor` times the cells of a window along each axis.
        """
        if isinstance(windows, Projected):
            return windows.views(self.fields[name], factor)[list(index)]
        fine = windows.refined(factor) if factor > 1 else windows
        return fine.crop(self.stretched(name, fine), index)

    def stretched(self, name: str, windows: Windows) -> Float[Tensor, "*c_size"]:
        """A field on a canvas, stretched over it. A denoiser keeps it for each size.

        Args:
            name: of the field.
            windows: those of the canvas.
        """
        picture, size = self.fields[name], windows.size
        if isinstance(windows, Projected):
            return sampled(picture, windows.places())
        if tuple(picture.shape[-2:]) == size:
            return picture
        return nn.functional.interpolate(picture[None], size=size, mode="bilinear", antialias=True)[0]


@final
@dataclass(frozen=True)
class Mixtures:
    """The mixtures of texts on the canvases of a run. The shares on each canvas are computed once.

    Attributes:
        scene: what is painted.
        maps: the shares of the texts on each canvas, by its size, from when they are first asked for.
    """

    scene: Scene
    maps: dict[tuple[int, ...], Tensor | None] = field(default_factory=dict)

    def of(self, windows: Windows, index: Sequence[int]) -> Mixture:
        """Which texts some windows need; see `Scene.mixture`."""
        if windows.size not in self.maps:
            self.maps[windows.size] = self.scene.maps(windows)
        return self.scene.mixture(self.maps[windows.size], windows, index)


def _summed(entries: Tensor, rows: Sequence[int]) -> Tensor:
    """The sum of the entries of each window, which follow one another."""
    return torch.stack([part.sum(0) for part in entries.split([*Counter(rows).values()])])
