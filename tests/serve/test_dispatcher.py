"""The conductor's books over a clock of the test's own: prefixes, queues, refusals, learning, losses."""

import asyncio

import numpy as np
import pytest

from statepool.core.errors import Overloaded
from statepool.engine.request import Request, SamplingParams
from statepool.kv.keys import block_keys, root_key
from statepool.serve.dispatcher import Dispatcher
from statepool.serve.estimate import Estimator, live_costs
from statepool.serve.policies import conductor
from statepool.serve.snapshot import SLO

C0, C1, C2 = 0.01, 1e-4, 1e-8


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def known_costs():
    """An estimator that has seen prefills of a machine with costs C0, C1, C2, and steps of 20 ms."""
    estimator = Estimator(live_costs(1024, 100_000))
    for i in range(32):
        tokens, cached = 500 + 333 * i, (i % 3) * 160
        estimator.prefilled(tokens, cached, C0 + C1 * (tokens - cached) + C2 * (tokens**2 - cached**2))
        estimator.stepped(1 + i % 5, 1000 + 100 * i, 0.02)
    return estimator


def dispatcher(policy="global", admission="none", seats=4, slo=None, blocks=1000, estimator=None):
    estimator = estimator or known_costs()
    clock = Clock()
    policies = conductor(policy, admission, estimator.costs, slo or SLO(30, 1))
    return Dispatcher(seats, policies, estimator, blocks, clock), clock


def request(tokens, name="r", start=0, salt=""):
    return Request(name, tuple(range(start, start + tokens)), SamplingParams(max_tokens=10), salt=salt)


def test_costs_are_learnt_from_measurements():
    costs = known_costs().costs
    assert np.allclose(costs.prefill, (C0, C1, C2), rtol=1e-3)
    assert costs.decode_s(3, 2000) == pytest.approx(0.02, abs=1e-3)
    line = Estimator(live_costs(1024, 100_000))
    for batch in range(1, 9):
        for held in (1000, 5000, 9000):
            line.stepped(batch, held, 0.004 + 0.001 * batch + 2e-7 * held)
    assert line.costs.decode_s(4, 3000) == pytest.approx(0.004 + 0.004 + 6e-4, abs=1e-4)
    flat = Estimator(live_costs(1024, 100_000))
    for _ in range(64):
        flat.prefilled(1000, 0, 0.5)
    assert flat.costs.prefill == (0.0, 0.0, 0.0), "one size tells no slope"


def test_a_prefix_goes_where_it_was_computed():
    books, _ = dispatcher("local")
    first = books.decide(request(1600), [0, 1], [2, 3])
    books.prefilled(first)
    books.ended(first, finished=True)
    for _ in range(3):
        again = books.decide(request(1600, start=0), [0, 1], [2, 3])
        assert (again.prefill, again.decision.reuse) == (first.prefill, 1599)
        books.prefilled(again)
        books.ended(again, finished=True)
    stranger = books.decide(request(1600, salt="another tenant"), [0, 1], [2, 3])
    assert stranger.decision.reuse == 0
    books.lost(first.prefill)
    assert books.decide(request(1600), [0, 1], [2, 3]).decision.reuse == 0


def test_a_long_queue_is_avoided():
    books, clock = dispatcher("global")
    chosen = [books.decide(request(4000, start=100 * i), [0, 1], [2, 3]).prefill for i in range(6)]
    assert sorted(chosen) == [0, 0, 0, 1, 1, 1]
    assert [books.load(seat)[0] for seat in (0, 1)] == [12_000, 12_000]
    clock.now = 1.0
    assert books.decide(request(16, start=50_000), [1], [2]).prefill == 1, "only engines that were named"


def test_decode_engines_fill_evenly():
    books, _ = dispatcher()
    tickets = [books.decide(request(500, start=10_000 * i), [0, 1], [2, 3]) for i in range(8)]
    for ticket in tickets:
        books.prefilled(ticket)
        books.joined(ticket, ticket.decode)
        books.wrote(ticket, 1)
    assert [books.load(seat)[1] for seat in (2, 3)] == [4 * 501, 4 * 501]
    for ticket in tickets:
        books.ended(ticket, finished=True)
    assert [books.load(seat) for seat in range(4)] == [(0, 0)] * 4


