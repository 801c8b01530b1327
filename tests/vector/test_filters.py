"""Searches among the rows that pass, against brute force in float64 and plain Python conditions."""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.vector.synthetic import clustered, distances, recall

from statepool.core.errors import InvalidRequest
from statepool.vector import FilterError, Index, LiveIndex, open  # noqa: A004 - the name users know from files
from statepool.vector.columns import Columns
from statepool.vector.filters import mask
from statepool.vector.policy import choose_path

K, N = 10, 24_000
COLUMNS = {"lang": "str", "ts": "i64", "score": "f64"}


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    return clustered(N, 24, 40, seed=5)


def table(rows: np.ndarray) -> dict[str, list]:
    """`ts` has nothing to do with the vectors; `score` is where a row lies along the first axis."""
    dice = np.random.default_rng(9)
    return {
        "lang": [("de", "en", "fr", "ja")[i] for i in dice.integers(0, 4, len(rows))],
        "ts": dice.permutation(len(rows)).tolist(),
        "score": rows[:, 0].astype(float).tolist(),
    }


@pytest.fixture(scope="module")
def index(data) -> Index:
    rows = data[0]
    found = Index(24, "l2", R=32, build_window=80, columns=COLUMNS)
    found.build(rows, columns=table(rows))
    return found


@pytest.fixture(scope="module")
def halves(data, tmp_path_factory) -> LiveIndex:
    """Half of the rows built and sealed, half of them changes; some replaced and some deleted and added again."""
    rows, values = data[0], table(data[0])
    part = lambda chosen: {name: [column[i] for i in chosen] for name, column in values.items()}  # noqa: E731
    built = Index(24, "l2", R=32, build_window=80, columns=COLUMNS)
    first = range(N // 2)
    built.build(rows[: N // 2], columns=part(first))
    built.seal()
    found = LiveIndex.over(built)
    found.add(rows[N // 2 :], range(N // 2, N), columns=part(range(N // 2, N)))
    again = range(0, N, 40)
    found.update(again, rows[again], columns=part(again))
    gone = range(1, N, 40)
    assert found.delete(gone) == len(gone)
    found.add(rows[gone], gone, columns=part(gone))
    return found


def bounds(share: float, kind: str, query: np.ndarray, scores: np.ndarray) -> tuple[dict, np.ndarray]:
    """A filter that the share of rows passes, and these rows."""
    count = round(share * N)
    if kind == "apart":
        ts = np.array(table_of_ts())
        return {"ts": {"lt": count}}, ts < count
    # Correlated: rows that lie as the query does along the first axis; anti-correlated: those farthest from it.
    gaps = np.abs(scores - query[0])
    order = np.argsort(gaps if kind == "near" else -gaps)
    chosen = np.zeros(N, bool)
    chosen[order[:count]] = True
    if count == 0:
        return {"score": {"lt": float(scores.min())}}, chosen
    if kind == "near":
        return {"score": {"ge": float(scores[chosen].min()), "le": float(scores[chosen].max())}}, chosen
    low, high = scores[~chosen].min(initial=np.inf), scores[~chosen].max(initial=-np.inf)
    if count == N:
        return {"score": {"ge": float(scores.min())}}, chosen
    return {"not": {"score": {"ge": float(low), "le": float(high)}}}, chosen


def table_of_ts() -> list[int]:
    dice = np.random.default_rng(9)
    dice.integers(0, 4, N)
    return dice.permutation(N).tolist()


WAYS = {1.0: "check", 0.5: "check", 0.21: "probe, two-hop", 0.1: "probe, two-hop"} | dict.fromkeys(
    (0.01, 0.001), "scan"
)
WAYS[0.0] = "empty"
FAR = WAYS | {0.5: "check, two-hop", 0.21: "probe, scan", 0.1: "probe, scan"}
"""Where the rows that pass are those farthest from the query."""
EF = {0.21: 45, 0.1: 22}
"""With more candidates so few rows are measured one by one."""


@pytest.mark.parametrize("kind", ["apart", "near", "far"])
@pytest.mark.parametrize("share", WAYS)
def test_recall_and_the_way_taken(index: Index, data, share: float, kind: str) -> None:
    rows, queries = data
    scores = rows[:, 0].astype(float)
    found, truth, paths = [], [], set()
    for query in queries:
        chosen, passing = bounds(share, kind, query, scores)
        answer = index.search(query, K, EF.get(share, 80), filter=chosen)
        assert answer.stats.matches == passing.sum()
        assert len(answer.ids) == min(K, passing.sum())
        assert passing[answer.ids].all()
        gaps = distances("l2", rows[passing], query[None])[0]
        truth.append(np.flatnonzero(passing)[np.argsort(gaps)[:K]])
        found.append(answer.ids)
        paths.add(answer.stats.path)
        np.testing.assert_allclose(answer.distances, distances("l2", rows[answer.ids], query[None])[0], rtol=1e-4)
        assert (np.diff(answer.distances) >= 0).all()
    if share:
        assert recall(found, np.array(truth)) >= 0.95
    if kind == "far" and share < 1:  # not from every query: one in the middle has some of them around
        assert FAR[share] in paths
        assert paths <= {FAR[share], WAYS[share]}
    else:
        assert paths == {WAYS[share]}
    if kind != "far" and share >= 0.1:
        assert answer.stats.ndc < passing.sum() / 3, "the graph was not used"


def test_a_check_ends_once_enough_rows_that_pass_led_on(index: Index, data) -> None:
    """All rows around the query pass, so half of the others matters nothing."""
    rows, queries = data
    scores = rows[:, 0].astype(float)
    filtered = free = 0
    for query in queries:
        answer = index.search(query, K, 80, filter=bounds(0.5, "near", query, scores)[0])
        assert answer.stats.path == "check"
        filtered, free = filtered + answer.stats.hops, free + index.search(query, K, 80).stats.hops
    assert filtered < 1.5 * free, "as many candidates were looked at as if half of them failed"


@pytest.mark.parametrize("kind", ["apart", "near", "far"])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.21, 0.1])
def test_a_sealed_index_goes_by_its_codes_and_answers_at_stored_precision(data, share: float, kind: str) -> None:
    rows, queries = data
    index, scores, found, truth = sealed(), rows[:, 0].astype(float), [], []
    for query in queries[:20]:
        chosen, passing = bounds(share, kind, query, scores)
        answer = index.search(query, K, 80, filter=chosen)
        assert answer.stats.matches == passing.sum()
        assert len(answer.ids) == K
        assert passing[answer.ids].all()
        np.testing.assert_allclose(answer.distances, distances("l2", rows[answer.ids], query[None])[0], rtol=1e-4)
        assert (np.diff(answer.distances) >= 0).all()
        if kind != "far":
            assert answer.stats.path == ("scan" if share == 0.1 else "check")
        if answer.stats.path == "check":
            # Hops of a sealed graph cost 33 distances each, the node and its codes.
            assert answer.stats.ndc == pytest.approx(33 * answer.stats.hops, abs=200)
        truth.append(np.flatnonzero(passing)[np.argsort(distances("l2", rows[passing], query[None])[0])[:K]])
        found.append(answer.ids)
    assert recall(found, np.array(truth)) >= 0.95


@cache
def sealed() -> Index:
    rows, _ = clustered(N, 24, 40, seed=5)
    found = Index(24, "l2", R=32, build_window=80, columns=COLUMNS)
    found.build(rows, columns=table(rows))
    found.seal()
    return found


@pytest.mark.parametrize("share", WAYS)
@pytest.mark.parametrize("kind", ["apart", "far"])
def test_a_changing_index_and_its_snapshot_filter_alike(halves: LiveIndex, data, share: float, kind: str) -> None:
    rows, queries = data
    scores = rows[:, 0].astype(float)
    with halves.snapshot() as frozen:
        found, truth = [], []
        for query in queries[:20]:
            chosen, passing = bounds(share, kind, query, scores)
            for view in (halves, frozen):
                answer = view.search(query, K, 80, filter=chosen)
                assert answer.stats.matches == passing.sum()
                assert len(answer.ids) == min(K, passing.sum())
                assert passing[answer.ids].all()
                exact = view.exact(query, K, filter=chosen)
                gaps = distances("l2", rows[passing], query[None])[0] if passing.any() else np.empty(0)
                np.testing.assert_allclose(exact.distances, np.sort(gaps)[:K], rtol=1e-4)
                truth.append(np.flatnonzero(passing)[np.argsort(gaps)[:K]])
                found.append(answer.ids)
        if share:
            assert recall(found, np.array(truth)) >= 0.95


def test_the_plan_is_a_function_of_counts() -> None:
    assert choose_path(10**6, 0, 64).path == "empty"
    assert choose_path(10**6, 10_000, 64).path == "scan"
    assert choose_path(10**5, 2000, 64).path == "scan"
    assert choose_path(10**6, 10_001, 64).path == "two-hop"
    assert choose_path(10**6, 20_000, 200).path == "scan"
    assert choose_path(10**6, 20_001, 200).path == "two-hop"
    assert choose_path(20_000, 9000, 400).path == "check"
    assert choose_path(10**6, 16_001, 64, sealed=True).path == "check"
    assert choose_path(10**6, 16_001, 64, sealed=True).width == 64 * 10**6 // 16_001
    assert choose_path(10**6, 16_000, 64, sealed=True).path == "scan"
    assert choose_path(10**6, 0, 64, sealed=True).path == "empty"
    assert choose_path(10**6, 400_000, 64).path == "two-hop"
    assert choose_path(10**6, 400_001, 64).path == "check"
    assert choose_path(1000, 500, 64).width == 64 or choose_path(1000, 500, 64).path == "scan"
    assert choose_path(10**6, 500_000, 64).width == 128


LANGS = ["de", "en", "fr", ""]
VALUES = st.one_of(
    st.tuples(st.just("lang"), st.sampled_from([*LANGS, "none"])),
    st.tuples(st.just("ts"), st.integers(-4, 4)),
    st.tuples(st.just("score"), st.sampled_from([-1.5, 0.0, 0.25, 2.0])),
)


def one(pair: tuple) -> st.SearchStrategy:
    name, value = pair
    orders = ["eq", "ne"] if name == "lang" else ["eq", "ne", "lt", "le", "gt", "ge"]
    some = st.lists(st.just(value), max_size=2)
    return st.one_of(
        st.just({name: value}),
        some.map(lambda values: {name: values}),
        st.dictionaries(st.sampled_from(orders), st.just(value), min_size=1, max_size=2).map(lambda d: {name: d}),
    )


EXPRESSIONS = st.recursive(
    VALUES.flatmap(one),
    lambda inner: st.one_of(
        inner.map(lambda e: {"not": e}),
        st.lists(inner, min_size=1, max_size=3).map(lambda es: {"and": es}),
        st.lists(inner, min_size=1, max_size=3).map(lambda es: {"or": es}),
    ),
    max_leaves=6,
)


def passes(row: dict, expression: dict) -> bool:
    """The slow twin: one row, one condition after the other."""
    orders = {
        "eq": lambda a, b: a == b,
        "ne": lambda a, b: a != b,
        "lt": lambda a, b: a < b,
        "le": lambda a, b: a <= b,
        "gt": lambda a, b: a > b,
        "ge": lambda a, b: a >= b,
    }
    for name, wanted in expression.items():
        if name == "not":
            good = not passes(row, wanted)
        elif name == "and":
            good = all(passes(row, part) for part in wanted)
        elif name == "or":
            good = any(passes(row, part) for part in wanted)
        elif isinstance(wanted, list):
            good = row[name] in wanted
        elif isinstance(wanted, dict):
            good = all(orders[order](row[name], bound) for order, bound in wanted.items())
        else:
            good = row[name] == wanted
        if not good:
            return False
    return True


@settings(max_examples=100, deadline=None)
@given(EXPRESSIONS)
def test_expressions_mean_what_they_say(expression: dict) -> None:
    dice = np.random.default_rng(2)
    rows = [
        {
            "lang": LANGS[dice.integers(4)],
            "ts": int(dice.integers(-3, 4)),
            "score": float(dice.choice([-1.5, 0.0, 0.25])),
        }
        for _ in range(60)
    ]
    columns = Columns(COLUMNS)
    values = columns.check({name: [row[name] for row in rows] for name in COLUMNS}, len(rows))
    columns.put(np.arange(60), values)
    assert mask(columns, expression, 60).tolist() == [passes(row, expression) for row in rows]


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ({"tongue": "de"}, "no column 'tongue' .it has lang, ts, score."),
        ({"lang": 3}, "'lang' is text; 3 is not"),
        ({"ts": "now"}, "'ts' is i64; 'now' is no number"),
        ({"ts": True}, "True is no number"),
        ({"ts": {"above": 3}}, "'above' is none of eq, ne, lt"),
        ({"lang": {"lt": "de"}}, "'lang' is text and has no order"),
        ({"score": float("nan")}, "not finite"),
        ({"ts": 2**70}, "does not fit into 64 bits"),
        ({"ts": {}}, "empty range"),
        ({"or": []}, "'or' needs a list"),
        ({"not": [{"ts": 1}]}, "is no filter"),
        ({}, "is no filter"),
        ("ts > 3", "is no filter"),
    ],
)
def test_a_wrong_filter_names_the_column_and_the_fix(index: Index, halves: LiveIndex, expression, says: str) -> None:
    with halves.snapshot() as frozen:
        for view in (index, halves, frozen, LiveIndex(24, columns=COLUMNS)):
            with pytest.raises(FilterError, match=says):
                view.search(np.ones(24), filter=expression)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (None, "'lang' is missing"),
        ({"lang": ["de"], "ts": [1], "score": [0.5], "more": [1]}, "no column 'more'"),
        ({"lang": ["de", "en"], "ts": [1], "score": [0.5]}, "'lang' must hold 1 values"),
        ({"lang": [3], "ts": [1], "score": [0.5]}, "'lang' holds values that are no text"),
        ({"lang": ["de"], "ts": [1.5], "score": [0.5]}, "'ts' holds float64 values; pass integers"),
        ({"lang": ["de"], "ts": [2**63], "score": [0.5]}, "above 2.63 - 1"),
        ({"lang": ["de"], "ts": [1], "score": [float("inf")]}, "'score' holds NaN or infinity"),
    ],
)
def test_wrong_values_change_nothing(values, says: str) -> None:
    live, index = LiveIndex(3, columns=COLUMNS), Index(3, columns=COLUMNS)
    with pytest.raises(InvalidRequest, match=says):
        live.add(np.ones((1, 3)), [1], columns=values)
    with pytest.raises(InvalidRequest, match=says):
        index.build(np.ones((1, 3)), columns=values)
    assert len(live) == len(index) == 0


