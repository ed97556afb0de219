"""The files of films. MP4 and WebM are encoded by FFmpeg, through PyAV, and WebP by Pillow. All carry their recipe.

A WebP keeps every bit of the frames. MP4 and WebM keep colours in a quarter of the pixels, as players expect, and are a tenth
as large. The same frames and recipe make the same bytes, on any number of cores.
"""

import io
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from fractions import Fraction
from importlib import import_module
from itertools import pairwise, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, final

from panokit import boxes
from panokit import recipe as recipes
from panokit.errors import OutputError, SettingError, reason_of
from panokit.files import FILMS, check_format, try_files, write_picture, written_aside
from panokit.recipe import KEY, embedded, texts, unbounded
from panokit.settings import FASTEST

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    Frames = NDArray[np.uint8]
    """The frames of a film, `T H W 3`, with 8 bits a channel."""

ENDINGS = (".mp4", ".webm", ".webp")
"""The endings of films' files."""
LARGEST = 1 << 30
"""The most pixels of all frames of a film that is read."""
MOST = 1 << 16
"""The most frames of such a film."""
_FPS = 16
"""Frames a second of a film whose recipe does not say it."""
_SLOWEST = 0.01
"""The fewest frames a second."""
_AV = 18
"""The least version of av. Earlier ones convert colours in swscale's quick ways alone."""
_THREADS = 4
"""Threads of an encoder. Another number may give other bytes, so it is not that of the cores."""
_ON_SHEET, _CAPTION = 12, 20
"""The most frames of a sheet, and pixels of the height of a line on it."""


@final
class _Format(NamedTuple):
    """How films of an ending are written.

    Attributes:
        name: FFmpeg's name of the format.
        encoder: FFmpeg's name of the encoder.
        side: the most pixels along a side.
        options: options of the encoder.
        of_format: options of the format. Without `bitexact` the file has random numbers in it.
    """

    name: str
    encoder: str
    side: int
    options: Mapping[str, str]
    of_format: Mapping[str, str]


# x264 without trees of macroblocks: with them it reads memory that it did not write, and bytes differ from run to run.
_FORMATS = {
    ".mp4": _Format(
        "mp4",
        "libx264",
        16_384,
        {"crf": "10", "preset": "medium", "x264-params": "mbtree=0"},
        {"fflags": "+bitexact", "movflags": "+faststart"},
    ),
    ".webm": _Format(
        "webm",
        "libvpx-vp9",
        16_384,
        {"crf": "6", "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"},
        {"fflags": "+bitexact"},
    ),
}
_WEBP = {"lossless": True, "quality": 20, "method": 1}


def is_film(path: str | os.PathLike[str]) -> bool:
    """Whether the ending of a file names a format of films. A WebP may also be a picture."""
    return Path(path).suffix.lower() in ENDINGS


def frames_of(recipe: Mapping[str, Any]) -> int:
    """How many frames the film of a recipe has; 1 for a picture. Anybody may have written the recipe."""
    frames = recipe.get("frames")
    return max(1, frames) if isinstance(frames, int) else 1


def fps_of(recipe: Mapping[str, Any]) -> int | float:
    """How many frames a second the film of a recipe has. Anybody may have written the recipe."""
    fps = recipe.get("fps")
    return fps if isinstance(fps, int | float) and _SLOWEST <= fps <= FASTEST else _FPS


def loops(recipe: Mapping[str, Any]) -> bool:
    """Whether the last frame of the film of a recipe leads to the first. Anybody may have written the recipe."""
    wrap = recipe.get("wrap")
    return isinstance(wrap, str) and "t" in wrap


def ending() -> str:
    """The ending of a film that nobody named: .mp4, or .webp where no MP4 can be written."""
    return ".mp4" if _has_encoder(_FORMATS[".mp4"].encoder) else ".webp"


