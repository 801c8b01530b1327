"""The scheduler alone: properties of every plan, and an endless-loop check on a toy engine."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from statepool.engine.scheduler import SequenceView, Snapshot, schedule
from statepool.kv.layout import BLOCK_SIZE


def blocks(tokens):
    return -(-tokens // BLOCK_SIZE)


@st.composite
def snapshots(draw):
    running, waiting = [], []
    for i in range(draw(st.integers(0, 6))):
        computed = draw(st.integers(0, 100))
        running.append(
            SequenceView(
                f"r{i}", draw(st.integers(0, 2)), i, computed + draw(st.integers(1, 60)), computed,
                blocks(computed), draw(st.integers(0, blocks(computed))), decoding=draw(st.booleans()),
            )
        )  # fmt: skip
    for i in range(draw(st.integers(0, 6))):
        total = draw(st.integers(1, 100))
        hit = draw(st.integers(0, (total - 1) // BLOCK_SIZE))
        waiting.append(
            SequenceView(
                f"w{i}", draw(st.integers(0, 2)), 10 + i, total, hit_tokens=hit * BLOCK_SIZE, hit_blocks=hit,
                hit_free=draw(st.integers(0, hit)), blocked=draw(st.booleans()),
            )
        )  # fmt: skip
    seats = draw(st.integers(max(len(running), 1), 8))
    return Snapshot(running, waiting, draw(st.integers(0, 12)), draw(st.integers(seats, 64)), seats)


@given(snapshots())
def test_every_plan_is_possible(snapshot):
    plan = schedule(snapshot)
    views = {view.id: view for view in (*snapshot.running, *snapshot.waiting)}
    done = dict(plan.work)
    assert len(done) == len(plan.work)
    assert sum(done.values()) <= snapshot.max_tokens
    assert not set(done) & set(plan.preempt)
    assert len(snapshot.running) - len(plan.preempt) + len(plan.admit) <= snapshot.max_seqs
    free = snapshot.free_blocks + sum(views[name].freeable for name in plan.preempt)
    for name, tokens in plan.work:
        view = views[name]
        start = view.hit_tokens if name in plan.admit else view.computed
        held = view.hit_blocks if name in plan.admit else view.blocks
        assert 1 <= tokens <= view.total - start
        free -= max(blocks(start + tokens) - held, 0) + (view.hit_free if name in plan.admit else 0)
        assert not (view.blocked and name in plan.admit)
    assert free >= 0
    assert schedule(snapshot) == plan


@given(snapshots())
def test_who_waits_behind_one_that_finds_no_room_need_not_be_looked_at(snapshot):
    line = sorted(snapshot.waiting, key=lambda view: view.rank)
    whole = replace(snapshot, waiting=[view for view in line if not view.blocked])
    if not whole.waiting or len(whole.waiting) > snapshot.max_seqs - len(snapshot.running):
        return
    part = replace(whole, waiting=whole.waiting[:1], unseen=len(whole.waiting) - 1)
    plan = schedule(part)
    if plan.starved:
        assert plan == schedule(whole)


@given(snapshots())
def test_only_the_last_in_rank_are_preempted(snapshot):
    plan = schedule(snapshot)
    ranks = {view.id: view.rank for view in snapshot.running}
    kept = [ranks[name] for name in ranks if name not in plan.preempt]
    assert all(rank <= min(ranks[name] for name in plan.preempt) for rank in kept) if plan.preempt else True
    assert not (plan.preempt and plan.admit)


def decoders(count):
    return [SequenceView(f"d{i}", 0, i, 101, 100, 7, decoding=True) for i in range(count)]


def test_a_long_prefill_beside_decodes_gets_one_seats_share_of_the_step():
    prefill = SequenceView("p", 0, 9, 10_000)
    plan = schedule(Snapshot(decoders(4), [prefill], 1000, 64, 8))
    assert plan.work == (("d0", 1), ("d1", 1), ("d2", 1), ("d3", 1), ("p", 8))
    started = SequenceView("p", 0, 9, 10_000, 8, 1)
    assert schedule(Snapshot([*decoders(4), started], [], 1000, 64, 8)).work == plan.work


def test_one_decode_does_not_slow_down_a_crowd_that_just_arrived():
    crowd = [SequenceView(f"p{i}", 0, 9 + i, 8) for i in range(7)]
    plan = schedule(Snapshot(decoders(1), crowd, 1000, 64, 8))
    assert plan.work == (("d0", 1), *((f"p{i}", 8) for i in range(6)))


def test_drafts_are_no_prompt():
    drafted = [SequenceView(f"d{i}", 0, i, 109, 100, 7, decoding=True) for i in range(4)]
    assert schedule(Snapshot(drafted, [], 1000, 64, 8)).work == tuple((f"d{i}", 9) for i in range(4))


def test_priority_beats_arrival():
    first, urgent = SequenceView("first", 1, 0, 10), SequenceView("urgent", 0, 1, 10)
    assert schedule(Snapshot([], [first, urgent], 100, 64, 1)).admit == ("urgent",)


def test_a_blocked_sequence_keeps_its_place_and_blocks_nobody():
    views = [SequenceView("a", 0, 0, 10, blocked=True), SequenceView("b", 0, 1, 10)]
    assert schedule(Snapshot([], views, 100, 64, 2)).admit == ("b",)


def test_a_lone_prefill_takes_the_whole_budget():
    assert schedule(Snapshot([], [SequenceView("a", 0, 0, 100)], 100, 64, 2)).work == (("a", 64),)