def test_wrong_columns() -> None:
    for columns, says in (({"and": "i64"}, "no name for a column"), ({"a": "u8"}, "'u8' is none of str, i64, f64")):
        with pytest.raises(InvalidRequest, match=says):
            Index(3, columns=columns)


def test_columns_are_kept_in_file_log_and_compaction(tmp_path: Path, data) -> None:
    rows, path = data[0][:600], tmp_path / "index"
    built = Index(24, "l2", R=16, build_window=40, columns=COLUMNS)
    values = table(rows)
    part = lambda first, end: {name: column[first:end] for name, column in values.items()}  # noqa: E731
    built.build(rows[:400], columns=part(0, 400))
    built.save(path)

    def check(one) -> None:
        expected = {i for i in range(600) if values["lang"][i] == "de" and 50 <= values["ts"][i] < 450 and i >= 10}
        found = one.search(rows[0], 600, 600, filter={"lang": "de", "ts": {"ge": 50, "lt": 450}})
        assert set(found.ids.tolist()) == expected
        assert found.stats.matches == len(expected)

    with open(path, "rw") as index:
        index.add(rows[400:], range(400, 600), columns=part(400, 600))
        index.delete(range(10))
        check(index)
    check(open(path))
    with open(path, "rw") as index:
        check(index)
        index.compact()
        check(index)
    assert isinstance(open(path), Index)
    check(open(path))