def check_film(path: str | os.PathLike[str], size: tuple[int, int], frames: int) -> Path:
    """Check that a film can be written to a file. Call it before a long run, and again after it.

    Args:
        path: the file, whose ending names the format.
        size: width and height of the film, in pixels.
        frames: how many it has.

    Returns:
        The path.

    Raises:
        OutputError: the format holds no films or not this one, the folder is missing, or the file cannot be written.
        SettingError: a package is missing that writes such a film.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in ENDINGS:
        raise OutputError(
            f"cannot write {path}: its ending {path.suffix!r} holds no film, and this is one of {frames} frames: use {FILMS}, "
            "or make a picture, with frames=1"
        )
    if kind == ".webp":
        check_format(path, size)
    else:
        _check_encoded(path, size, _FORMATS[kind])
    try_files({str(path): path})
    return path


def _check_encoded(path: Path, size: tuple[int, int], form: _Format) -> None:
    if max(size) > form.side:
        raise OutputError(
            f"cannot write {path}: its format holds {form.side} pixels a side, and the film is {size[0]} x {size[1]}"
        )
    if form.name == "mp4" and (size[0] % 2 or size[1] % 2):
        raise OutputError(
            f"cannot write {path}: players of MP4 need an even width and height, and the film is {size[0]} x {size[1]}: "
            "use .webm or .webp"
        )
    if not _has_av():
        raise SettingError(
            f"cannot write {path}: a film in this format needs av {_AV} or later, which is not installed: "
            'pip install "panokit[films]", or write .webp'
        )
    if not _has_encoder(form.encoder):
        raise SettingError(
            f"cannot write {path}: the FFmpeg of av has no encoder {form.encoder}: install av from PyPI, whose FFmpeg has it, "
            "or write .webp"
        )


def write(path: Path, frames: "Frames", fps: int | float, recipe: Mapping[str, Any]) -> None:
    """Write a film whole, or not at all.

    Args:
        path: the file, whose ending names the format.
        frames: the frames, `T H W 3`, with 8 bits a channel.
        fps: frames a second, from 0.01 to 1000.
        recipe: what the file carries; nothing if it is empty.

    Raises:
        OutputError: the film cannot be written.
        SettingError: a package is missing that writes such a film, the frames are no frames, or `fps` is out of its range.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype.name != "uint8" or 0 in frames.shape:
        raise SettingError(
            f"frames came as {frames.dtype} of shape {frames.shape}: a film is uint8, frames x height x width x 3"
        )
    if not _SLOWEST <= fps <= FASTEST:
        raise SettingError(f"fps is {fps}: it must be from {_SLOWEST} to {FASTEST} frames a second")
    check_film(path, (frames.shape[2], frames.shape[1]), len(frames))
    form = _FORMATS.get(path.suffix.lower())
    with written_aside(path) as aside:
        if form is None:
            _write_webp(aside, frames, fps, _WEBP | (embedded(recipe, "WEBP") if recipe else {}))
        else:
            _encode(aside, form, frames, fps, texts(recipe) if recipe else {})


def write_preview(path: Path, frames: "Frames", fps: int | float) -> None:
    """Write a preview of a film: a film too if the ending names one, else a sheet of its frames.

    Args:
        path: the file.
        frames: the frames, `T H W 3`, with 8 bits a channel.
        fps: frames a second.

    Raises:
        OutputError: the ending is unknown, or the file cannot be written.
    """
    if is_film(path):
        write(path, frames, fps, {})
    else:
        write_picture(path, film_sheet(frames, fps=fps))


def as_webp(frames: "Frames", fps: int | float) -> bytes:
    """A film as the bytes of a small WebP, for a page. It loses a little.

    Args:
        frames: the frames, `T H W 3`, with 8 bits a channel.
        fps: frames a second.
    """
    file = io.BytesIO()
    _write_webp(file, frames, fps, {"quality": 85})
    return file.getvalue()


