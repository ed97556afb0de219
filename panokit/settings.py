"""The settings of panokit as plain data. This module imports no torch, so the command line starts quickly."""

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from inspect import Parameter, signature
from typing import Any, Literal, final, get_args

from panokit.errors import SettingError
from panokit.hints import fitted, make

Precision = Literal["32-true", "64-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true"]
Attention = Literal["auto", "sdpa", "xformers", "sliced"]
Wrap = bool | Literal["x", "y", "xy", "t", "xt", "yt", "xyt"]
LOOPS = ("t", "xt", "yt", "xyt")
"""Values of wrap that make a film a loop."""

FASTEST = 1000
"""The most frames a second of a film. A WebP counts milliseconds."""
NUMERICS = (
    "micro_batch",
    "guided_micro_batch",
    "checkpointing",
    "attention",
    "channels_last",
    "compile",
    "tile",
    "tile_overlap",
)
"""Runtime settings that change rounding, and so must be kept to reproduce a picture bit for bit."""


def steadier(precision: str) -> str:
    """What to try where numbers in a precision have become NaN or infinity, in words."""
    other = {"32-true": "64-true", "64-true": "", "bf16-mixed": "32-true"}.get(precision, "32-true or bf16-mixed")
    return f"the precision {other}" if other else "weights that are whole"


