"""Muon: steps along orthogonal matrices, the size of Adam's."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from panokit.testing.processes import Processes
from panokit_landscapes.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(8, 8), (5, 40), (40, 5)])
def test_orthogonal_keeps_directions_and_levels_their_sizes(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    diagonal = u.T @ orthogonal(matrix, rounds=8) @ v.T
    sizes = diagonal.diagonal()
    assert 0.6 < float(sizes.min()) <= float(sizes.max()) < 1.3
    torch.testing.assert_close(diagonal, torch.diag(sizes), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(16, 16), (8, 4, 3, 3), (64, 8)])
def test_a_step_is_as_long_as_one_of_adams(shape: tuple[int, ...]) -> None:
    weight = torch.nn.Parameter(torch.zeros(shape))
    weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    Muon([weight], lr=1e-3).step()
    assert 1e-4 < float(weight.detach().square().mean().sqrt()) < 3e-4  # Adam's are about 0.2 lr


def test_it_solves_a_linear_regression() -> None:
    generator = torch.Generator().manual_seed(0)
    truth, x = torch.randn(3, 6, generator=generator), torch.randn(50, 6, generator=generator)
    weight = torch.nn.Parameter(torch.zeros(3, 6))
    optimizer = Muon([weight], lr=0.1)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 400)
        weight.grad = ((weight.detach() - truth) @ x.T @ x) / 50
        optimizer.step()
    assert torch.allclose(weight, truth, atol=0.02)


def stepped() -> list[Tensor]:
    """The weights of a network after two steps on gradients that are known."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator) for shape in ((6, 4), (4, 3, 3, 3), (2, 5))]
    optimizer = Muon(weights, lr=0.1)
    for _ in range(2):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
    return weights


@pytest.mark.sweep
@pytest.mark.xdist_group("ranks")
def test_two_processes_that_share_the_work_step_as_one(tmp_path: Path) -> None:
    started = Processes(2, Path(__file__), "step_together", [str(tmp_path)], tmp_path)
    assert started.wait() == [0, 0], started.outputs()
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), stepped(), rtol=1e-5, atol=1e-6)


def step_together(folder: str) -> None:
    """What each of the two does."""
    dist.init_process_group("gloo")
    torch.save(stepped(), f"{folder}/{dist.get_rank()}.pt")
    dist.destroy_process_group()
    threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").glob("*")]
    assert not any("gloo" in thread for thread in threads), threads  # one that outlives the interpreter may abort the process
