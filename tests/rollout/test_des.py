"""The simulator against closed forms, against every assignment of small cases, and against the published baseline."""

from __future__ import annotations

import itertools
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statepool.core.errors import InvalidConfig
from statepool.rollout.costs import MOONLIGHT, QWEN_VL, StepTimes, accept_rate, expected_tokens
from statepool.rollout.des import Wanted, simulate
from statepool.rollout.policies import NAMES, ORACLES, make
from statepool.rollout.sd import Speculation
from statepool.rollout.workloads import draw, lognormal_lengths

TIMES = StepTimes(0.03, 2e-3)


def wanted(lengths, size=1, limit=400):
    return [Wanted(i // size, i % size, 0, limit, length) for i, length in enumerate(lengths)]


def closed(lengths, times):
    """T = sum over j of tau(j) (L_j - L_j+1), L falling: all run from the start."""
    falling = [*sorted(lengths, reverse=True), 0]
    return sum(times.rows(j) * (falling[j - 1] - falling[j]) for j in range(1, len(falling)))


@settings(max_examples=40)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=30), st.sampled_from(["verl_group", "divided_rr", "auto"]))
def test_one_engine_with_room_for_all_takes_what_the_closed_form_says(lengths, policy):
    out = simulate(wanted(lengths), make(policy, 1000), TIMES, instances=1, capacity=10**9)
    assert out.seconds == pytest.approx(closed(lengths, TIMES), rel=1e-9)
    table = StepTimes(0, 0, table=tuple((n, 0.03 + 2e-3 * n) for n in (1, 2, 5, 9, 40)))
    again = simulate(wanted(lengths), make(policy, 1000), table, instances=1, capacity=10**9)
    assert again.seconds == pytest.approx(out.seconds, rel=1e-9)


@settings(max_examples=40)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=12), st.integers(1, 64))
def test_context_costs_add_up_whatever_the_chunk(lengths, chunk):
    times = StepTimes(0.03, 2e-3, 1e-5)
    out = simulate(wanted(lengths), make("divided_fcfs", chunk), times, instances=1, capacity=10**9)
    reads = sum(length * (length - 1) / 2 for length in lengths) * 1e-5
    assert out.seconds == pytest.approx(closed(lengths, times) + reads, rel=1e-9)
    assert out.tokens == sum(lengths)


@pytest.mark.parametrize("seed", range(6))
def test_nothing_beats_the_best_of_all_assignments_and_the_oracle_is_near(seed):
    lengths = [int(n) for n in lognormal_lengths(4, 2, 60, 300, 0.9, 0.5, seed).ravel()]
    best = min(
        max(closed([n for n, s in zip(lengths, side, strict=True) if s == part], TIMES) for part in (0, 1))
        for side in itertools.product((0, 1), repeat=len(lengths))
    )
    for name in (*NAMES, *ORACLES):
        if name == "partial":
            continue
        policy = make(name, 1000, length=lengths.__getitem__, times=TIMES)
        out = simulate(wanted(lengths, 2), policy, TIMES, instances=2, capacity=10**9)
        assert out.seconds >= best * (1 - 1e-9), name
        if name == "lrpt_oracle":
            assert out.seconds <= best * 1.1


@pytest.mark.parametrize("drafts", [None, "self", "group"])
def test_every_policy_makes_every_token_and_divided_ones_never_preempt(drafts):
    lengths = [int(n) for n in lognormal_lengths(12, 4, 60, 300, 0.9, 0.6, 5).ravel()]
    times = StepTimes(0.03, 2e-3, 1e-6)
    for name in (*NAMES, *ORACLES):
        if name == "partial":
            continue
        policy = make(name, 32, length=lengths.__getitem__, times=times, drafts=drafts)
        sd = Speculation(times, drafts) if drafts else None
        out = simulate(wanted(lengths, 4, 300), policy, times, instances=2, capacity=700, seats=16, speculation=sd)
        assert out.tokens == sum(lengths) and len(out.ends) == len(lengths), name
        assert [chunks[-1].stop for chunks in out.chunks] == lengths
        assert out.preemptions == 0 or not policy.divided, name
        assert out.preemptions > 0 or name != "verl_group"


