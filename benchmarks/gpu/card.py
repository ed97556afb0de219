"""The device: its name, the most that it can do, and how time and memory are read on it."""

import gc
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, final

import torch

from panokit.settings import Precision

PEAKS = {
    "A100": 312.0,
    "A10": 125.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "H200": 989.0,
    "L40S": 362.0,
    "L4": 121.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
    "V100": 125.0,
    "T4": 65.0,
}
"""Dense matrix products in half precision with sums in float32, in TFLOP/s, as their makers' data sheets say."""


@final
@dataclass(frozen=True)
class Card:
    """A CUDA device, or the CPU in its place.

    Attributes:
        device: where the networks are.
    """

    device: torch.device

    @classmethod
    def of(cls, kind: str) -> "Card":
        """The first device of a kind, `cuda` or `cpu`."""
        return cls(torch.device("cuda", 0) if kind == "cuda" else torch.device(kind))

    @property
    def cuda(self) -> bool:
        """Whether it is a CUDA device."""
        return self.device.type == "cuda"

    @property
    def name(self) -> str:
        """What its maker calls it."""
        return torch.cuda.get_device_name(self.device) if self.cuda else "CPU"

    @property
    def peak(self) -> float | None:
        """The most TFLOP/s in half precision; None if this card is not in the table."""
        return peak_of(self.name)

    @property
    def half(self) -> Precision:
        """The half precision that it computes in without emulation."""
        if self.cuda and torch.cuda.get_device_capability(self.device) < (8, 0):
            return "16-true"
        return "bf16-true"

    def facts(self) -> dict[str, Any]:
        """What a reader must know of it."""
        if not self.cuda:
            return {"card": self.name, "threads": torch.get_num_threads()}
        properties = torch.cuda.get_device_properties(self.device)
        cudnn: Any = torch.backends.cudnn
        return {
            "card": self.name,
            "memory GB": properties.total_memory / 1e9,
            "capability": f"{properties.major}.{properties.minor}",
            "peak TFLOP/s": self.peak,
            "driver": _driver(),
            "CUDA": torch.version.cuda,
            "cuDNN": cudnn.version(),
        }

    def synchronize(self) -> None:
        """Wait until all kernels are done."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object]) -> float:
        """The seconds that some work takes, to the end of its last kernel."""
        self.synchronize()
        began = time.perf_counter()
        work()
        self.synchronize()
        return time.perf_counter() - began

    def clear(self) -> None:
        """Free what nobody holds on a CUDA device, and count the peaks of memory from here on."""
        if self.cuda:
            gc.collect()
            with suppress(RuntimeError):  # a device that has failed raises at every call: the checks say so
                torch.cuda.synchronize(self.device)
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(self.device)

    def used(self) -> float | None:
        """GB that tensors take now; None on a CPU."""
        return torch.cuda.memory_allocated(self.device) / 1e9 if self.cuda else None

    def most(self) -> float | None:
        """The most GB that tensors took at once since `clear`; None on a CPU."""
        return torch.cuda.max_memory_allocated(self.device) / 1e9 if self.cuda else None

    def reserved(self) -> int:
        """The most bytes that torch took from the device since `clear`."""
        return torch.cuda.max_memory_reserved(self.device)

    @contextmanager
    def limited(self, memory: float) -> Iterator[None]:
        """Inside, torch may take so many bytes of the device in all."""
        total = torch.cuda.get_device_properties(self.device).total_memory
        torch.cuda.set_per_process_memory_fraction(memory / total, self.device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, self.device)


def peak_of(name: str) -> float | None:
    """The most TFLOP/s of a card in half precision; None if it is not in the table, or is a part of a card."""
    if "MIG" in name:
        return None
    return next((peak for model, peak in PEAKS.items() if re.search(rf"\b{model}\b", name)), None)


@contextmanager
def exact() -> Iterator[None]:
    """Inside, float32 is float32. By its own choice torch computes convolutions of float32 in TF32, which has 10 bits."""
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products


@contextmanager
def deterministic() -> Iterator[None]:
    """Inside, torch takes kernels whose sums have one order, where it has such kernels."""
    before, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)


def _driver() -> str | None:
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=20, check=True).stdout.split("\n")[0].strip()
    except (OSError, subprocess.SubprocessError):
        return None