def test_slots_that_are_used_again_never_answer_for_another_row() -> None:
    """Rows come and go until their slots have had rows of every kind; a search for one kind finds no other."""
    rows, _ = clustered(2000, 8, 1, seed=3)
    index = LiveIndex(8, "l2", R=16, build_window=32, capacity=3000, columns={"kind": "i64"})
    first = range(2000)
    index.add(rows, first, columns={"kind": [one % 3 for one in first]})
    ended = threading.Event()
    wrong: list[int] = []

    def churn() -> None:
        for turn in range(1, 25):
            old = range(1000 * (turn - 1), 1000 * turn)
            index.delete(old)
            index.repair()
            new = range(1000 + 1000 * turn, 2000 + 1000 * turn)
            index.add(rows[:1000], new, columns={"kind": [one % 3 for one in new]})
        ended.set()

    thread = threading.Thread(target=churn)
    thread.start()
    searches = 0
    while not ended.is_set() or searches < 50:
        for kind in range(3):
            for k, ef in ((50, 64), (400, 400)):
                found = index.search(rows[searches % 2000], k, ef, filter={"kind": kind})
                wrong += [one for one in found.ids.tolist() if one % 3 != kind]
                searches += 1
    thread.join()
    assert not wrong
    assert searches > 50
    assert index._parts.live.turnover > 20


