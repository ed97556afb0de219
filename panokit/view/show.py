"""From the files of pictures to a page of them: which are shown, and how each of them comes into the page."""

import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from panokit import boxes, deepzoom, recipe
from panokit.equirectangular import PROJECTION
from panokit.errors import FallbackWarning, SettingError
from panokit.files import AREA, SIDE, try_files, written_aside
from panokit.opening import decoded, opened
from panokit.plain import check_depth
from panokit.view import tiles
from panokit.view.page import Form, page
from panokit.view.picture import (
    SPHERE,
    VIDEOS,
    Data,
    Picture,
    encoded,
    kind_of,
    moves,
    size_of,
    sphere_of,
    upright,
    within,
)

if TYPE_CHECKING:
    from PIL.Image import Image

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".ppm", *boxes.ENDINGS, deepzoom.ENDING)
"""The endings of the files in a folder that are shown."""
MOST = 8
"""The most pictures that are shown side by side. More make a gallery."""
_FILM = 1 << 26
"""The most bytes of a film in a page. The page names the file of a larger one."""
_AT_ONCE = 2
"""The most pictures that are decoded at once: each may take 3 GB of memory, or 4."""
_SMALL = 320
"""Pixels along a small picture's longer side."""


def write(files: Sequence[str], out: str | None = None) -> Path:
    """Write a page of pictures.

    Args:
        files: pictures, or folders of pictures. A folder, or many pictures, make a gallery.
        out: the file of the page; None for a new one among the temporary files.

    Returns:
        The file of the page.

    Raises:
        SettingError: there is no such file, or no picture among them.
        OutputError: the page cannot be written.
    """
    paths, form = _listed(files)
    if out is not None and Path(out).suffix.lower() not in (".html", ".htm"):
        raise SettingError(f"--out came as {out}: the page is HTML, so name it NAME.html")
    if out is not None:
        try_files({"--out": Path(out)})
    place = Path(out) if out is not None else Path(mkdtemp(prefix="panokit-view-")) / "view.html"
    names = _names(paths)
    with ExitStack() as stack:
        if out is None:
            stack.callback(_remove_if_empty, place.parent)
        aside: Callable[[], Path] = partial(_entered_once, stack, place, [])
        if form == "gallery":
            pictures, problems = _sorted(_at_once([partial(_small, path, names[path], place) for path in paths]))
        else:
            tasks = [partial(_whole, path, names[path], place, k, aside) for k, path in enumerate(paths)]
            pictures, problems = _sorted(map(_attempt, tasks))
        if not pictures:
            others = f"; and {len(problems) - 1} more" if len(problems) > 1 else ""
            raise SettingError(f"there is no picture to show: {problems[0]}{others}")
        for problem in problems:
            warnings.warn(f"{problem}; it is left out", FallbackWarning, stacklevel=2)
        with written_aside(place) as file:
            file.write_text(page(pictures, form, problems), encoding="utf-8", newline="\n")
    return place


def _listed(files: Sequence[str]) -> tuple[list[Path], Form]:
    """The files to show, and how."""
    if not files:
        raise SettingError("there is no picture to show: name a picture, several, or a folder of pictures")
    paths: list[Path] = []
    for path in map(Path, files):
        if not path.exists():
            raise SettingError(f"there is no picture {path}: name a file or a folder that is there")
        paths += _in_folder(path) if path.is_dir() else [path]
    gallery = any(map(os.path.isdir, files)) or len(paths) > MOST
    return list(dict.fromkeys(paths)), "gallery" if gallery else "pictures"


def _in_folder(folder: Path) -> list[Path]:
    """The pictures in a folder, by name; numbers in names count as numbers."""
    try:
        pictures = [path for path in folder.iterdir() if path.suffix.lower() in ENDINGS and not path.name.startswith(".")]
    except OSError as cause:
        raise SettingError(f"the folder {folder} cannot be read: {cause.strerror}") from cause
    if not pictures:
        raise SettingError(f"the folder {folder} holds no pictures: name one that holds {', '.join(ENDINGS[:4])} files")
    return sorted(pictures, key=_in_order)


def _in_order(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d{1,18})", path.name)]


def _names(paths: Sequence[Path]) -> Mapping[Path, str]:
    """What stands above each picture: the name of its file, or its whole path where two files have one name."""
    count = Counter(path.name for path in paths)
    return {path: _printable(path.name if count[path.name] == 1 else str(path)) for path in paths}


def _printable(name: str) -> str:
    """A file's name without characters that no text can have."""
    return name.encode(errors="replace").decode()


def _sorted(made: Iterable[Picture | str]) -> tuple[list[Picture], list[str]]:
    """The pictures, and what is wrong with the others."""
    every = list(made)
    return [one for one in every if isinstance(one, Picture)], [one for one in every if isinstance(one, str)]


def _at_once(tasks: Sequence[Callable[[], Picture]]) -> Iterator[Picture | str]:
    """The results of many tasks, a few of which are done at once."""
    from tqdm import tqdm

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        yield from tqdm(pool.map(_attempt, tasks), total=len(tasks), desc="pictures", leave=False, disable=None)


def _attempt(task: Callable[[], Picture]) -> Picture | str:
    try:
        return task()
    except SettingError as error:
        return str(error)


def _recipe(path: Path) -> dict[str, Any] | None:
    """The recipe in a file; None if there is none, or if it is damaged."""
    try:
        kept = recipe.read(path)
        check_depth(kept, "the recipe")
    except (SettingError, RecursionError):
        return None
    return kept


