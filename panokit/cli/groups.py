"""Groups of options of `panokit generate`: prompts, devices and clusters. The others are elsewhere."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, final

from panokit.errors import SettingError
from panokit.hints import fitted
from panokit.output import Output
from panokit.settings import Attention, Precision


@final
@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What to paint.

    Attributes:
        prompt: Another way to write PROMPT. In a configuration it is a text, a list of texts, or regions.
        prompts: A file with one prompt on each line.
        seed: The same seed makes the same picture. 1..8 makes a picture with each of these seeds.
        jobs: A file with one job on each line, as JSON, such as {"prompt": "a lake", "seed": 3}. Each job sets the options
            that differ from those of the command. Existing pictures are kept, and if a job fails, the others still run.
        trust: Allow jobs to name plugins by module:Class, whose code then runs.
        part: Which part of the jobs to run, so that several machines can share them. 2/8 is the second of eight parts.
    """

    prompt: str | list[Any] | dict[str, Any] | None = None
    prompts: str | None = None
    seed: int | str = 0
    jobs: str | None = None
    trust: bool = False
    part: str = "1/1"

    def __post_init__(self) -> None:
        fitted(type(self), vars(self))
        if self.jobs is None and (self.trust or self.part != "1/1"):
            raise SettingError(f"{'trust' if self.trust else 'part'} is about the jobs of a file: give --jobs, or leave it out")

    @property
    def all(self) -> list[tuple[Any, int]]:
        """Pairs of a prompt and a seed: every prompt with every seed.

        Raises:
            SettingError: there is no prompt, the file cannot be read, or the seed is neither a number nor a range.
        """
        prompts = self.prompt if isinstance(self.prompt, list) else [] if self.prompt is None else [self.prompt]
        prompts = [*prompts, *(lines_of(self.prompts) if self.prompts else [])]
        if not prompts:
            raise SettingError("there is no prompt: write what to paint, or name a file of prompts with --prompts")
        return list(product(prompts, _seeds(self.seed)))


@final
@dataclass(frozen=True, kw_only=True)
class Devices:
    """Devices and numerics.

    Attributes:
        devices: Number of devices on each machine; auto takes all. They share the windows of a picture. With as many prompts
            as devices, each device makes pictures of its own.
        num_nodes: Number of machines.
        timeout: Seconds that a device waits for another one before the run fails.
        precision: Precision of the networks.
        micro_batch: Number of windows that go through the model at once. More is faster and needs more memory.
        guided_micro_batch: The same for steps with gradients through the model. The default is micro_batch.
        checkpointing: Use less memory and more time in steps with gradients.
        attention: The attention kernel: auto is torch's SDPA, xformers needs CUDA, sliced uses less memory and more time.
        channels_last: Store channels last in memory, which is faster on some GPUs.
        offload: Keep only one network on the device at a time, for a device with little memory.
        compile: Compile the repeated blocks of the model. The first step takes longer, later ones less.
        tile: Pixels along a side of the tiles in which a large picture is decoded. Smaller ones need less memory and more
            time. The default is 384.
        tile_overlap: Pixels around a tile that are computed with it. The default is as many as the decoder reads.
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
    tile: int | None = None
    tile_overlap: int | None = None

    def __post_init__(self) -> None:
        for name, value in fitted(type(self), vars(self)).items():
            object.__setattr__(self, name, value)

    def as_data(self) -> Mapping[str, Any]:
        """The arguments of a `Runtime`."""
        return asdict(self)


@final
@dataclass(frozen=True, kw_only=True)
class Engine:
    """Clusters.

    Attributes:
        engine: What starts the processes. panokit does so itself; ray makes the jobs of a file on a cluster of Ray, where
            devices counts the actors in all.
        address: The cluster of Ray, such as auto, HOST:PORT or ray://HOST:PORT. Without it, one is started on this machine.
        devices_per_picture: Number of devices that share one picture of Ray's.
    """

    engine: Literal["panokit", "ray"] = "panokit"
    address: str | None = None
    devices_per_picture: int = 1

    def __post_init__(self) -> None:
        fitted(type(self), vars(self))
        if self.engine != "ray" and (self.address or self.devices_per_picture != 1):
            name = "address" if self.address else "devices_per_picture"
            raise SettingError(f"{name} is about a cluster of Ray: write --engine ray too, or leave it out")

    def check(self, prompts: Prompts, devices: Devices, output: Output) -> None:
        """Check that Ray can do what the other options ask for.

        Raises:
            SettingError: it cannot.
        """
        if self.engine != "ray":
            return
        if prompts.jobs is None:
            raise SettingError("Ray makes the jobs of a file: write one on each line, and give the file, --jobs FILE")
        if devices.num_nodes != 1:
            raise SettingError(
                f"num_nodes is {devices.num_nodes}, and Ray itself finds machines: leave it out, and set devices to the number "
                "of all devices"
            )
        if output.preview:
            raise SettingError("a preview shows one picture, and actors make several at once: leave out --preview")


def text_of(path: str, what: str, form: str, errors: str = "strict") -> str:
    """Read a text file in UTF-8.

    Args:
        path: the file.
        what: what the file contains, for the error.
        form: what to write instead, for the error.
        errors: what becomes of bytes that are not UTF-8, as `open` names it.

    Raises:
        SettingError: the file cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8", errors=errors)
    except (OSError, ValueError) as cause:
        why = getattr(cause, "strerror", None) or cause
        raise SettingError(f"the {what} in {path} cannot be read ({why}): {form}") from cause


def lines_of(path: str) -> list[str]:
    """Read the prompts in a file."""
    lines = [line.strip() for line in text_of(path, "prompts", "give a text file with one prompt on each line").splitlines()]
    prompts = [line for line in lines if line]
    if not prompts:
        raise SettingError(f"{path} contains no prompt: write one on each line")
    return prompts


def _seeds(seed: int | str) -> list[int]:
    """Read one seed, or a range of seeds such as `1..8`."""
    span = re.fullmatch(r"(\d{1,20})\.\.(\d{1,20})", f"{seed}..{seed}" if isinstance(seed, int) else seed.strip())
    first, last = map(int, span.groups()) if span else (1, 0)
    if not 0 <= last - first < 10_000 or last >= 1 << 64:
        raise SettingError(
            f"seed is {seed!s:.80}: it must be a whole number from 0 to {(1 << 64) - 1}, or a range of up to 10000 such as 1..8"
        )
    return list(range(first, last + 1))
