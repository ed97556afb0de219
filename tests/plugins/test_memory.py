"""The memory of guidances that look at the canvas as a whole: a few canvases, and never a picture."""

from typing import Any

import pytest

from panokit import Model, Run, Runtime, Sampler, magnifying
from panokit.testing.memory import peak
from panokit.testing.toys import RepeatingCodec, ToyDenoiser, ToyScheduler

MOST = 8
"""The most canvases."""


def memory(runtime: Runtime, guidances: list[Any], high: int, wide: int, **parts: Any) -> tuple[int, int, int]:
    """The most bytes of the tensors of a run, those of its canvas, and those of all its windows."""
    model = Model(ToyDenoiser((16, 16), 4), RepeatingCodec(), "toy")
    sampler = Sampler(model, scheduler=ToyScheduler(), guidances=guidances, runtime=runtime, **parts)

    def paint() -> Run:
        run = sampler.begin("a lake", height=8 * high, width=8 * wide, steps=2)
        while not run.done:
            run.step()
        return run

    run, most = peak(paint)
    return most, run.canvas.nbytes, len(run.windows) * 4 * 16 * 16 * 4


SLOW = [pytest.param(name, marks=pytest.mark.sweep) for name in ("msd", "syncdiffusion", "demofusion")]


@pytest.mark.parametrize("name", ["head_start", "hiflow", *SLOW])
def test_a_canvas_four_times_as_wide_costs_a_guidance_a_few_canvases_more(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than the run has without it, but for the moved windows, which every guidance leaves to the fuser."""
    for constant, pixels in {"WHOLE": 1 << 14, "TILE": 128, "SHARED": 32}.items():
        monkeypatch.setattr(magnifying, constant, pixels)
    alone = Runtime(accelerator="cpu", micro_batch=1)  # a chunk of windows is then as large whatever the canvas
    high = 16 if name == "syncdiffusion" else 32  # the others paint a smaller canvas, too
    parts = {"layout": "demofusion", "fuser": "demofusion"} if name == "demofusion" else {}
    memory(alone, [name], high, 32, **parts)  # so that no network is loaded when the bytes are counted
    costs = []
    for wide in (64, 256):
        plain, canvas, windows = memory(alone, [], high, wide, **parts)  # first: fusers keep weights
        costs.append((memory(alone, [name], high, wide, **parts)[0] - windows - plain, canvas))
    (less, canvas), (more, wider) = costs
    assert wider == 4 * canvas
    assert (more - less) / (wider - canvas) <= MOST
