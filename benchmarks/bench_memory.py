"""Peak memory: flat in the number of windows, and what a guidance adds.

What counts is the peak of the bytes of all tensors that one pass makes. The weights are there before and do not count. So the
numbers are the same in each run, and on each machine.
"""

from functools import partial

import pytest
import torch

from measuring import Bench, in_turns, seconds
from panokit import Guidance, Model, Sampler
from panokit.testing.memory import peak
from panokit.testing.toys import Pull
from panokit_msd import MSDPaper
from sides import begun, first_pass, small_model


@pytest.fixture(scope="module")
def model() -> Model:
    """Stable Diffusion 2's UNet at a tenth of its width and half of its size."""
    return small_model(32, (32, 64, 128, 128))


def test_a_guidance_needs_a_few_times_the_memory_and_half_of_it_with_checkpoints(model: Model, bench: Bench) -> None:
    """One window, whose gradient goes through the denoiser."""
    unguided = first_pass(begun(model, [], 256, 256))
    plain, saving = (first_pass(begun(model, [Pull()], 256, 256, checkpointing=saves)) for saves in (False, True))
    (_, base), (expected, more), (made, less) = peak(unguided), peak(plain), peak(saving)
    torch.testing.assert_close(made, expected)
    what = "a guided window, checkpointed: peak memory"
    bench.record("P8", what, less / more, "of that without", most=0.6, peer=1, always=True)
    unit = "times that of a window without guidance"
    bench.record("P10", "a guided window: peak memory", more / base, unit, most=6.0, peer=1, always=True)
    bench.record("P10", what, less / base, unit, most=3.5, peer=1, always=True)
    if bench.enabled:
        turns = in_turns(9, partial(seconds, saving), partial(seconds, plain))
        bench.record("P8", "a guided window, checkpointed: CPU time", turns.ratio, "of that without", most=1.3, peer=1)


@pytest.mark.parametrize("guidances", [[], [MSDPaper(0.1)]], ids=["MultiDiffusion", "MSD as in the paper"])
def test_peak_memory_is_flat_in_the_number_of_windows(
    bench: Bench, request: pytest.FixtureRequest, guidances: list[Guidance]
) -> None:
    """The canvas is kept whole, and so are the rows of all windows. The rest belongs to the windows that go together."""
    model = request.getfixturevalue("model") if bench.enabled else Sampler().model
    high, widths, stride = (512, (512, 2048), 128) if bench.enabled else (256, (256, 512), 128)
    few, many = (begun(model, guidances, high, width, stride) for width in widths)
    (_, less), (_, more) = peak(first_pass(few)), peak(first_pass(many))
    bench.record(
        "P9",
        f"{request.node.callspec.id}: peak memory of a step at {len(many.windows)} windows, less the canvas",
        (more - many.canvas.nbytes) / less,
        f"of that at {len(few.windows)}",
        most=1.05,
        always=True,
    )
