"""The options of `panokit generate` that are neither a call's settings nor its parts, by what they are about."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, final

from panokit.errors import SettingError
from panokit.hints import fitted
from panokit.settings import Attention, Precision


@final
@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What to paint, and how often.

    Attributes:
        prompt: The same as a word without an option; in configurations a text, a list, or boxes with texts.
        prompts: A file with a prompt a line.
        seed: Same seed, same picture; 1..8 makes one of each.
        jobs: A file of jobs, one a line as JSON, {"prompt": "a lake", "seed": 3}, with what differs from the options given.
            Pictures that are there are left, and a job that fails does not keep the others.
        part: Which share of the jobs, for several machines that know nothing of each other; 2/8 is the second of eight.
    """

    prompt: str | list[Any] | dict[str, Any] | None = None
    prompts: str | None = None
    seed: int | str = 0
    jobs: str | None = None
    part: str = "1/1"

    def __post_init__(self) -> None:
        fitted(type(self), vars(self))

    @property
    def all(self) -> list[tuple[Any, int]]:
        """Every prompt with every seed.

        Raises:
            SettingError: there is no prompt, the file cannot be read, or the seed is neither a number nor a range.
        """
        prompts = self.prompt if isinstance(self.prompt, list) else [] if self.prompt is None else [self.prompt]
        prompts = [*prompts, *(lines_of(self.prompts) if self.prompts else [])]
        if not prompts:
            raise SettingError("there is no prompt: say what to paint, or name a file of prompts with --prompts")
        return list(product(prompts, _seeds(self.seed)))


@final
@dataclass(frozen=True, kw_only=True)
class Devices:
    """Where networks run, and how.

    Attributes:
        devices: How many devices of each machine to deal the windows to, or the prompts, if there are as many; auto for all.
        num_nodes: How many machines.
        timeout: Seconds that a device waits for another.
        precision: Precision of the networks.
        micro_batch: Windows that go through the model at once.
        guided_micro_batch: The same where guidance goes back through the model; as many unless given.
        checkpointing: Save memory in guided steps, for time.
        attention: How attention is computed; auto is SDPA, xformers needs CUDA, sliced saves memory.
        channels_last: Keep channels last in memory, for speed.
        offload: Let networks take turns on the device, for one that does not hold them all.
        compile: Compile the model's repeated blocks, which takes a while.
    """

    devices: int | Literal["auto"] = 1
    num_nodes: int = 1
    timeout: float = 300.0
    precision: Precision = "32-true"
    micro_batch: int = 8
    guided_micro_batch: int | None = None
    checkpointing: bool = False
    attention: Attention = "auto"
    channels_last: bool = False
    offload: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        for name, value in fitted(type(self), vars(self)).items():
            object.__setattr__(self, name, value)

    def as_data(self) -> Mapping[str, Any]:
        """The arguments of a `Runtime`."""
        return asdict(self)


def text_of(path: str, what: str, form: str) -> str:
    """What a file holds, in UTF-8.

    Args:
        path: the file.
        what: what it is to hold, for the error.
        form: what to give instead, for the error.

    Raises:
        SettingError: it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        why = getattr(cause, "strerror", None) or cause
        raise SettingError(f"the {what} in {path} cannot be read ({why}): {form}") from cause


def lines_of(path: str) -> list[str]:
    """The prompts in a file."""
    lines = [line.strip() for line in text_of(path, "prompts", "give a text file with a prompt a line").splitlines()]
    prompts = [line for line in lines if line]
    if not prompts:
        raise SettingError(f"{path} holds no prompt: write one a line")
    return prompts


def _seeds(seed: int | str) -> list[int]:
    """One seed, or all from first to last, `1..8`."""
    span = re.fullmatch(r"(\d{1,20})\.\.(\d{1,20})", f"{seed}..{seed}" if isinstance(seed, int) else seed.strip())
    first, last = map(int, span.groups()) if span else (1, 0)
    if not 0 <= last - first < 10_000 or last >= 1 << 64:
        raise SettingError(
            f"seed is {seed!s:.80}: it must be a whole number from 0 to {(1 << 64) - 1}, or a range of up to 10000 such as 1..8"
        )
    return list(range(first, last + 1))
