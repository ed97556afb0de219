"""The pictures with which panoramas are compared."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from panokit.errors import OutputError, SettingError
from panokit.recipe import words_of
from panokit.study.measures import pixels


def grouped(prompts: Sequence[str], paths: Sequence[Path]) -> Mapping[str, list[Path]]:
    """Choose the reference pictures of each prompt.

    Args:
        prompts: the prompts of the study.
        paths: all reference pictures.

    Returns:
        For each prompt, the pictures that panokit named after it. If a prompt has none, every prompt gets all pictures.
    """
    by_prompt = {
        prompt: [path for path in paths if re.fullmatch(rf"{re.escape(words_of(prompt))}-\d+-[0-9a-f]{{8}}", path.stem)]
        for prompt in prompts
    }
    return by_prompt if all(by_prompt.values()) else {prompt: [*paths] for prompt in prompts}


def given(folder: str, window: tuple[int, int]) -> list[Path]:
    """List the pictures of a reference folder.

    Args:
        folder: the folder.
        window: height and width of the model's window, in pixels. All pictures must have this size.

    Returns:
        The paths of the pictures, sorted by name. Files without the ending of a picture are ignored.

    Raises:
        SettingError: the folder or a picture cannot be read, there is no picture, or one has another size.
    """
    endings = Image.registered_extensions()
    try:
        pictures = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in endings)
    except OSError as cause:
        raise SettingError(f"the reference folder {folder} cannot be read: {cause.strerror}") from cause
    if not pictures:
        raise SettingError(f"the reference folder {folder} holds no pictures: put some there, or leave reference_folder out")
    for path in pictures:
        try:
            size = pixels(path).shape[:2]
        except OutputError as cause:
            raise SettingError(f"in the reference folder, {cause}") from cause
        if size != window:
            raise SettingError(
                f"{path} is {size[1]} x {size[0]} pixels: references must be as large as the model's window, {window[1]} x "
                f"{window[0]}; resize them"
            )
    return pictures
