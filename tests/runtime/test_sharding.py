"""The planner: laws for any number of windows, ranks, and any micro-batch."""

from hypothesis import given
from hypothesis import strategies as st

from panokit.runtime.sharding import better, busiest, chunks, deal

WINDOWS, MICRO_BATCH, RANKS = st.integers(1, 600), st.integers(1, 16), st.integers(1, 64)


@given(WINDOWS, MICRO_BATCH)
def test_chunks_deal_every_number_once_in_order_in_near_equal_runs(n: int, micro_batch: int) -> None:
    plan = chunks(n, micro_batch)
    assert [i for chunk in plan for i in chunk] == list(range(n))
    lengths = [len(chunk) for chunk in plan]
    assert max(lengths) <= micro_batch
    assert max(lengths) - min(lengths) <= 1
    assert len(plan) == -(-n // micro_batch)


@given(WINDOWS, MICRO_BATCH, RANKS)
def test_every_chunk_has_one_rank_and_no_rank_more_than_its_share(n: int, micro_batch: int, ranks: int) -> None:
    plan = chunks(n, micro_batch)
    shares = deal(plan, ranks)
    assert len(shares) == ranks
    assert sorted(chunk for share in shares for chunk in share) == plan
    most = -(-len(plan) // ranks)
    assert max(map(len, shares)) == most
    assert busiest(n, micro_batch, ranks) <= most * micro_batch


@given(WINDOWS, MICRO_BATCH, RANKS)
def test_with_a_micro_batch_of_one_the_busiest_rank_has_the_least_there_is(n: int, micro_batch: int, ranks: int) -> None:
    assert busiest(n, 1, ranks) == -(-n // ranks) <= busiest(n, micro_batch, ranks)


@given(WINDOWS, MICRO_BATCH, RANKS)
def test_a_better_micro_batch_is_smaller_and_better_and_no_larger_one_is(n: int, micro_batch: int, ranks: int) -> None:
    found = better(n, micro_batch, ranks)
    loads = {size: busiest(n, size, ranks) for size in range(1, micro_batch + 1)}
    if found is None:
        assert loads[micro_batch] == min(loads.values())
    else:
        assert found < micro_batch
        assert loads[found] == min(loads.values()) < loads[micro_batch]
        assert all(loads[size] > loads[found] for size in range(found + 1, micro_batch + 1))
