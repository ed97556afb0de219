"""Peak memory: flat in the number of windows, and what a guidance adds.

What counts is the peak of the bytes of all tensors that one pass makes. The weights are there before and do not count. So the
numbers are the same in each run, and on each machine.
"""

from functools import partial

import pytest
import torch

from measuring import Bench, in_turns, peak, seconds
from panokit import Guidance, Model, Run, Sampler
from panokit.testing.toys import Pull
from panokit_msd import MSDPaper
from sides import begun, first_pass, small_model


@pytest.fixture(scope="module")
def model() -> Model:
    """Stable Diffusion 2's UNet at a tenth of its width and half of its size."""
    return small_model(32, (32, 64, 128, 128))


def passed(run: Run) -> int:
    return peak(first_pass(run))[1]


def test_checkpointing_trades_memory_for_time(model: Model, bench: Bench) -> None:
    plain, saving = (
        first_pass(begun(model, [Pull()], 256, 256, checkpointing=checkpointing)) for checkpointing in (False, True)
    )
    (made, less), (expected, more) = peak(saving), peak(plain)
    torch.testing.assert_close(made, expected)
    bench.record(
        "P8", "checkpointing, a guided window: memory", less / more, "of the bytes without", most=0.6, peer=1, always=True
    )
    if bench.enabled:
        turns = in_turns(9, partial(seconds, saving), partial(seconds, plain))
        bench.record("P8", "checkpointing, a guided window: time", turns.ratio, "of the time without", most=1.3, peer=1)


@pytest.mark.parametrize("guidances", [[], [MSDPaper(0.1)]], ids=["MultiDiffusion", "MSD as in the paper"])
def test_peak_memory_is_flat_in_the_number_of_windows(
    bench: Bench, request: pytest.FixtureRequest, guidances: list[Guidance]
) -> None:
    """The canvas is kept whole, and so are the rows of all windows. The rest belongs to the windows that go together."""
    model = request.getfixturevalue("model") if bench.enabled else Sampler().model
    high, widths, stride = (512, (512, 2048), 128) if bench.enabled else (256, (256, 512), 128)
    few, many = (begun(model, guidances, high, width, stride) for width in widths)
    value = (passed(many) - many.canvas.nbytes) / passed(few)
    bench.record(
        "P9",
        f"{request.node.callspec.id}: peak memory of a step at {len(many.windows)} windows, less the canvas",
        value,
        f"of that at {len(few.windows)}",
        most=1.05,
        always=True,
    )


@pytest.mark.parametrize(("checkpointing", "most"), [(False, 6.0), (True, 3.5)], ids=["plain", "checkpointed"])
def test_a_guided_window_needs_a_few_times_the_memory(model: Model, bench: Bench, checkpointing: bool, most: float) -> None:
    plain = begun(model, [], 256, 256)
    guided = begun(model, [Pull()], 256, 256, checkpointing=checkpointing)
    bench.record(
        "P10",
        f"a guided window{', checkpointed' * checkpointing}: peak memory above the weights",
        passed(guided) / passed(plain),
        "of a plain window's bytes",
        most=most,
        always=True,
    )
