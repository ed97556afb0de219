"""Muon: steps along orthogonal matrices, the size of Adam's."""

import pytest
import torch

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
