"""What a step does outside the network: torch's operations for each window, and how often the host waits for the device.

On a GPU each operation is a kernel to launch, and each reading of a number makes the host wait until the device has caught up.
Both are counted at 1024 x 4096 pixels: 128 x 512 cells, windows of 64 cells, a stride of 32. The network returns its input.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from measuring import Bench
from panokit import DiffusersScheduler, Guidance, Run, Runtime, Sampler
from panokit_msd import HeadStart, MSDGuidance, MSDPaper
from panokit_multidiffusion import MultiDiffusion
from sides import null_model

HEIGHT, WIDTH, STRIDE = 256, 1024, 64
"""Pixels, of which the tiny decoder has two for each cell."""
STEPS = 10


class Operations(TorchDispatchMode):
    """Counts the operations that torch computes."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


class Reads:
    """Counts how often Python asks for a number that a GPU would hold: one that follows from a canvas, or from noise.

    Numbers of the schedule and of the layout do not count: they never are on a device.

    Args:
        canvas: the canvas of the run. What follows from it is on the device too.
    """

    def __init__(self, canvas: Tensor) -> None:
        self.count = 0
        self._there: set[int] = set()
        self._follow(canvas)

    def _follow(self, tensors: Any) -> None:
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor) and (key := tensor.untyped_storage()._cdata) not in self._there:
                self._there.add(key)
                weakref.finalize(tensor.untyped_storage(), self._there.discard, key)

    def _any(self, tensors: Any) -> bool:
        return any(isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata in self._there for leaf in tree_leaves(tensors))

    @contextmanager
    def open(self) -> Iterator[None]:
        """Count while it is open."""
        reads = self

        class Numbers(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                there = reads._any((args, kwargs))
                name = func.overloadpacket.__name__
                reads.count += there and name in ("_local_scalar_dense", "nonzero", "equal")
                made = func(*args, **(kwargs or {}))
                if there or name == "randn":
                    reads._follow(made)
                return made

        class Copies(TorchFunctionMode):
            def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                reads.count += getattr(func, "__name__", "") in ("tolist", "cpu", "numpy") and reads._any(args)
                return func(*args, **(kwargs or {}))

        with Numbers(), Copies():
            yield


def begun(guidances: list[Guidance], micro_batch: int, width: int = WIDTH) -> Run:
    runtime = Runtime(accelerator="cpu", micro_batch=micro_batch, guided_micro_batch=micro_batch)
    sampler = Sampler(
        null_model(), scheduler=DiffusersScheduler("ddim"), fuser=MultiDiffusion(), guidances=guidances, runtime=runtime
    )
    return sampler.begin("", height=HEIGHT, width=width, stride=STRIDE, steps=STEPS, guidance_scale=7.5)


@pytest.mark.parametrize(
    ("name", "guidances", "micro_batch", "most"),
    [
        ("no guidance", [], 1, 12),
        ("no guidance", [], 8, 12),
        ("guided without a backward pass, MSD", [MSDGuidance()], 1, 44),
        ("guided without a backward pass, MSD", [MSDGuidance()], 8, 44),
        ("guided through the network, MSD as in the paper", [MSDPaper()], 1, 71),
        ("guided through the network, MSD as in the paper", [MSDPaper()], 8, 71),
    ],
    ids=str,
)
def test_operations_of_a_window_step(bench: Bench, name: str, guidances: list[Guidance], micro_batch: int, most: float) -> None:
    run = begun(guidances, micro_batch)
    while run.level.step < 4:  # the first steps make what later ones use again, and MSD has a head start
        run.step()
    with Operations() as operations:
        run.step()
    assert len(run.windows) == 45
    what = f"operations of torch outside the network, {name}, micro-batch {micro_batch}"
    bench.record("P3", what, operations.count / len(run.windows), "a window and step", most=most, always=True)


@pytest.mark.parametrize("guidances", [[], [MSDGuidance()], [MSDPaper()], [HeadStart()]], ids=str)
def test_the_host_waits_once_a_step(bench: Bench, guidances: list[Guidance]) -> None:
    """Steps of a smaller canvas that a guidance paints first count as steps."""
    run = begun(guidances, 8, WIDTH if bench.enabled else 256)
    reads, inner, most = Reads(run.canvas), list[int](), list[int]()
    run.on_inner_step = lambda: inner.append(reads.count)
    for _ in range(6):
        before = reads.count
        with reads.open():
            run.step()
        made = len(inner) + bool(inner) + 1  # the last step of the smaller canvas is not announced
        most.append(reads.count - before - made + 1)
        inner.clear()
    name = "no guidance" if not guidances else type(guidances[0]).__name__
    bench.record("P4", f"reads by the host in a step, {name}: the first", most[0], "reads", most=1, always=True)
    bench.record("P4", f"reads by the host in a step, {name}: the most of six", max(most), "reads", most=1, always=True)