def test_a_snapshot_stays_while_threads_change_everything() -> None:
    rows, queries = clustered(1500, 8, 10, seed=4)
    index = LiveIndex(8, "l2", R=16, build_window=32, capacity=20_000, columns={"kind": "i64"})
    index.add(rows, range(1500), columns={"kind": [one % 2 for one in range(1500)]})
    with index.snapshot() as frozen:
        before = [frozen.search(query, K, 64, filter={"kind": 1}).ids.tolist() for query in queries]

        def churn(part: int) -> None:
            for turn in range(4):
                own = np.arange(part, 1500, 4)
                index.update(own, rows[own[::-1]], columns={"kind": [turn] * len(own)})
            index.delete(np.arange(part, 1500, 4))

        threads = [threading.Thread(target=churn, args=(part,)) for part in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(10):
            truth = np.sort(distances("l2", rows[1::2], queries), axis=1)[:, :K]
            for query, want in zip(queries, truth, strict=True):
                np.testing.assert_allclose(frozen.exact(query, K, filter={"kind": 1}).distances, want, rtol=1e-4)
        for thread in threads:
            thread.join()
        assert len(index) == 0
        assert len(frozen) == 1500
        assert [set(one) for one in before] == [
            set(frozen.search(query, K, 64, filter={"kind": 1}).ids.tolist()) for query in queries
        ]
        assert index.repair() == 0
    assert index.repair() == 1500 * 5
