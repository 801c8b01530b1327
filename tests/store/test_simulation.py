"""Histories of failing machines, each from its seed: nothing acknowledged is lost, nothing happens twice."""

from __future__ import annotations

import pytest

from statepool.store.net import roles
from statepool.store.net.roles import Answer, Mirror, Position, Primary, Renewal, Vote, Witness

from .simulator import World


def test_a_seed_is_one_history() -> None:
    one, two = World(7).run(), World(7).run()
    assert one.trace.hexdigest() == two.trace.hexdigest()
    assert one.trace.hexdigest() != World(8).run().trace.hexdigest()


@pytest.mark.parametrize("first", range(0, 50, 10))
def test_nothing_is_lost_and_nothing_happens_twice(first: int) -> None:
    worlds = [World(seed).run() for seed in range(first, first + 10)]
    assert sum(world.promotions for world in worlds) > 5
    assert all(len(world.acked) > 100 for world in worlds)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(50, 1000, 50))
def test_a_thousand_histories(first: int) -> None:
    for seed in range(first, first + 50):
        World(seed).run()


def broken_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roles, "DRIFT", -0.3)


def lease_from_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Primary, "may_acknowledge", lambda self, now: not self.fenced)


def any_mirror_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def pulled(self: Primary, node: str, position: Position, now: float) -> None:
        self._pulled_at, self.mirrored = now, max(self.mirrored, position.lsn)

    monkeypatch.setattr(Primary, "pulled", pulled)
    original = Witness.promote

    def promote(self: Witness, node: str, now: float) -> Answer:
        if node != self.vote.holder:
            self.vote = Vote(self.vote.term, self.vote.holder, node, self.vote.number)
        return original(self, node, now)

    monkeypatch.setattr(Witness, "promote", promote)


def mirror_before_the_witness_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Primary.pulled

    def pulled(self: Primary, node: str, position: Position, now: float) -> None:
        original(self, node, position, now)
        self.mirror = self.wanted

    monkeypatch.setattr(Primary, "pulled", pulled)


def witness_forgets_its_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Witness.__init__

    def init(self: Witness, vote: Vote, lease: float, now: float) -> None:
        original(self, vote, lease, now)
        self._until = now

    monkeypatch.setattr(Witness, "__init__", init)


def floor_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Primary.__init__

    def init(self: Primary, node: str, term: int, epoch: int, floor: int, lease: float | None, patience: float) -> None:
        original(self, node, term, epoch, 0, lease, patience)

    monkeypatch.setattr(Primary, "__init__", init)


@pytest.mark.parametrize(
    "breaks",
    [
        broken_drift,
        lease_from_the_answer,
        any_mirror_counts,
        mirror_before_the_witness_knows,
        witness_forgets_its_lease,
        floor_ignored,
    ],
)
def test_the_simulator_finds_a_broken_protocol(breaks: object, monkeypatch: pytest.MonkeyPatch) -> None:
    breaks(monkeypatch)  # type: ignore[operator]
    with pytest.raises(AssertionError, match=r"may acknowledge|reigns without"):
        for seed in range(200):
            World(seed).run()


def test_an_old_renewal_changes_nothing() -> None:
    witness = Witness(Vote(), 3.0, 0.0)
    assert witness.renew(Renewal("p", 0, "m", (1, 1)), 1.0).granted
    assert witness.renew(Renewal("p", 0, "n", (1, 3)), 2.0).granted
    assert not witness.renew(Renewal("p", 0, "m", (1, 2)), 2.5).granted
    assert witness.vote.mirror == "n"
    assert not witness.promote("m", 99.0).granted
    assert not witness.promote("n", 4.9).granted
    assert witness.promote("n", 5.1).vote == Vote(1, "n")
    assert witness.promote("n", 5.2).granted
    assert not witness.renew(Renewal("p", 0, "m", (1, 4)), 9.0).granted


def test_what_a_lower_term_sends_is_refused() -> None:
    mirror = Mirror("m", 3, Position(3 << 32, 7, 99))
    assert not mirror.accepts(2) and mirror.term == 3
    assert not mirror.follows(2 << 32, 8, 99), "a frame of an earlier reign behind one of a later"
    assert not mirror.follows(3 << 32, 9, 99) and not mirror.follows(3 << 32, 8, 98)
    assert mirror.follows(4 << 32, 8, 99)
    assert mirror.accepts(4) and mirror.term == 4 and not mirror.accepts(3)
    primary = Primary("p", 3, 3 << 32, 7, None, 1.0)
    primary.heard(3)
    assert primary.may_acknowledge(0.0)
    primary.heard(4)
    assert not primary.may_acknowledge(0.0) and primary.fenced == 4
