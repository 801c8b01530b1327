"""Admission: what each policy looks at, and that looking ahead changes decisions."""

from dataclasses import replace

import numpy as np
import pytest
from tests.serve.snapshots import snapshot

from statepool.serve.conductor import Conductor
from statepool.serve.costs import NODES
from statepool.serve.dispatch import LeastLoad
from statepool.serve.overload import CheckBoth, EarlyPredicted, EarlyRejection, Everyone, Foresight, LateCheck, Patience
from statepool.serve.snapshot import SLO, Ask, Completion, Decision, Underway

COSTS, PROMISE = NODES["a800"], SLO()
FULL = int(COSTS.vram_tokens * 0.97)
ASK = Ask(0, 0.0, 10_000)
DECISION = Decision(prefill=0, decode=0, reuse=0, prefill_s=2.0, ttft_s=6.0, tbt_s=0.05)


def running(tokens, written=1, age_s=1.0, count=1):
    return tuple(Underway(0, -age_s, tokens, written) for _ in range(count))


def now(*underway):
    there = [each for each in underway if each.in_s <= 0]
    load = (len(there), sum(each.tokens for each in there))
    return snapshot([0.0], [0], decode=(load,), underway=underway)


def test_everybody_is_refused_who_would_wait_too_long_except_by_everyone():
    late = replace(DECISION, ttft_s=31.0)
    for policy in (LateCheck, CheckBoth, EarlyRejection, EarlyPredicted, Foresight):
        assert "first token" in policy(COSTS, PROMISE).refusal(ASK, late, now())
        assert policy(COSTS, PROMISE).refusal(ASK, DECISION, now()) == ""
    assert Everyone().refusal(ASK, late, now()) == ""
    assert Everyone().late_refusal(10**9, 10**6, 10**9) == ""


def test_the_baseline_checks_decode_only_when_the_prefill_is_done():
    policy = LateCheck(COSTS, PROMISE)
    assert policy.refusal(ASK, DECISION, now(*running(FULL))) == ""
    assert "no room" in policy.late_refusal(10_000, 1, FULL - 9_999)
    assert policy.late_refusal(10_000, 1, FULL - 10_000) == ""
    assert "slowly" in policy.late_refusal(10, 2000, 10_000)


def test_early_rejection_sees_what_runs_and_not_what_comes():
    policy = EarlyRejection(COSTS, PROMISE)
    assert "no room" in policy.refusal(ASK, DECISION, now(*running(FULL - 9_000)))
    coming = Underway(0, 3.0, FULL, 1)
    assert policy.refusal(ASK, DECISION, now(coming)) == ""


def test_prediction_adds_what_comes_and_drops_what_is_old():
    policy = EarlyPredicted(COSTS, PROMISE, decode_time_s=15.0)
    assert "no room" in policy.refusal(ASK, DECISION, now(Underway(0, 3.0, FULL, 1)))
    assert policy.refusal(ASK, DECISION, now(Underway(0, 7.0, FULL, 1))) == ""  # joins after it
    assert "no room" in policy.refusal(ASK, DECISION, now(*running(FULL, age_s=8.0)))  # 14 s old then
    assert policy.refusal(ASK, DECISION, now(*running(FULL, age_s=10.0))) == ""  # 16 s old then


def taught(policy, outputs, prompt=10_000):
    for output in outputs:
        policy = policy.told(Completion(prompt, output))
    return policy


def test_foresight_learns_how_long_answers_are():
    """Requests that have written 200 tokens fill the node; the newcomer joins some 100 steps later."""
    lengths = np.random.default_rng(0)
    short = taught(Foresight(COSTS, PROMISE, preference=0.0), lengths.integers(150, 260, 4000).tolist())
    long = taught(Foresight(COSTS, PROMISE, preference=0.0), lengths.integers(1000, 2000, 4000).tolist())
    full = now(*running(12_000, written=200, count=FULL // 12_000))
    assert short.refusal(ASK, DECISION, full) == ""
    assert "no room" in long.refusal(ASK, DECISION, full)
    assert Foresight(COSTS, PROMISE).ended == (), "what is told makes a new policy"


def test_foresight_risks_cheap_prefills_only():
    """Twice the room is as likely as not; a prefill of a tenth of a second is worth the try."""
    policy = taught(Foresight(COSTS, PROMISE, preference=0.0, stake_s=0.5), [400] * 1000)
    full = now(*running(12_000, written=390, count=FULL // 12_000 + 3))
    instant = replace(DECISION, ttft_s=0.05)
    assert policy.refusal(ASK, replace(instant, prefill_s=1e-6), full) == ""
    assert "no room" in policy.refusal(ASK, replace(instant, prefill_s=20.0), full)


def test_foresight_prefers_several_short_prompts_to_a_long_one():
    policy = taught(Foresight(COSTS, PROMISE, preference=8.0), [300] * 2000)
    assert policy.mean_prompt == pytest.approx(10_000, rel=0.2)
    half = now(*running(10_000, count=100))
    assert policy.refusal(Ask(0, 0.0, 5_000), replace(DECISION, ttft_s=0.2), half) == ""
    assert "no room" in policy.refusal(Ask(0, 0.0, 90_000), replace(DECISION, ttft_s=0.2), half)


def test_patience_asks_again_as_long_as_the_promise_can_be_held_and_no_longer():
    policy = taught(Patience(COSTS, PROMISE), [1500] * 1000)
    steer = Conductor(LeastLoad(COSTS), policy)
    full = now(*running(12_000, count=FULL // 12_000))
    prefill_s = COSTS.prefill_s(ASK.tokens)
    asked, waited_s = 0, 0.0
    while True:
        decision = steer.decide(replace(ASK, at=waited_s, waited_s=waited_s), full)
        assert "no room" in decision.refused
        asked += 1
        if not decision.ask_again_s:
            break
        waited_s += decision.ask_again_s
        assert waited_s + prefill_s <= PROMISE.ttft_s, "kept past its promise"
    assert asked <= 30
    assert waited_s + prefill_s > PROMISE.ttft_s - 2, "given up while there was time"
    emptied = steer.decide(replace(ASK, at=waited_s, waited_s=waited_s), now())
    assert (emptied.refused, emptied.ask_again_s) == ("", 0.0)


def test_patience_counts_what_a_request_has_waited_into_its_promise():
    policy = Patience(COSTS, PROMISE)
    assert policy.refusal(replace(ASK, waited_s=23.9), DECISION, now()) == ""
    assert "first token" in policy.refusal(replace(ASK, waited_s=24.1), DECISION, now())


def test_patience_counts_on_answers_that_end_while_a_finished_prefill_waits():
    """The node is full when the prefill is done, and much of what runs will have ended 2.5 s later."""
    at_once, later = (
        taught(Patience(COSTS, PROMISE, preference=0.0, wait_share=share), [220] * 4000) for share in (0.0, 1 / 12)
    )
    full = now(*running(12_000, written=155, count=FULL // 12_000))
    soon = replace(DECISION, ttft_s=2.0)
    assert "no room" in at_once.refusal(ASK, soon, full)
    assert later.refusal(ASK, soon, full) == ""
    assert "no room" in later.refusal(replace(ASK, waited_s=27.9), soon, full), "there is no time left to wait"


def test_only_patience_keeps_what_it_refuses():
    for policy in (LateCheck, CheckBoth, EarlyRejection, EarlyPredicted, Foresight):
        assert policy(COSTS, PROMISE).ask_again_s(ASK, DECISION) == 0.0
    assert Everyone().ask_again_s(ASK, DECISION) == 0.0
