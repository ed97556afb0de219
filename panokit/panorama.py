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
        from PIL import Image

        path = check_output(path, self.image.size)
        with written_aside(path) as aside:
            self.image.save(aside, **embedded(self.recipe, Image.registered_extensions()[path.suffix.lower()]))

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

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.image.save(buffer, format="png")
        return buffer.getvalue()


def to_image(picture: Float[Tensor, "3 H W"]) -> "Image":
    """Round a picture to 8 bits a channel; numbers outside [0, 1] are clamped."""
    from PIL import Image

    return Image.fromarray(rearrange((picture.clamp(0, 1) * 255).round().byte(), "c h w -> h w c").cpu().numpy())


def contact_sheet(panoramas: Sequence[Panorama], width: int = 2048) -> "Image":
    """Put all pictures on one sheet, each above its prompt and seed. Wide pictures stand one below the other.

    Args:
        panoramas: one or more.
        width: of the sheet, in pixels.
    """
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
