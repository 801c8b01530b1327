"""Pipelined prefill: the simulated flow against the flow-shop formula and a table filled in by hand."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statepool.core.errors import InvalidConfig
from statepool.serve.costs import NODES
from statepool.serve.pipeline import chunk_borders, makespan_s, uniform_borders
from statepool.sim.pipeline import run_pipeline

COSTS = NODES["a800"]
borders = st.lists(st.integers(1, 120_000), min_size=1, max_size=20, unique=True).map(lambda cut: [0, *sorted(cut)])


@given(borders, st.integers(1, 6))
def test_equal_stages_take_what_the_flow_shop_formula_says(cut, stages):
    assert run_pipeline(COSTS, cut, stages) == pytest.approx(makespan_s(COSTS, cut, stages))


@given(borders, st.integers(1, 6), st.floats(0, 0.5))
def test_the_flow_is_the_recursion_of_chunks_and_stages(cut, stages, hop_s):
    """done[i][s] = max(done[i-1][s], done[i][s-1] + hop) + time of chunk i."""
    chunks = [COSTS.prefill_s(end, start) / stages for start, end in pairwise(cut)]
    before = [0.0] * stages
    for chunk in chunks:
        row = []
        for stage in range(stages):
            ready = row[stage - 1] + hop_s if stage else 0.0
            row.append(max(before[stage], ready) + chunk)
        before = row
    assert run_pipeline(COSTS, cut, stages, hop_s) == pytest.approx(before[-1])


@given(st.integers(2, 200_000), st.floats(0, 0.99), st.integers(1, 16))
def test_borders_cover_the_prompt_in_equal_times(tokens, share, stages):
    cached = int(share * (tokens - 1))
    cut = chunk_borders(COSTS, tokens, cached, stages)
    assert (cut[0], cut[-1]) == (cached, tokens)
    assert cut == sorted(set(cut))
    times = [COSTS.prefill_s(end, start) for start, end in pairwise(cut)]
    assert max(times) - min(times) < 0.002 + 2e-3 * max(times)
    assert cut == [cached, tokens] or stages > 1


@pytest.mark.parametrize(("chunk", "two", "four"), [(8192, 17.1, 10.0), (4096, 16.4, 8.9), (2048, 16.7, 8.7)])
def test_uniform_chunks_of_a_long_prompt_as_published(chunk, two, four):
    cut = uniform_borders(131_072, 0, chunk)
    assert run_pipeline(COSTS, cut, 2) == pytest.approx(two, rel=0.02)
    assert run_pipeline(COSTS, cut, 4) == pytest.approx(four, rel=0.02)


def test_chunks_that_know_their_position_beat_uniform_ones():
    ours = run_pipeline(COSTS, chunk_borders(COSTS, 131_072, 0, 4), 4)
    assert ours <= 0.9 * run_pipeline(COSTS, uniform_borders(131_072, 0, 8192), 4)
    least = min(run_pipeline(COSTS, uniform_borders(131_072, 0, chunk), 4) for chunk in range(256, 16_384, 256))
    assert ours <= least
    assert ours >= COSTS.prefill_s(131_072) / 4


def test_what_cannot_be_cut():
    with pytest.raises(InvalidConfig, match="stages"):
        chunk_borders(COSTS, 100, 0, 0)
    with pytest.raises(InvalidConfig, match="cached"):
        chunk_borders(COSTS, 100, 100, 2)