def _whole(path: Path, name: str, place: Path, number: int, aside: Callable[[], Path]) -> Picture:
    """A picture whose pixels are in the page, or in tiles beside it.

    Args:
        path: its file.
        name: what stands above it.
        place: the file of the page.
        number: which picture of the page it is.
        aside: makes the folder for tiles.
    """
    if deepzoom.is_deep_zoom(path):
        made = deepzoom.read(path)
        source, kept = tiles.source(made, f"{_address(made.folder, place)}/"), _recipe(path)
        note = (
            "tiles are shown flat: of a .png of this sphere you see the inside"
            if kept and kept.get("projection") == PROJECTION
            else ""
        )
        return Picture(name=name, size=made.size, recipe=kept, tiles=source, note=note)
    if boxes.is_boxed(path):
        return _film(path, name, place, inside=path.exists() and path.stat().st_size <= _FILM)
    with opened(path) as image:
        known: dict[str, Any] = {"name": name, "size": size_of(image), "recipe": _recipe(path), "sphere": sphere_of(image)}
        if moves(image):
            known |= {"sphere": None, "film": "image"}
        if known["sphere"] is None and _is_too_large(image.size) and tiles.can_be_made():
            return Picture(**known, tiles=tiles.tiled(path, aside(), number, place))
        data, note = _in_page(image, path, sphere=known["sphere"] is not None)
    if note and known["sphere"] is None:  # a sphere has no tiles
        note += '. pip install "panokit[tiles]" shows all of them'
        warnings.warn(f"{path}: {note}", FallbackWarning, stacklevel=2)
    return Picture(**known, data=data, note=note)


def _film(path: Path, name: str, place: Path, *, inside: bool) -> Picture:
    """A film that the browser plays. It is not decoded here.

    Args:
        path: its file.
        name: what stands above it.
        place: the file of the page.
        inside: whether its file is in the page. The page names the file of any other film.
    """
    notes = boxes.read(path)
    if not notes.whole or 0 in notes.size:
        raise SettingError(f"{path} is damaged, and cannot be played to its end")
    shown: dict[str, Any] = (
        {"data": Data(VIDEOS[path.suffix.lower()], path.read_bytes())} if inside else {"url": _address(path, place)}
    )
    return Picture(name=name, size=notes.size, recipe=_recipe(path), film="video", **shown)


def _is_too_large(size: tuple[int, int], side: int = SIDE) -> bool:
    """Whether browsers do not show a picture of this width and height as one."""
    return max(size) > side or size[0] * size[1] > AREA


def _in_page(image: "Image", path: Path, *, sphere: bool) -> tuple[Data, str]:
    """The bytes of a picture for the page, and a note if it is shown smaller.

    Args:
        image: the picture, opened.
        path: its file.
        sphere: whether it is drawn as a sphere, for which fewer pixels are possible.
    """
    side = SPHERE if sphere else SIDE
    if _is_too_large(image.size, side):
        shown = within(upright(decoded(image, path)), side, AREA)
        width, height = size_of(image)
        note = f"its {width} x {height} pixels are shown as {shown.size[0]} x {shown.size[1]}"
        return encoded(shown, "JPEG", quality=92), note
    kind = kind_of(image)
    if kind is None:
        return encoded(upright(decoded(image, path))), ""
    decoded(image, path)  # the page must not show half a picture
    return Data(kind, path.read_bytes()), ""


def _small(path: Path, name: str, place: Path) -> Picture:
    """A picture of a gallery: small in the page, and whole where its file is."""
    if deepzoom.is_deep_zoom(path):
        made = deepzoom.read(path)
        with opened(made.small(_SMALL)) as tile:
            thumbnail = _thumbnail(upright(decoded(tile, path)))
        note = "a browser does not show such a file: panokit view with this file alone shows its tiles"
        return Picture(name=name, size=made.size, recipe=_recipe(path), thumbnail=thumbnail, note=note)
    if boxes.is_boxed(path):
        return _film(path, name, place, inside=False)
    with opened(path) as image:
        size, kind, is_sphere = size_of(image), kind_of(image), sphere_of(image) is not None
        film: Literal["", "image"] = "image" if moves(image) else ""
        if _is_too_large(image.size) and tiles.can_be_made():
            small = upright(tiles.small(path, _SMALL))
        else:
            image.draft("RGB", (2 * _SMALL, 2 * _SMALL))
            small = upright(decoded(image, path))
    note = "panokit view with this file alone shows it from inside the sphere" if is_sphere else ""
    note = note if kind else "a browser does not show files of this format: this is a small version"
    return Picture(
        name=name,
        size=size,
        recipe=_recipe(path),
        film=film,
        url=_address(path, place) if kind else None,
        thumbnail=_thumbnail(small),
        note=note,
    )


def _thumbnail(image: "Image") -> Data:
    """A small version of a picture for a gallery."""
    image.thumbnail((_SMALL, _SMALL))
    return encoded(image, "JPEG", quality=80)


def _address(path: Path, place: Path) -> str:
    """The address of a picture's file for a page: relative if it is in the folder of the page, so that both may move."""
    whole, folder = path.resolve(), place.resolve().parent
    if whole.is_relative_to(folder):
        return quote(os.fsencode(whole.relative_to(folder).as_posix()))
    return whole.as_uri()


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _entered_once(stack: ExitStack, place: Path, entered: list[Path]) -> Path:
    """The folder for tiles, which is made when the first picture needs it."""
    if not entered:
        entered.append(stack.enter_context(tiles.folder_aside(place)))
    return entered[0]
