"""Quick compositions make the latents that they made when they were recorded.

The record comes from another machine, whose kernels may round otherwise, so the comparison has a tolerance. `compositions.py`
compares two runs on one machine to the last bit.
"""

import runpy
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent
SCRIPT = runpy.run_path(str(HERE / "compositions.py"))
RECORD = load_file(HERE / "compositions.safetensors")


@pytest.mark.parametrize("name", RECORD)
def test_a_composition_makes_the_latents_that_were_recorded(name: str) -> None:
    canvas = SCRIPT["latents"](SCRIPT["COMPOSITIONS"][name])
    torch.testing.assert_close(canvas, RECORD[name], atol=2e-3, rtol=2e-3)


def test_the_record_tells_compositions_apart() -> None:
    """Another seed, another draw of noise or another solver is far beyond the tolerance."""
    same_size = [name for name in RECORD if RECORD[name].shape == (4, 16, 24)]
    for one, other in pairwise(same_size):
        assert (RECORD[one] - RECORD[other]).abs().mean() > 0.1