def test_what_cannot_be_kept_is_refused_with_a_time_to_come_back():
    books, clock = dispatcher(admission="both", slo=SLO(ttft_s=1.1, tbt_s=1.0))
    # A prefill of 2000 tokens takes 0.25 s: four of them end in time on each of two engines.
    admitted = [books.decide(request(2000, start=10_000 * i), [0, 1], [2, 3]) for i in range(8)]
    with pytest.raises(Overloaded, match="first token would come too late") as refused:
        books.decide(request(2000, start=90_000), [0, 1], [2, 3])
    assert refused.value.retry_after >= 1
    assert books.refused == 1
    clock.now = 0.26
    for ticket in admitted[:2]:
        books.prefilled(ticket)
    assert books.decide(request(2000, start=999_000), [0, 1], [2, 3]).decision.refused == ""


def test_memory_of_an_engine_is_bounded():
    books, _ = dispatcher("local", blocks=50)
    for i in range(20):
        ticket = books.decide(request(320, start=1000 * i), [0], [1])
        books.prefilled(ticket)
        books.ended(ticket, finished=True)
    assert len(books._seats[0].blocks) == 50
    assert books.decide(request(320, start=19_000), [0], [1]).decision.reuse == 319
    assert books.decide(request(320, start=0), [0], [1]).decision.reuse == 0


def full_books(monkeypatch, ends_after):
    """Books under ``patience`` whose decode seat is full for some asks, and a sleep that moves the clock."""
    books, clock = dispatcher("global", "patience", seats=2, slo=SLO(30, 1))
    for i in range(200):  # answers are long here
        taught = books.decide(request(100, start=i), [0], [1])
        books.wrote(taught, 4000)
        books.ended(taught, finished=True)
    there = []
    while not isinstance(ticket := books.decide(request(8000, start=10_000 * len(there)), [0], [1]), float):
        books.prefilled(ticket)
        books.joined(ticket, 1)
        there.append(ticket)
    assert 8 < len(there) < 13, "100,000 tokens of room"
    sleeps = []

    async def sleep(seconds):
        sleeps.append(seconds)
        clock.now += seconds
        if len(sleeps) == ends_after:
            for ticket in there:
                books.ended(ticket, finished=True)

    monkeypatch.setattr("statepool.serve.dispatcher.asyncio.sleep", sleep)
    return books, sleeps


async def seats():
    return [0], [1]


def test_a_request_is_kept_until_there_is_room(monkeypatch):
    books, sleeps = full_books(monkeypatch, ends_after=5)
    hashed = []

    def counted(tokens, size, root):
        hashed.append(len(tokens))
        return block_keys(tokens, size, root)

    monkeypatch.setattr("statepool.serve.dispatcher.block_keys", counted)
    ticket = asyncio.run(books.admit(request(8000, start=100_000), seats))
    assert (ticket.decision.refused, len(sleeps), books.refused) == ("", 5, 0)
    assert hashed == [8000], "however often it asks, its prompt is hashed once"
    assert ticket.keys == block_keys(range(100_000, 108_000), 16, root_key(""))


@pytest.mark.parametrize("admission", ["foresight", "patience"])
@pytest.mark.parametrize("prefills", [0, 32])
def test_policies_that_look_ahead_admit_before_a_step_was_measured(admission, prefills):
    """A fresh cluster knows no step's duration; what runs is not expected to end."""
    estimator = Estimator(live_costs(1024, 100_000))
    for i in range(prefills):
        estimator.prefilled(500 + 333 * i, 0, C0 + C1 * (500 + 333 * i))
    books, clock = dispatcher("global", admission, seats=2, estimator=estimator)
    for i in range(5):
        ticket = books.decide(request(5000, start=10_000 * i), [0], [1])
        books.prefilled(ticket)
        books.joined(ticket, 1)
        clock.now += 0.5
    assert books.load(1)[1] == 25_000


def test_a_request_is_refused_when_its_promise_cannot_be_held_any_more(monkeypatch):
    books, sleeps = full_books(monkeypatch, ends_after=1000)
    with pytest.raises(Overloaded, match="no room"):
        asyncio.run(books.admit(request(8000, start=900_000), seats))
    assert 20 < len(sleeps) < 30
    assert books.refused == 1
    assert books.load(0) == (0, 0), "a request that was kept is on nobody's books"
