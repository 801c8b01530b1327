"""All engines over one graph: what they find, what they count, and how a query gets its threads."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from itertools import chain

import numpy as np
import pytest
from tests.vector.synthetic import clustered, distances, recall

from statepool.core.errors import InvalidRequest
from statepool.vector import Index
from statepool.vector.native import ENGINES, core
from statepool.vector.policy import Load, choose_engine, choose_period, choose_threads, most_worth, share_out

K, WIDTH, HOPS = 10, 40, 8
PLAIN = ["edge", "iqan", "nosync", "async", "roles"]
SEALED = ["nosync", "async"]


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return clustered(4000, 48, 60)[1]


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "sealed"])
def index(request: pytest.FixtureRequest) -> Index:
    found = Index(48, "cos", R=32, build_window=60)
    found.build(clustered(4000, 48, 60)[0])
    if request.param:
        found.seal()
    return found


@pytest.fixture(scope="module")
def truth(queries: np.ndarray) -> np.ndarray:
    return distances("cos", clustered(4000, 48, 60)[0], queries)


def ask(index: Index, query: np.ndarray, engine: str, threads: int, jitter: int, width: int = WIDTH):
    """A search with naps where threads meet, so that helpers do come on a busy machine."""
    return index._core.search(query, K, width, threads, ENGINES[engine], 0, HOPS, jitter)


@pytest.mark.parametrize("threads", [2, 5, 16])
@pytest.mark.parametrize("engine", PLAIN)
def test_no_engine_loses_recall_or_invents_a_distance(
    engine: str, threads: int, index: Index, queries: np.ndarray, truth: np.ndarray
) -> None:
    if index._sealed and engine not in SEALED:
        with pytest.raises(ValueError, match="not sealed"):
            ask(index, queries[0], engine, threads, 1)
        return
    nearest = np.argsort(truth, axis=1)[:, :K]
    alone = recall([index.search(query, K, WIDTH).ids for query in queries], nearest)
    found = [ask(index, query, engine, threads, number + 1) for number, query in enumerate(queries)]
    assert recall([ids for ids, _, _ in found], nearest) >= alone - 0.02
    for number, (ids, measured, counts) in enumerate(found):
        assert len(set(ids.tolist())) == K
        np.testing.assert_allclose(measured, truth[number, ids], rtol=1e-4, atol=1e-5)
        assert counts.ndc_max <= counts.ndc
        assert 1 <= counts.threads <= threads
    # On a machine that is busy with others a helper may be late for many a short query, but not for thousands.
    helped = any(counts.threads > 1 for _, _, counts in found)
    for more in range(5000):
        if helped:
            break
        helped = ask(index, queries[0], engine, threads, 1000 + more)[2].threads > 1
    assert helped, "no helper ever came"


def test_helpers_share_the_work_and_the_threshold(index: Index, queries: np.ndarray) -> None:
    # On a machine that is busy with others the helper may get no core for a whole pass, but not for fifty.
    for again in range(50):
        counts = [ask(index, query, "async", 2, 60 * again + n + 1, 200)[2] for n, query in enumerate(queries)]
        both = [one for one in counts if one.threads == 2 and one.ndc_max < 0.9 * one.ndc]
        if both:
            break
    assert both, "no query was really shared"
    assert all(one.thresholds > 0 for one in both)
    alone = np.mean([ask(index, query, "sequential", 1, 0, 200)[2].ndc for query in queries])
    assert np.mean([one.ndc for one in counts]) < 1.3 * alone, "two threads repeat each other's work"


def test_one_thread_is_the_same_search_whatever_the_engine(index: Index, queries: np.ndarray) -> None:
    for query in queries:
        ids, measured, counts = ask(index, query, "sequential", 1, 0)
        for engine in SEALED if index._sealed else PLAIN:
            again, same, others = ask(index, query, engine, 1, 0)
            np.testing.assert_array_equal(ids, again)
            np.testing.assert_array_equal(measured.view(np.int32), same.view(np.int32))
            assert counts.hops == others.hops


def test_instruction_sets_give_the_same_bits(index: Index, queries: np.ndarray) -> None:
    from statepool.vector.native import core

    best = core.isa()
    wanted = [index.search(query, K) for query in queries]
    try:
        for name in ("generic", "avx2", "avx512"):
            if not core.set_isa(name):
                continue
            for query, one in zip(queries, wanted, strict=True):
                again = index.search(query, K)
                np.testing.assert_array_equal(one.ids, again.ids)
                np.testing.assert_array_equal(one.distances.view(np.int32), again.distances.view(np.int32))
                assert one.stats == again.stats
    finally:
        core.set_isa(best)


def test_instruction_sets_seal_the_same_rows() -> None:
    from statepool.vector.native import core

    rows = clustered(600, 48, 1)[0]
    rows[7] = rows[8]  # a residual of zeros, whose signs must be the same everywhere too
    index, best = Index(48, "cos", R=32, build_window=60), core.isa()
    found: dict[str, np.ndarray] = {}
    index.build(rows)
    try:
        for name in ("generic", "avx2", "avx512"):
            if core.set_isa(name):
                index.seal()
                found[name] = index._core.sealed()[0].copy()
    finally:
        core.set_isa(best)
    for name, sealed in found.items():
        np.testing.assert_array_equal(sealed, found["generic"], err_msg=name)


def test_a_deadline_ends_every_engine(index: Index, queries: np.ndarray) -> None:
    for engine in SEALED if index._sealed else PLAIN:
        found = index.search(queries[0], K, 2000, threads=3, engine=engine, deadline_us=1)
        assert found.truncated, engine


def test_threads_follow_the_load() -> None:
    assert choose_threads(Load(cores=16, busy=0, waiting=0), 64) == 16
    assert choose_threads(Load(cores=16, busy=0, waiting=0), 4) == 4
    assert choose_threads(Load(cores=16, busy=4, waiting=2), 64) == 4
    assert choose_threads(Load(cores=2, busy=2, waiting=0), 64) == 1
    assert choose_threads(Load(cores=2, busy=9, waiting=5), 64) == 1
    assert [choose_engine(threads) for threads in (1, 2, 64)] == ["sequential", "async", "async"]
    assert [choose_period(threads, sealed=False) for threads in (2, 4, 8, 64)] == [8, 8, 4, 4]
    assert choose_period(64, sealed=True) == 8


def test_who_comes_later_gets_an_equal_share_of_the_cores() -> None:
    assert share_out([2], idle=0, most=64, share=1) == [1]
    assert share_out([16], idle=0, most=64, share=8) == [8]
    assert share_out([16], idle=0, most=3, share=8) == [13], "no more than it can use"
    assert share_out([8, 8], idle=0, most=64, share=5) == [5, 6]
    assert share_out([14], idle=2, most=64, share=8) == [8], "idle cores first"
    assert share_out([4], idle=8, most=64, share=8) == [4]
    assert share_out([3, 2], idle=0, most=64, share=0) == [2, 2], "one is always found, if anybody has two"
    assert share_out([5, 5, 5], idle=0, most=64, share=5) == [5, 5, 5]


def test_a_helper_that_is_called_back_leaves_its_candidates_to_the_others(index: Index, queries: np.ndarray) -> None:
    """The pool is as wide as the index, so a candidate that is lost is a missing answer."""
    wanted = [index.exact(query, K).ids.tolist() for query in queries]
    lease, done = core.Lease(1), threading.Event()

    def call_back() -> None:
        for number in chain.from_iterable([1, 2, 3] for _ in iter(done.is_set, True)):
            lease.lower(number)
            time.sleep(1e-4)

    lender = threading.Thread(target=call_back)
    lender.start()
    helped = 0
    for again in range(400):
        place = again % len(queries)
        lease.lower(4)
        arguments = (queries[place], K, 4000, 4, ENGINES["async"], 0, HOPS, again + 1)
        ids, _, counts = index._core.search(*arguments, lease)
        assert ids.tolist() == wanted[place]
        helped += counts.threads > 1
        if again >= 40 and helped >= 20:
            break
    done.set()
    lender.join()
    assert helped, "no helper ever came"


def test_helpers_spin_for_one_caller_and_not_among_several(index: Index, queries: np.ndarray) -> None:
    def again(times: int) -> None:
        for _ in range(times):
            ask(index, queries[0], "async", 2, 0)

    for times, loops in ((1, False), (40, True), (1, False)):
        caller = threading.Thread(target=again, args=(times,))
        caller.start()
        caller.join()
        assert core.loops() == loops


def test_a_short_sealed_query_stays_on_one_thread() -> None:
    # Rows and widths at which two threads were measured slower, and faster, than one.
    assert [most_worth(128, ef, sealed=True) for ef in (10, 40, 60, 80)] == [1] * 4
    assert most_worth(384, 40, sealed=True) == 1
    assert [most_worth(384, ef, sealed=True) for ef in (80, 110, 220)] == [2, 2, 4]
    assert most_worth(128, 150, sealed=True) == 2
    assert most_worth(128, 10, sealed=False) == 64, "an exact distance is dear enough to share"


def test_auto_takes_no_thread_that_costs_more_than_it_brings(index: Index, queries: np.ndarray, monkeypatch) -> None:
    import statepool.vector.index as module

    cores = core.Cores(8, 0)
    monkeypatch.setattr(module, "_cores", lambda: cores)
    found = [index.search(query, K, WIDTH, threads="auto") for query in queries for _ in range(20)]
    if index._sealed:
        assert {one.stats.threads for one in found} == {1}
    else:
        assert any(one.stats.threads > 1 for one in found), "no helper ever came"
    assert cores.threads == cores.searches == 0


def test_auto_on_one_thread_has_the_bits_of_one_thread(index: Index, queries: np.ndarray, monkeypatch) -> None:
    import statepool.vector.index as module

    cores = core.Cores(1, 0)
    monkeypatch.setattr(module, "_cores", lambda: cores)
    for query in queries:
        alone, chosen = index.search(query, K, WIDTH), index.search(query, K, WIDTH, threads="auto")
        assert alone.ids.tolist() == chosen.ids.tolist()
        assert alone.distances.tobytes() == chosen.distances.tobytes()
        assert alone.stats == chosen.stats


def test_auto_is_a_number_of_threads(index: Index, queries: np.ndarray) -> None:
    found = index.search(queries[0], K, threads="auto")
    assert len(found.ids) == K
    for wrong in (0, 65, "all"):
        with pytest.raises(InvalidRequest, match="threads"):
            index.search(queries[0], K, threads=wrong)


def eventually(seen: Callable[[], bool], what: str) -> None:
    for _ in range(20_000):
        if seen():
            return
        time.sleep(0.005)
    raise AssertionError(what)


def test_who_finds_no_core_waits_for_one_and_shares_with_those_behind() -> None:
    cores = core.Cores(4, 0)
    got: list[tuple[str, int]] = []
    leave = {name: threading.Event() for name in "abc"}

    def query(name: str) -> None:
        grant = core.Grant(cores, 64, True, False)
        got.append((name, grant.threads))
        leave[name].wait(100)
        grant.end()

    threads = {name: threading.Thread(target=query, args=(name,)) for name in "abc"}
    threads["a"].start()
    eventually(lambda: len(got) == 1, "a took no core")
    for number, name in enumerate("bc", 1):
        threads[name].start()
        eventually(lambda number=number: cores.waiting == number, f"{name} does not wait")
    assert got == [("a", 4)]
    hurried = core.Grant(cores, 64, False, True)
    assert hurried.threads == 1, "who has a deadline does not wait"
    hurried.end()
    assert len(got) == 1
    leave["a"].set()
    eventually(lambda: len(got) == 3, "b and c still wait")
    # Who of them is first takes what the other, who waits or comes, leaves.
    assert all(1 <= count <= 3 for _, count in got[1:])
    assert cores.threads == sum(count for _, count in got[1:]) <= 4
    for event in leave.values():
        event.set()
    for thread in threads.values():
        thread.join(100)
    assert (cores.threads, cores.searches, cores.waiting) == (0, 0, 0)


def test_cores_are_lent_until_somebody_comes() -> None:
    cores = core.Cores(4, 0)
    held = [core.Grant(cores, 64, True, True)]
    assert held[0].threads == 4
    held.append(core.Grant(cores, 64, True, True))
    assert [one.threads for one in held] == [2, 2]
    held.append(core.Grant(cores, 64, True, False))
    assert sorted(one.threads for one in held) == [1, 1, 2]
    assert held[2].threads == 1
    held.append(core.Grant(cores, 64, True, True))
    assert [one.threads for one in held] == [1, 1, 1, 1]
    held.pop().end()
    last = core.Grant(cores, 64, True, False)
    assert last.threads == 1
    for one in held:
        one.end()
    assert (cores.threads, cores.searches, cores.waiting) == (1, 1, 0)
    last.end()
    last.end()
    assert (cores.threads, cores.searches) == (0, 0), "an end counts once"


@pytest.mark.parametrize("moment_ns, threads", [(0, 4), (10**15, 3)])
def test_a_caller_that_asked_a_moment_ago_is_expected_back(moment_ns: int, threads: int) -> None:
    cores = core.Cores(4, moment_ns)
    other = threading.Thread(target=lambda: core.Grant(cores, 1, True, True).end())
    other.start()
    other.join()
    for _ in range(2):  # the caller itself is not waited for
        grant = core.Grant(cores, 64, True, True)
        assert grant.threads == threads
        grant.end()


@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_the_compiled_rule_is_the_policy(count: int) -> None:
    """A history of searches that come and go, against the policy on the same figures."""
    dice, cores = np.random.default_rng(count), core.Cores(count, 0)
    held: list[tuple[object, bool]] = []
    for _ in range(300):
        if held and (cores.threads >= count or dice.random() < 0.4):
            held.pop(int(dice.integers(len(held))))[0].end()
            continue
        most, lends = int(dice.integers(1, count + 2)), bool(dice.random() < 0.8)
        lent = [one for one, may in held if may and one.threads > 1]
        busy, wanted = cores.threads, [one.threads for one, _ in held]
        if lent:
            kept = share_out([one.threads for one in lent], count - busy, most, count // (len(held) + 1))
            busy -= sum(one.threads for one in lent) - sum(kept)
            left = iter(kept)
            wanted = [next(left) if one in lent else one.threads for one, _ in held]
        wanted.append(choose_threads(Load(count, busy, 0), most))
        held.append((core.Grant(cores, most, False, lends), lends))
        assert [one.threads for one, _ in held] == wanted
    for one, _ in held:
        one.end()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_all_cores(index: Index, queries: np.ndarray) -> None:
    import statepool.vector.index as module

    grants = [core.Grant(module._cores(), 1, False, False) for _ in range(4)]
    try:
        child = os.fork()
        if child == 0:
            found = index.search(queries[0], K, WIDTH, threads="auto")
            os._exit(0 if len(found.ids) == K and module._cores().searches == 0 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        for one in grants:
            one.end()