def _write_webp(file: Path | io.BytesIO, frames: "Frames", fps: int | float, options: Mapping[str, Any]) -> None:
    from PIL import Image

    first, *others = map(Image.fromarray, frames)
    ends = [round(1000 * (k + 1) / fps) for k in range(len(frames))]  # in whole milliseconds, without drift
    durations = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    first.save(file, "WEBP", save_all=True, append_images=others, duration=durations, loop=0, **options)


def _encode(aside: Path, form: _Format, frames: "Frames", fps: int | float, kept: Mapping[str, str]) -> None:
    import av
    from av.error import FFmpegError

    rate = Fraction(fps).limit_denominator(1001)
    try:
        with av.open(f"file:{aside}", "w", format=form.name, options=dict(form.of_format)) as file:
            for name, keyword in {"comment": KEY, "description": "parameters"}.items():
                if keyword in kept:
                    file.metadata[name] = kept[keyword]
            stream = file.add_stream(form.encoder, rate=rate, options=dict(form.options))
            stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
            coder = stream.codec_context
            coder.thread_count = _THREADS
            # BT.709, with which browsers show a film whatever its size.
            coder.colorspace = coder.color_primaries = coder.color_trc = coder.color_range = 1
            for k, frame in enumerate(_to_yuv(frames)):
                frame.pts, frame.time_base = k, 1 / rate
                file.mux(stream.encode(frame))
            file.mux(stream.encode())
    except FFmpegError as cause:
        raise OSError(cause.strerror or reason_of(cause)) from cause


def _to_yuv(frames: "Frames") -> Iterator[Any]:
    import numpy as np
    from av import VideoFrame

    for frame in frames:
        yield VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24").reformat(
            format="yuv420p",
            dst_colorspace="ITU709",
            src_color_range="JPEG",
            dst_color_range="MPEG",
            interpolation=_interpolation(),
        )


def _interpolation() -> int:
    """How swscale converts colours. Its quicker ways are off by one of 255 shades on average."""
    from av.video.reformatter import Interpolation as By

    return int(By.BICUBIC | By.ACCURATE_RND | By.FULL_CHR_H_INT | By.FULL_CHR_H_INP | By.BITEXACT)


def read_frames(path: Path) -> "Frames":
    """Read the frames of a film, `T H W 3`, with 8 bits a channel. FFmpeg decodes MP4 and WebM, and Pillow WebP.

    A WebP holds a frame once that is the same as the ones after it. How many they are is known from its recipe, or from the
    other frames.

    Args:
        path: the file, whose ending names the format.

    Raises:
        SettingError: there is no such film, it has too many pixels, or a package is missing that reads it.
    """
    import numpy as np

    if not is_film(path):
        raise SettingError(f"{path} cannot be read as a film: give a {FILMS} file")
    if not path.is_file():
        raise SettingError(f"there is no film {path}")
    made, pixels = list["Frames"](), 0
    try:
        for frame in _of_webp(path) if path.suffix.lower() == ".webp" else _decoded(path):
            made.append(frame)
            pixels += frame.shape[0] * frame.shape[1]
            _require_fit(path, pixels)
            if len(made) > MOST:
                raise SettingError(f"{path} has more than {MOST} frames: give a shorter film")
        return np.stack(made)
    except SettingError:
        raise
    except Exception as cause:  # a damaged file can break its reader anywhere
        raise SettingError(f"{path} is damaged, and cannot be read as a film: {reason_of(cause)}") from cause


def _require_fit(path: Path, pixels: int) -> None:
    if pixels > LARGEST:
        raise SettingError(f"{path} has more than {LARGEST} pixels, all frames together: give a shorter or smaller film")


