"""The coupled baseline: a prefill stops the answers beside it, and nothing else does."""

from itertools import pairwise

import pytest

from statepool.sim.coupled import run_coupled
from statepool.sim.traces import Call
from statepool.sim.workloads import poisson


def test_alone_a_request_takes_what_its_work_takes(costs):
    (job,) = run_coupled([Call(5.0, 8192, 50, tuple(range(16)))], 1, costs)
    assert job.first_token == pytest.approx(5 + costs.prefill_s(8192))
    assert job.tbt_s == pytest.approx(costs.decode_s(1, 8192 + 46), rel=0.01)


def test_a_prefill_is_a_gap_in_every_answer(costs):
    first, second = run_coupled([Call(0.0, 4096, 200), Call(1.5, 65_536, 2)], 1, costs)
    assert first.tbt_s * 20 == pytest.approx(costs.prefill_s(65_536) + 20 * costs.decode_s(1, 4250), rel=0.02)
    apart = run_coupled([Call(0.0, 4096, 200), Call(1.5, 65_536, 2)], 2, costs)
    assert apart[0].tbt_s < 0.03
    assert [job.decision.prefill for job in apart] == [0, 1]
    assert second.status == "done"


def test_short_prompts_share_a_step_and_memory_bounds_the_batch(costs):
    calls = [Call(0.0, 1000, 2) for _ in range(9)]
    jobs = run_coupled(calls, 1, costs)
    ends = sorted({round(job.first_token, 6) for job in jobs})
    one = costs.prefill_s(1000)
    assert ends == pytest.approx([one, one + 8 * one - 7 * costs.prefill[0]], abs=1e-5) or len(ends) == 2
    big = run_coupled([Call(0.0, 700_000, 30), Call(0.0, 700_000, 30)], 1, costs)
    assert big[1].first_token > big[0].first_token + costs.prefill_s(700_000)
    assert big[0].tbt_s < 0.05


def test_prefix_caching_finds_what_the_node_has(costs):
    calls = [Call(0.0, 20_480, 2, tuple(range(40))), Call(60.0, 30_720, 2, tuple(range(60)))]
    assert [job.reused for job in run_coupled(calls, 1, costs, prefix_caching=True)] == [0, 20_480]
    assert [job.reused for job in run_coupled(calls, 1, costs)] == [0, 0]


def test_drawn_loads_are_poisson_and_half_cached():
    calls = poisson(4000, 2.0, 16_384, 512, cached=0.5, contexts=4, seed=1)
    gaps = [later.at - earlier.at for earlier, later in pairwise(calls)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(0.5, rel=0.05)
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(0.25, rel=0.1)
    assert {len(call.keys) for call in calls} == {32}
    assert len({call.keys[:16] for call in calls}) == 4
    assert len({key for call in calls for key in call.keys[16:]}) == 16 * 4000
