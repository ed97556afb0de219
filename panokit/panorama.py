"""The result of a run."""

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from panokit.output import check_output, written_aside
from panokit.recipe import embedded

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

    def __reduce__(self) -> tuple[Any, ...]:
        """It goes from process to process without its device."""
        return Panorama, (self.latents.cpu(), self.image, self.recipe)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the picture; the ending names the format. It is written aside and renamed: never half a file.

        PNG, JPEG and WebP carry the recipe: `panokit rerun` makes the picture again from the file.

        Raises:
            OutputError: the ending is unknown, or the place cannot be written to.
        """
        from PIL import Image

        path = check_output(path, self.image.size)
        with written_aside(path) as aside:
            self.image.save(aside, **embedded(self.recipe, Image.registered_extensions()[path.suffix.lower()]))

    def save_latents(self, path: str | os.PathLike[str]) -> None:
        """Write the canvas that the picture was decoded from, as safetensors: `latents`, `c h w`; aside and renamed, too.

        Raises:
            OutputError: the place cannot be written to.
        """
        from safetensors.torch import save

        with written_aside(Path(path)) as aside:
            aside.write_bytes(save({"latents": self.latents.detach().cpu().contiguous()}))

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.image.save(buffer, format="png")
        return buffer.getvalue()


def to_image(picture: Float[Tensor, "3 H W"]) -> "Image":
    """A picture in [0, 1] in 8 bits a channel, rounded and clamped."""
    from PIL import Image

    return Image.fromarray(rearrange((picture.clamp(0, 1) * 255).round().byte(), "c h w -> h w c").cpu().numpy())


def contact_sheet(panoramas: Sequence[Panorama], width: int = 2048) -> "Image":
    """All pictures in one, `width` pixels wide, each over its prompt and seed; wide ones stand one below the other."""
    from PIL import Image, ImageDraw, ImageFont

    pictures = [panorama.image for panorama in panoramas]
    columns = max(1, min(len(pictures), round(4 * max(image.height / image.width for image in pictures))))
    cell, caption = width // columns, 20
    font = ImageFont.load_default(12)
    heights = [round(image.height * cell / image.width) + caption for image in pictures]
    rows = [max(heights[k : k + columns]) for k in range(0, len(heights), columns)]
    sheet = Image.new("RGB", (width, sum(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for k, (image, panorama) in enumerate(zip(pictures, panoramas, strict=True)):
        left, top = k % columns * cell, sum(rows[: k // columns])
        sheet.paste(image.resize((cell, heights[k] - caption), Image.Resampling.LANCZOS), (left, top))
        prompt, seed = panorama.recipe["prompt"], panorama.recipe["seed"]
        text = f"{prompt if isinstance(prompt, str) else 'regions'}, seed {seed}"
        draw.text((left + 4, top + heights[k] - caption + 2), text[: cell // 7], fill="black", font=font)
    return sheet
