"""Virtual ranks: what they compute, in which turn, and what they say when they part."""

import pytest
import torch
from torch import Tensor

from panokit import Runtime
from panokit.testing import ConformanceError
from panokit.testing.ranks import VirtualRanks


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("n", [1, 7])
def test_every_rank_gets_all_rows_in_order_and_computes_its_own(size: int, n: int) -> None:
    computed: list[int] = []

    def square(index: list[int]) -> tuple[Tensor, Tensor]:
        computed.extend(index)
        i = torch.tensor(index)
        return i**2, i[:, None].double()

    def twice(runtime: Runtime) -> tuple[Tensor, Tensor]:
        runtime.map(square, n, [(), (1,)])
        squares, numbers = runtime.map(square, n, [(), (1,)])
        return squares, numbers

    for squares, numbers in VirtualRanks(size, micro_batch=2).run(twice):
        assert squares.tolist() == [i**2 for i in range(n)]
        assert numbers.shape == (n, 1)
    assert sorted(computed) == sorted([*range(n)] * 2)


def test_ranks_have_the_chunks_of_processes() -> None:
    """As `Runtime.map` deals them: in turns, of lengths that depend on the number of windows and the micro-batch alone."""
    seen: list[list[int]] = []

    def note(index: list[int]) -> tuple[Tensor]:
        seen.append(index)
        return (torch.tensor(index),)

    VirtualRanks(2, micro_batch=3).run(lambda runtime: runtime.map(note, 7, [()]))
    assert sorted(seen) == [[0, 1], [2, 3], [4, 5, 6]]


def test_a_rank_that_fails_is_heard_over_those_that_wait_for_it() -> None:
    def work(runtime: Runtime) -> None:
        def rows(index: list[int]) -> tuple[Tensor]:
            if 3 in index:
                raise ZeroDivisionError("window 3")
            return (torch.tensor(index),)

        runtime.map(rows, 4, [()])

    with pytest.raises(ZeroDivisionError, match="window 3"):
        VirtualRanks(2, micro_batch=2).run(work)


@pytest.mark.parametrize("lengths", [(4, 6), (4, None)])
def test_ranks_that_ask_for_other_maps_do_not_wait_for_each_other(lengths: tuple[int, int | None]) -> None:
    asked = iter(lengths)

    def work(runtime: Runtime) -> None:
        if n := next(asked):
            runtime.map(lambda index: (torch.tensor(index),), n, [()])

    with pytest.raises(ConformanceError, match=r"waits for windows .* must make the same calls of step.estimate on every rank"):
        VirtualRanks(2, micro_batch=2).run(work)
