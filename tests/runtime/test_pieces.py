"""Chunks that do not fit: halves, one warning that names the setting, and an end."""

import warnings

import pytest
import torch
from torch import Tensor

from panokit import Runtime, Sampler
from panokit.errors import OutOfMemoryError, ShardingWarning
from panokit.runtime.pieces import Pieces
from panokit.testing.tiny import tiny_model


class Memory:
    """Rows that are window numbers, for as many windows at once as there is room."""

    def __init__(self, room: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        self.room, self.error = room, error
        self.sizes: list[int] = []

    def __call__(self, index: list[int]) -> tuple[Tensor]:
        self.sizes.append(len(index))
        if len(index) > self.room:
            raise self.error("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
        return (torch.tensor(index),)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_a_chunk_that_does_not_fit_is_halved_and_so_are_the_next(error: type[Exception]) -> None:
    memory, pieces = Memory(2, error), Pieces(torch.device("cpu"))
    with pytest.warns(ShardingWarning) as told:
        (rows,) = pieces.rows(memory, list(range(8)), 8)
    assert rows.tolist() == list(range(8))
    assert memory.sizes == [8, 4, 2, 2, 2, 2]
    assert [str(each.message).partition(":")[2] for each in told] == [
        " set micro_batch=4, or guided_micro_batch if the step is guided, to avoid the failed attempt",
        " set micro_batch=2, or guided_micro_batch if the step is guided, to avoid the failed attempt",
    ]
    memory.sizes.clear()
    assert pieces.rows(memory, [3, 4, 5], 8)[0].tolist() == [3, 4, 5]
    assert memory.sizes == [2, 1]


def test_a_window_that_does_not_fit_says_what_helps() -> None:
    with pytest.warns(ShardingWarning), pytest.raises(OutOfMemoryError, match="try checkpointing, the precision"):
        Pieces(torch.device("cpu")).rows(Memory(0), [0, 1], 2)


def test_other_errors_are_not_taken_for_it() -> None:
    def fails(index: list[int]) -> tuple[Tensor]:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        Pieces(torch.device("cpu")).rows(fails, [0, 1], 2)


def test_a_picture_is_the_same_within_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A denoiser without room for more than two windows at once."""
    settings = {"height": 16, "width": 48, "steps": 2}
    whole = Sampler(tiny_model(), runtime=Runtime(accelerator="cpu", micro_batch=5))("a lake", **settings)
    model = tiny_model()
    forward = type(model.denoiser).__call__

    def narrow(self: object, x: Tensor, *rest: object) -> Tensor:
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, x, *rest)

    monkeypatch.setattr(type(model.denoiser), "__call__", narrow)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        halved = Sampler(model, runtime=Runtime(accelerator="cpu", micro_batch=5))("a lake", **settings)
    assert len([each for each in told if each.category is ShardingWarning]) == 1
    torch.testing.assert_close(halved.latents, whole.latents, atol=1e-3, rtol=1e-3)
