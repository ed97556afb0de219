"""The pictures that panoramas are compared with: the model's own, or those of a folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from panokit.errors import SettingError
from panokit.jobs import words_of

Window = tuple[int, int]


def grouped(prompts: Sequence[str], paths: Sequence[Path]) -> Mapping[str, list[Path]]:
    """The pictures that each prompt is compared with: those named after it, where every prompt has some; else all."""
    found = {prompt: [path for path in paths if path.name.startswith(f"{words_of(prompt)}-")] for prompt in prompts}
    return found if all(found.values()) else {prompt: [*paths] for prompt in prompts}


def given(folder: str, window: Window) -> list[Path]:
    """The pictures of a folder.

    Args:
        folder: where they are.
        window: their size, height and width.

    Raises:
        SettingError: there are none, or one is no picture, or of another size.
    """
    endings = Image.registered_extensions()
    try:
        found = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in endings)
    except OSError as cause:
        raise SettingError(f"the reference folder {folder} cannot be read: {cause.strerror}") from cause
    if not found:
        raise SettingError(f"the reference folder {folder} holds no pictures: put some there, or leave it out")
    for path in found:
        try:
            with Image.open(path) as image:
                size = image.height, image.width
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as cause:
            raise SettingError(f"{path} in the reference folder cannot be read as a picture: remove it") from cause
        if size != window:
            raise SettingError(
                f"{path} is {size[1]} x {size[0]} pixels: references must be as large as the model's window, {window[1]} x "
                f"{window[0]}; resize them"
            )
    return found