def test_an_engine_stepped_one_by_one_agrees_with_the_formula_where_blocks_do_not_matter():
    lengths = [int(n) for n in lognormal_lengths(6, 4, 60, 300, 0.9, 0.6, 5).ravel()]
    times = StepTimes(0.03, 2e-3)
    for policy in ("verl_group", "verl_request"):
        found = [
            simulate(wanted(lengths, 4, 300), make(policy, 1), times, instances=2, capacity=1 << 20, batched=batched)
            for batched in (None, 512)
        ]
        assert found[1].seconds == pytest.approx(found[0].seconds, rel=1e-9)
        assert [c[-1].stop for c in found[1].chunks] == lengths
        assert found[1].steps == found[0].steps
        assert found[1].preemptions == found[1].recomputed == 0


def test_an_engine_stepped_one_by_one_refuses_what_it_cannot_do():
    small = {"instances": 1, "capacity": 32}
    with pytest.raises(InvalidConfig, match="does not fit"):
        simulate(wanted([100]), make("verl_group", 1), TIMES, batched=512, **small)
    with pytest.raises(InvalidConfig, match="below seats"):
        simulate(wanted([10]), make("verl_group", 1), TIMES, batched=8, **small)
    with pytest.raises(InvalidConfig, match="drafts"):
        simulate(wanted([10]), make("verl_group", 1), TIMES, batched=512, speculation=Speculation(TIMES), **small)


def test_partial_ends_with_half_of_the_groups():
    lengths = [10, 10, 20, 20, 200, 200, 300, 300]
    out = simulate(wanted(lengths, 2), make("partial", 1), TIMES, instances=2, capacity=10**9)
    assert len(out.ends) == 4 and out.tokens == 60


def test_drafts_make_it_faster_and_siblings_more_so():
    lengths = [int(n) for n in lognormal_lengths(6, 8, 100, 400, 0.7, 0.6, 1).ravel()]
    times = StepTimes(0.03, 1e-4)
    seconds = []
    for drafts in (None, "self", "group"):
        sd = Speculation(times, drafts) if drafts else None
        out = simulate(wanted(lengths, 8), make("divided_rr", 50), times, instances=1, capacity=10**9, speculation=sd)
        seconds.append(out.seconds)
    assert seconds[0] > seconds[1] > seconds[2]


@given(st.floats(1.01, 6.0))
def test_acceptance_gives_back_the_tokens_it_was_fitted_to(expected):
    assert expected_tokens(accept_rate(expected), 8) == pytest.approx(expected, rel=1e-6)


@given(st.integers(0, 50), st.floats(1, 100), st.floats(0, 1e4), st.floats(0, 50), st.sampled_from([0.0, 1e-7, 1e-4]))
def test_steps_within_inverts_span(steps, rows, tokens, growth, context):
    times = StepTimes(0.02, 1e-4, context)
    span = times.span(steps, rows, tokens, growth)
    assert times.steps_within(span * (1 - 1e-12), rows, tokens, growth) == steps
    assert times.steps_within(span + 1e-6, rows, tokens, growth) == steps + 1


@pytest.mark.slow
@pytest.mark.parametrize(("workload", "correlation"), [(QWEN_VL, 0.65), (MOONLIGHT, 0.85)])
def test_the_published_baseline_is_reproduced(workload, correlation):
    outs = [
        simulate(
            draw(workload, correlation, seed), make("verl_group", 1), workload.times,
            instances=workload.instances, capacity=workload.capacity, seats=workload.seats,
        )
        for seed in range(10)
    ]  # fmt: skip
    assert statistics.median(out.seconds for out in outs) == pytest.approx(workload.seconds, rel=0.1)
    assert statistics.median(out.tail / out.seconds for out in outs) == pytest.approx(workload.tail, abs=0.08)