def _of_webp(path: Path) -> Iterator["Frames"]:
    """The frames. One that is the same as the one before is none of its own in the file: that one lasts longer."""
    import numpy as np
    from PIL import Image

    with unbounded():
        image = Image.open(path, formats=("WEBP",))
    kept, ends = list["Frames"](), [0]
    with image:
        for k in range(getattr(image, "n_frames", 1)):
            _require_fit(path, image.width * image.height * (k + 1))
            image.seek(k)
            kept.append(np.asarray(image.convert("RGB")))
            ends.append(ends[-1] + max(1, image.info.get("duration", 1)))
    shortest = min(end - start for start, end in pairwise(ends))
    count = max(len(kept), _frames_noted(path) or round(ends[-1] / shortest))
    places = [round(end * count / ends[-1]) for end in ends]
    for frame, (start, end) in zip(kept, pairwise(places), strict=True):
        yield from repeat(frame, max(1, end - start))


def _frames_noted(path: Path) -> int:
    """How many frames the recipe in a film says that it has; 0 if it says nothing."""
    with suppress(SettingError):
        return frames_of(kept) if "frames" in (kept := recipes.read(path)) else 0
    return 0


def _decoded(path: Path) -> Iterator["Frames"]:
    if not _has_av():
        raise SettingError(
            f'{path}: to read a film needs av {_AV} or later, which is not installed: pip install "panokit[films]"'
        )
    import av

    # A file object in place of a name: whatever the file says, FFmpeg opens no other.
    with path.open("rb") as source, av.open(source, format="mp4" if path.suffix.lower() == ".mp4" else "matroska") as file:
        stream = file.streams.video[0]
        _require_fit(path, stream.width * stream.height)
        for frame in file.decode(stream):
            yield frame.reformat(
                format="rgb24",
                src_colorspace="ITU709",
                src_color_range="MPEG",
                dst_color_range="JPEG",
                interpolation=_interpolation(),
            ).to_ndarray()


def film_sheet(frames: "Frames", width: int = 2048, fps: int | float | None = None) -> "Image":
    """Frames of a film on one sheet, in their order, each above its time. The first and the last are among them.

    Args:
        frames: the frames, `T H W 3`, with 8 bits a channel.
        width: of the sheet, in pixels.
        fps: frames a second; None writes the numbers of frames in the place of times.
    """
    from PIL import Image, ImageDraw, ImageFont

    count, (high, wide) = min(len(frames), _ON_SHEET), frames.shape[1:3]
    shown = [round(k * (len(frames) - 1) / max(1, count - 1)) for k in range(count)]
    columns = max(1, min(count, round(math.sqrt(count * high / wide))))
    cell = width // columns
    small = max(1, round(high * cell / wide))
    sheet = Image.new("RGB", (width, -(-count // columns) * (small + _CAPTION)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for k, frame in enumerate(shown):
        left, top = k % columns * cell, k // columns * (small + _CAPTION)
        sheet.paste(Image.fromarray(frames[frame]).resize((cell, small), Image.Resampling.LANCZOS), (left, top))
        text = f"frame {frame + 1}" if fps is None else f"{frame / fps:.2f} s"
        draw.text((left + 4, top + small + 2), text, fill="black", font=font)
    return sheet


def is_whole(path: Path) -> bool:
    """Whether the file of a film ends where its format says. It may raise anything if the file is damaged."""
    if boxes.is_boxed(path):
        return boxes.read(path).whole
    with path.open("rb") as file:
        head, length = file.read(12), path.stat().st_size
    return head[:4] == b"RIFF" and head[8:] == b"WEBP" and int.from_bytes(head[4:8], "little") + 8 == length


def _has_av() -> bool:
    """Whether av is installed, in a version that converts colours exactly."""
    try:
        version = import_module("av").__version__
    except (ImportError, OSError):  # the package is missing, or a library that it calls
        return False
    return int(version.partition(".")[0]) >= _AV


def _has_encoder(name: str) -> bool:
    """Whether av is installed, and its FFmpeg has an encoder."""
    with suppress(ValueError):
        if _has_av():
            import_module("av.codec").Codec(name, "w")
            return True
    return False