@final
@dataclass(frozen=True, kw_only=True)
class Settings:
    """Size, steps and other settings of one picture.

    Attributes:
        height: Height in pixels, a multiple of the codec's factor. The default is one window of the model.
        width: Width in pixels, a multiple of the codec's factor. The default is four windows of the model, and one of a film.
        frames: Frames of a film, for a model of films. 1 makes a picture. The default is the model's: 81 for Wan.
        fps: Frames a second at which a film is shown. The default is the model's: 16 for Wan.
        negative_prompt: What to avoid.
        steps: Number of denoising steps, 1 or more. The default is the model's: 50 for Stable Diffusion.
        guidance_scale: Strength of classifier-free guidance (Ho & Salimans 2022). The default is the model's: 7.5 for Stable
            Diffusion, where 1 or less turns it off.
        guidance_end: The share of the steps after which classifier-free guidance is off, from 0 to 1. Late steps need none:
            they are quicker without it, and details calmer (Kynkäänniemi et al. 2024).
        stride: Pixels from one window to the next, a multiple of the codec's factor. The layout decides if
            it is not set; the default layout takes half a window.
        frame_stride: Frames of a film from one window to the next, a multiple of the frames of a cell. The default is half a
            window.
        wrap: Join opposite borders, so that the panorama is a ring: true or x joins left and right, y joins top and bottom,
            xy joins both. t joins the last frame of a film to its first, so that it is a loop; xt is a loop of a ring.
        image: A picture to start from: its file. It is varied, and enlarged if it is smaller than the canvas. In Python it may
            also be a picture of Pillow or a tensor.
        strength: How much of the picture is painted over, from above 0 to 1: the share of the steps that paint. The default is
            0.8, and 1 with mask or at.
        mask: A picture as large as image. White is painted anew, and black stays as it is.
        at: Left and top, in pixels, at which image lies on a larger canvas, such as 240,48. The rest is painted around it.
        control_image: A picture for a model with a ControlNet, such as edges or depth: its file. It is stretched over the whole
            canvas, and each window is shown its part.
        ip_adapter_image: A picture for a model with an IP-Adapter: its file. It shows how the panorama is to look. Regions may
            have their own.
        seed: Seed of all random numbers, from 0 to 2^64 - 1. The same seed makes the same picture.

    Raises:
        SettingError: a value has another type, or is out of its range.
    """

    height: int | None = None
    width: int | None = None
    frames: int | None = None
    fps: int | None = None
    negative_prompt: str = ""
    steps: int | None = None
    guidance_scale: float | None = None
    guidance_end: float = 1.0
    stride: int | None = None
    frame_stride: int | None = None
    wrap: Wrap = False
    image: str | None = None
    strength: float | None = None
    mask: str | None = None
    at: str | tuple[int, int] | None = None
    control_image: str | None = None
    ip_adapter_image: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _fit_fields(self)
        if self.guidance_scale is not None and not math.isfinite(self.guidance_scale):
            raise SettingError(f"guidance_scale is {self.guidance_scale}: it must be a number")
        if not 0 <= self.guidance_end <= 1:
            raise SettingError(f"guidance_end is {self.guidance_end}: it is a share of the steps, from 0 to 1")
        if self.strength is not None and not 0 < self.strength <= 1:
            raise SettingError(f"strength is {self.strength}: it must be above 0 and up to 1, which paints everything anew")
        for name in ("strength", "mask", "at"):
            if getattr(self, name) is not None and self.image is None:
                raise SettingError(f"{name} needs a picture to start from: give image, too")
        object.__setattr__(self, "at", self.place)
        for name in ("frames", "fps", "frame_stride"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise SettingError(f"{name} is {value}: it must be 1 or more")
        if self.fps is not None and self.fps > FASTEST:
            raise SettingError(f"fps is {self.fps}: it must be from 1 to {FASTEST} frames a second")
        if self.steps is not None and self.steps < 1:
            raise SettingError(f"steps is {self.steps}: at least 1 denoising step is needed")
        if not 0 <= self.seed < 1 << 64:
            raise SettingError(f"seed is {self.seed}: it must be from 0 to {(1 << 64) - 1}")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Settings":
        """Make settings from a mapping.

        Args:
            settings: values by name; the others keep their defaults.

        Raises:
            SettingError: there is no setting of a name, or a value cannot work.
        """
        for name in settings:
            if name not in SETTINGS:
                raise SettingError(unknown_option(str(name), SETTINGS))
        return make(cls, settings)

    @property
    def wraps(self) -> tuple[bool, bool]:
        """Whether the canvas is a ring along its height, and along its width."""
        axes = ("x" if self.wrap else "") if isinstance(self.wrap, bool) else self.wrap
        return "y" in axes, "x" in axes

    @property
    def loops(self) -> bool:
        """Whether the last frame of the film is followed by its first."""
        return not isinstance(self.wrap, bool) and "t" in self.wrap

    @property
    def place(self) -> tuple[int, int] | None:
        """Left and top of the picture on the canvas; `at` may be a text, as on the command line."""
        if not isinstance(self.at, str):
            return self.at
        numbers = [text.strip() for text in self.at.strip("()[] ").split(",")]
        if len(numbers) != 2 or not all(re.fullmatch(r"-?\d{1,9}", text) for text in numbers):
            raise SettingError(f"at is {self.at!r:.80}: it must be left and top in pixels, such as 240,48")
        return int(numbers[0]), int(numbers[1])

    def as_data(self) -> dict[str, Any]:
        """The settings by name. Those of films are left out unless they are set: a picture's file is named by its recipe."""
        return {name: value for name, value in asdict(self).items() if value is not None or name not in OF_FILMS}


OF_FILMS = ("frames", "fps", "frame_stride")
"""The settings of films alone."""
SETTINGS = tuple(entry.name for entry in fields(Settings))
"""The names of the settings."""


def takes_settings(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator for a function that takes `**settings`: its signature shows the settings by name, in `help` and notebooks."""
    named = [parameter for parameter in signature(function).parameters.values() if parameter.kind is not Parameter.VAR_KEYWORD]
    named += [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in signature(Settings).parameters.values()]
    function.__signature__ = signature(function).replace(parameters=named)  # type: ignore[attr-defined]
    return function


Part = str | dict[str, Any]
"""A plugin as plain data: its name, or a mapping of `plugin`, the name, and settings."""


@final
@dataclass(frozen=True, kw_only=True)
class Composition:
    """Model and plugins.

    Attributes:
        model: The name of an installed model, a folder in diffusers' format, or a hub id. --model.SETTING=VALUE sets a setting
            of its family, such as variant.
        scheduler: The solver, such as ddim, euler, dpm++_2m or unipc; own is the model's. --scheduler.options.eta=1 sets one of
            its options. The default is the model's choice: ddim for Stable Diffusion, own for others.
        layout: The plugin that says where the windows lie. --layout.SETTING=VALUE sets one of its settings.
        fuser: The plugin that joins the windows. --fuser.SETTING=VALUE sets one of its settings.
        guidances: The plugins that keep the windows in agreement. --guidances+=NAME adds one. --guidances.SETTING=VALUE sets a
            setting of the last one, and --guidances.help NAME lists its settings.

    Raises:
        SettingError: a value has another type.
    """

    model: Part = "landscapes"
    scheduler: Part | None = None
    layout: Part = "overlap"
    fuser: Part = "multidiffusion"
    guidances: list[Part] = field(default_factory=list)

    def __post_init__(self) -> None:
        _fit_fields(self)


@final
@dataclass(frozen=True)
class Execution:
    """How networks compute. This changes memory, speed and rounding, and nothing else.

    Attributes:
        checkpointing: whether guided passes compute activations again instead of keeping them.
        attention: `auto` is torch's SDPA; `sliced` takes less memory and more time; `xformers` needs CUDA.
        compile: whether torch compiles the repeated blocks of the network.

    Raises:
        SettingError: there is no such attention.
    """

    checkpointing: bool = False
    attention: Attention = "auto"
    compile: bool = False

    def __post_init__(self) -> None:
        if self.attention not in get_args(Attention):
            raise SettingError(f"attention is {self.attention!r}: it must be one of {', '.join(get_args(Attention))}")

    @property
    def chosen(self) -> dict[str, Any]:
        """The settings that differ from their defaults, by name."""
        plain = Execution()
        return {name: value for name, value in asdict(self).items() if value != getattr(plain, name)}


def _fit_fields(settings: Any) -> None:
    """Convert every field of a frozen dataclass to its type."""
    for name, value in fitted(type(settings), vars(settings)).items():
        object.__setattr__(settings, name, value)


def unknown_option(name: str, names: Collection[str], dashes: str = "") -> str:
    """The message for an option that does not exist: it offers the closest one, or all.

    Args:
        name: the option that does not exist.
        names: the options that do.
        dashes: what comes before an option on the command line; empty in Python.
    """
    close = get_close_matches(name.lstrip("-"), names, n=1)
    others = "see --help" if dashes else f"there are {', '.join(sorted(names))}"
    return f"there is no option {name}: {f'did you mean {dashes}{close[0]}?' if close else others}"
