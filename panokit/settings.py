"""What a panorama can be asked for, in words that import nothing: the command line needs them before torch is there."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from inspect import Parameter, signature
from typing import Any, Literal, final, get_args

from panokit.errors import SettingError
from panokit.hints import fitted, make

Precision = Literal["32-true", "64-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true"]
Attention = Literal["auto", "sdpa", "xformers", "sliced"]
Wrap = bool | Literal["x", "y", "xy"]

NUMERICS = ("micro_batch", "guided_micro_batch", "checkpointing", "attention", "channels_last", "compile")
"""Runtime settings that change rounding, and so must be kept to reproduce a picture bit for bit."""


@final
@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a call of a sampler takes besides the prompt.

    Attributes:
        height: Pixels, a multiple of the codec's factor; one window of the model unless given.
        width: Pixels, likewise; four windows of the model unless given.
        negative_prompt: What to keep away from.
        steps: Denoising steps, 1 or more.
        guidance_scale: Strength of classifier-free guidance (Ho & Salimans 2022); 1 or less turns it off.
        stride: Pixels from one window to the next; half a window unless given.
        wrap: Close the panorama to a ring: true or x sideways, y up and down, xy both.
        seed: Seed of everything random, from 0 to 2^64 - 1. Same seed, same picture.

    Raises:
        SettingError: a value of another type, or out of its range.
    """

    height: int | None = None
    width: int | None = None
    negative_prompt: str = ""
    steps: int = 50
    guidance_scale: float = 7.5
    stride: int | None = None
    wrap: Wrap = False
    seed: int = 0

    def __post_init__(self) -> None:
        _fit_fields(self)
        if not math.isfinite(self.guidance_scale):
            raise SettingError(f"guidance_scale is {self.guidance_scale}: it must be a number; 1 or less turns guidance off")
        if self.steps < 1:
            raise SettingError(f"steps is {self.steps}: at least 1 denoising step is needed")
        if not 0 <= self.seed < 1 << 64:
            raise SettingError(f"seed is {self.seed}: it must be from 0 to {(1 << 64) - 1}")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Settings":
        """The settings that a mapping names.

        Raises:
            SettingError: there is no setting of that name, or a value cannot work.
        """
        for name in settings:
            if name not in SETTINGS:
                raise SettingError(unknown_option(str(name), SETTINGS))
        return make(cls, settings)

    @property
    def wraps(self) -> tuple[bool, bool]:
        """Whether the canvas is a ring up and down, and sideways."""
        axes = ("x" if self.wrap else "") if isinstance(self.wrap, bool) else self.wrap
        return "y" in axes, "x" in axes

    def as_data(self) -> dict[str, Any]:
        """The settings by name."""
        return asdict(self)


SETTINGS = tuple(entry.name for entry in fields(Settings))
"""Their names."""


def takes_settings(function: Callable[..., Any]) -> Callable[..., Any]:
    """Show the settings by name in the signature of a function that takes them as `**settings`, for `help` and notebooks."""
    named = [parameter for parameter in signature(function).parameters.values() if parameter.kind is not Parameter.VAR_KEYWORD]
    named += [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in signature(Settings).parameters.values()]
    function.__signature__ = signature(function).replace(parameters=named)  # type: ignore[attr-defined]
    return function


Part = str | dict[str, Any]
"""A plugin in plain data: its name, or a mapping of `plugin`, its name, and settings."""


@final
@dataclass(frozen=True, kw_only=True)
class Composition:
    """What makes a panorama, in plain data.

    Attributes:
        model: An installed model, a folder in diffusers' format, or a hub id.
        scheduler: Such as ddim, euler, dpm++_2m, unipc; --scheduler.options.eta=1 sets an option of it.
        fuser: What joins the windows; --fuser.SETTING=VALUE sets something of it.
        guidances: What keeps the windows in agreement; --guidances+=NAME adds one, --guidances.SETTING=VALUE sets something of
            the last one, --guidances.help NAME shows what there is to set.

    Raises:
        SettingError: a value is of another type.
    """

    model: str = "landscapes"
    scheduler: Part = "ddim"
    fuser: Part = "multidiffusion"
    guidances: list[Part] = field(default_factory=list)

    def __post_init__(self) -> None:
        _fit_fields(self)


@final
@dataclass(frozen=True)
class Execution:
    """How networks compute, where they have a choice. It changes memory, speed and rounding, and nothing else.

    Attributes:
        checkpointing: whether guided passes compute activations again instead of keeping them.
        attention: `auto` is torch's SDPA; `sliced` takes less memory and more time; `xformers` needs CUDA.
        compile: whether torch compiles the network's repeated blocks.

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
        """What is not left at its default."""
        plain = Execution()
        return {name: value for name, value in asdict(self).items() if value != getattr(plain, name)}


def _fit_fields(settings: Any) -> None:
    """Give every field of a frozen dataclass the type that it says."""
    for name, value in fitted(type(settings), vars(settings)).items():
        object.__setattr__(settings, name, value)


def unknown_option(name: str, names: Collection[str], dashes: str = "") -> str:
    """What to say about an option that does not exist: the closest one, or all."""
    close = get_close_matches(name.lstrip("-"), names, n=1)
    others = "see --help" if dashes else f"there are {', '.join(sorted(names))}"
    return f"there is no option {name}: {f'did you mean {dashes}{close[0]}?' if close else others}"
