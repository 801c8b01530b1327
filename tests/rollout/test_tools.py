"""Responses of several turns: the same tokens as each alone, no KV computed twice, every failure of a tool named."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace

import pytest

from statepool.core.errors import InvalidConfig
from statepool.engine.config import EngineConfig
from statepool.engine.request import Request
from statepool.rollout import LocalHosts, Speech, Tools, rollout
from statepool.rollout.drafts import GroupDrafts
from statepool.rollout.fleet import Fleet
from statepool.rollout.tools import Conversation, ToolThreads
from statepool.tasks import Turn, Verdict

TURNS = ("Count from 2 to 7.", "What is 12 + 30?")


class Asks:
    """A world that asks again after each turn, then judges by the number of turns."""

    def __init__(self, turns=TURNS):
        self.left, self.heard, self.closed = list(turns), [], False

    def reply(self, text):
        self.heard.append(text)
        if self.left:
            return Turn(self.left.pop(0), "user", faults=("asked",))
        return Turn(verdict=Verdict(0.5, "said all"))

    def close(self):
        assert not self.closed
        self.closed = True


def world(engine, opened, make=lambda group, index: Asks(), **settings):
    def open_(group, index):
        assert (group, index) not in opened
        opened[group, index] = make(group, index)
        return opened[group, index]

    return Tools(open_, Speech.load(engine.info, engine.tokenizer), **settings)


def told(done):
    return {(r.group, r.index): (r.tokens, r.logprobs, r.said, r.finish_reason, r.text) for r in done.responses}


@pytest.fixture(scope="module")
def short(groups):
    return [replace(group, params=replace(group.params, max_tokens=150, temperature=1.0)) for group in groups[:3]]


@pytest.fixture(scope="module")
def wanted(engine, short):
    """Every conversation held alone: each turn a request with all that was said before."""
    engine = engine(128)
    speech = Speech.load(engine.info, engine.tokenizer)
    found = {}
    for group in short:
        for index in range(group.size):
            tokens, logprobs, said, texts, finish = [], [], [], "", None
            left = list(TURNS)
            chosen = 0
            while finish is None:
                params = replace(
                    group.request(index, 0).params,
                    max_tokens=group.params.max_tokens - chosen,
                    stop_token_ids=(speech.call_end,),
                    show_special=None,
                )
                engine.reset_prefix_cache()
                outputs = engine.generate([Request("alone", (*group.prompt, *tokens), params, index=index)])["alone"]
                turn = [token for output in outputs for token in output.tokens]
                tokens += turn
                chosen += len(turn)
                logprobs += [value for output in outputs for value in output.sampled_logprobs]
                texts += "".join(output.text for output in outputs)
                if outputs[-1].finish_reason == "length":
                    finish = "length"
                elif not left:
                    finish = "stop"
                else:
                    words = speech.said(left.pop(0), "user", speech.ended(turn))
                    if chosen == group.params.max_tokens:
                        finish = "length"
                        break
                    said.append((len(tokens), len(tokens) + len(words)))
                    tokens += words
                    logprobs += [0.0] * len(words)
            found[group.id, index] = (tuple(tokens), tuple(logprobs), tuple(said), finish, texts)
    return found


@pytest.mark.parametrize(("count", "chunk", "drafts"), [(1, 1000, False), (2, 16, False), (3, 24, True)])
def test_conversations_are_the_same_in_any_company_and_nothing_is_computed_twice(
    engine, short, wanted, count, chunk, drafts
):
    engines = [engine(40, place) for place in range(count)]
    opened = {}
    made = (lambda _: GroupDrafts("group")) if drafts else None
    done = rollout(
        LocalHosts(engines, drafts=made), short, policy="divided_rr", chunk=chunk, tools=world(engines[0], opened)
    )
    assert told(done) == wanted
    assert done.refilled == done.preemptions == 0
    assert all(each.closed for each in opened.values())
    for instance in engines:
        assert instance.pool.free == instance.pool.total and len(instance.sessions) == 0
    judged = [r for r in done.responses if r.finish_reason == "stop"]
    assert judged and all(r.verdict == Verdict(0.5, "said all") and r.faults == ("asked",) * 2 for r in judged)
    one = judged[0]
    assert [s.role for s in one.segments] == ["model", "world", "model", "world", "model"]
    assert tuple(t for s in one.segments for t in s.tokens) == one.tokens
    assert one.chosen == sum(len(s.logprobs) for s in one.segments) and len(one.calls) == 3


def test_the_kv_of_a_conversation_follows_it_to_another_engine(engine, short, wanted):
    """Two engines that hold little more than one response: turns must move."""
    engines = [engine(24), engine(24, 1)]
    before = [each.stats() for each in engines]
    done = rollout(engines, short, policy="divided_rr", chunk=16, tools=world(engines[0], {}))
    assert told(done) == wanted and done.refilled == 0
    assert any(len({chunk.instance for chunk in r.chunks}) > 1 for r in done.responses)
    assert sum(b.recomputed_tokens - a.recomputed_tokens for a, b in zip(before, done.engines, strict=True)) == 0


def test_a_conversation_ends_with_its_turns(engine, short):
    opened = {}
    done = rollout(engine(64), short[:1], tools=world(engine(64), opened, turns=2))
    ends = {r.finish_reason for r in done.responses}
    assert "turns" in ends and ends <= {"turns", "length"}
    assert all(len(r.said) <= 1 and r.verdict is None for r in done.responses)
    assert all(each.closed for each in opened.values())


def test_a_world_that_breaks_or_never_answers_costs_its_response_alone(engine, short, wanted):
    gate = threading.Event()

    class Breaks(Asks):
        def reply(self, text):
            raise RuntimeError("the sandbox burnt down")

    class Sleeps(Asks):
        def reply(self, text):
            gate.wait(30)
            return Turn()

    broken, silent = [key for key, value in wanted.items() if value[3] == "stop"][:2]

    def make(group, index):
        return {broken: Breaks, silent: Sleeps}.get((group, index), Asks)()

    opened = {}
    tools = world(engine(64), opened, make, patience=0.5, threads=2)
    try:
        done = rollout(engine(64), short, chunk=32, policy="divided_rr", tools=tools)
    finally:
        gate.set()
    lost = {(r.group, r.index): r.faults for r in done.responses if r.finish_reason == "lost"}
    assert lost == {broken: ("world_error",), silent: ("world_silent",)}
    assert {key: value for key, value in told(done).items() if key not in lost} == {
        key: value for key, value in wanted.items() if key not in lost
    }


def test_patience_is_for_answers_and_not_for_a_thread(engine):
    """A clock by hand: who waits for a thread is lost only when every thread hangs."""
    now, gate, taken = [0.0], threading.Event(), threading.Semaphore(0)

    class Hangs(Asks):
        def reply(self, text):
            taken.release()
            gate.wait(30)
            return Turn()

    tools = world(engine(64), {}, lambda *_: Hangs(), patience=10.0, threads=1)
    threads = ToolThreads(tools, lambda: now[0])
    try:
        threads.ask(0, Conversation(), "a", 0, ())
        assert taken.acquire(timeout=10)
        now[0] = 5.0
        threads.ask(1, Conversation(), "a", 1, ())
        now[0] = 11.0
        assert [(job, turn.faults) for job, turn in threads.answers(0.0)] == [(0, ("world_silent",))]
        now[0] = 14.0
        assert threads.answers(0.0) == [] and threads.busy
        now[0] = 16.0
        assert [job for job, _ in threads.answers(0.0)] == [1] and not threads.busy
    finally:
        gate.set()
        threads.close()


def test_a_journal_keeps_conversations_that_are_over(engine, short, wanted, tmp_path):
    class Enough(Exception):
        pass

    seen = []

    def stop(response):
        seen.append((response.group, response.index))
        if len(seen) == 4:
            raise Enough

    with pytest.raises(Enough):
        rollout(engine(64), short, policy="divided_rr", tools=world(engine(64), {}), journal=tmp_path, on_response=stop)
    opened = {}
    done = rollout(engine(64), short, policy="divided_rr", tools=world(engine(64), opened), journal=tmp_path)
    assert told(done) == wanted
    assert not set(seen) & set(opened), "what was over was not held again"
    assert all(r.verdict == Verdict(0.5, "said all") for r in done.responses if r.finish_reason == "stop")


def test_an_engine_may_be_killed_while_its_conversations_wait_for_tools(short, wanted, engine):
    killed = []
    with Fleet(EngineConfig(kv_bytes=40 * 16384, max_seqs=8, threads=1), 2) as fleet:

        def kill(now):
            if not killed and now.tokens > 400:
                killed.append(fleet.pids()[0])
                os.kill(killed[0], signal.SIGKILL)

        done = rollout(fleet, short, policy="divided_rr", chunk=16, tools=world(engine(64), {}), on_progress=kill)
    assert killed and told(done) == wanted


def test_settings_of_tools_are_checked(engine):
    for name in ("turns", "turn_tokens", "threads", "patience"):
        with pytest.raises(InvalidConfig) as caught:
            Tools(lambda *_: Asks(), None, **{name: 0})
        assert caught.value.param == name


def test_a_conversation_goes_on_while_its_next_turn_fits(engine, short):
    """Room for what comes next is enough: all that ``max_tokens`` would allow never fitted behind a long answer."""
    told = "Here is a long story about an owl by the river. " * 6 + "What is 12 + 30?"
    group = replace(short[0], size=1, params=replace(short[0].params, max_tokens=300, temperature=0.0))
    small = engine(24)
    done = rollout(
        small, [group], policy="divided_rr", chunk=16,
        tools=world(small, {}, lambda *_: Asks((told,)), turn_tokens=60),
    )  # fmt: skip
    (response,) = done.responses
    (said,) = response.said
    assert len(group.prompt) + said[1] + 300 - said[0] > 24 * 16
    assert (response.finish_reason, response.verdict) == ("stop", Verdict(0.5, "said all"))
