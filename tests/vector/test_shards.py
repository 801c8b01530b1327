"""Shards in real processes: one answer of all, and what is left when processes are killed, stopped or find damage."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from tests.vector.synthetic import clustered, distances, recall

from statepool.cluster import Process, Program
from statepool.cluster.blocking import BlockingLauncher
from statepool.core.errors import InvalidRequest, Unavailable
from statepool.vector import DimensionError, Settings, ShardedIndex, build_shards
from statepool.vector.shard import connect
from statepool.vector.shards import LocalShard, ShardLost

K = 10
ROWS, QUERIES = clustered(3000, 24, 20)
SETTINGS = Settings(24, "l2", R=16, build_window=48, columns={"n": "i64", "kind": "str"})
COLUMNS = {"n": list(range(3000)), "kind": [f"kind {one % 5}" for one in range(3000)]}
IDS = np.arange(3000) * 7


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("shards")
    return build_shards(folder, ROWS, IDS, shards=3, settings=SETTINGS, columns=COLUMNS)


@pytest.fixture(scope="module")
def index(paths: list[Path]) -> Iterator[ShardedIndex]:
    with ShardedIndex.open(paths, timeout_s=30) as opened:
        yield opened


def truth(chosen: np.ndarray, query: np.ndarray) -> list[int]:
    gaps = distances("l2", ROWS[chosen], query[None])[0]
    return IDS[chosen[np.argsort(gaps, kind="stable")[:K]]].tolist()


def test_one_answer_of_all_shards(index: ShardedIndex) -> None:
    everything = np.arange(3000)
    assert len(index) == 3000
    wanted = np.array([truth(everything, query) for query in QUERIES])
    for query, best in zip(QUERIES, wanted, strict=True):
        found = index.exact(query, K)
        assert found.ids.tolist() == best.tolist()
        assert not found.partial
        np.testing.assert_allclose(found.distances, np.sort(distances("l2", ROWS, query[None])[0])[:K], rtol=1e-4)
    batch = index.search_batch(QUERIES, K, 80)
    assert recall([found.ids for found in batch], wanted) > 0.97
    for query, found in zip(QUERIES, batch, strict=True):
        assert index.search(query, K, 80).ids.tolist() == found.ids.tolist()
    some = np.flatnonzero((everything >= 100) & (everything % 5 == 2))
    found = index.search(QUERIES[0], K, filter={"n": {"ge": 100}, "kind": "kind 2"})
    assert found.ids.tolist() == truth(some, QUERIES[0])
    assert found.stats.matches == len(some)


def test_a_killed_process_makes_the_answer_partial(paths: list[Path]) -> None:
    with ShardedIndex.open(paths, timeout_s=30) as index:
        lose_one_then_all(index, paths)


def lose_one_then_all(index: ShardedIndex, paths: list[Path]) -> None:
    shard = index._shards[1]
    assert isinstance(shard, LocalShard)
    os.kill(shard.process.pid, signal.SIGKILL)
    shard.process.wait()
    there = np.flatnonzero(IDS % 3 != 1)
    for query in QUERIES[:5]:
        found = index.exact(query, K)
        assert found.partial
        assert list(found.lost) == [str(paths[1])]
        assert found.ids.tolist() == truth(there, query)
    assert "process is gone" in index.lost[str(paths[1])]
    for other in (0, 2):
        index._shards[other].close()
    with pytest.raises(Unavailable, match="none answers"):
        index.search(QUERIES[0])


def test_a_process_killed_between_question_and_answer(paths: list[Path]) -> None:
    with ShardedIndex.open(paths, timeout_s=30) as index:
        shard = index._shards[2]
        assert isinstance(shard, LocalShard)
        ask = shard.ask

        def ask_and_kill(question) -> None:
            os.kill(shard.process.pid, signal.SIGSTOP)
            ask(question)
            os.kill(shard.process.pid, signal.SIGKILL)

        shard.ask = ask_and_kill  # type: ignore[method-assign]
        found = index.exact(QUERIES[0], K)
        assert list(found.lost) == [str(paths[2])]
        assert found.ids.tolist() == truth(np.flatnonzero(IDS % 3 != 2), QUERIES[0])


def test_a_process_that_hangs_is_not_waited_for_twice(paths: list[Path]) -> None:
    with ShardedIndex.open(paths, timeout_s=0.5) as index:
        shard = index._shards[0]
        assert isinstance(shard, LocalShard)
        os.kill(shard.process.pid, signal.SIGSTOP)
        found = index.exact(QUERIES[0], K)
        assert "no answer in time" in found.lost[str(paths[0])]
        assert found.ids.tolist() == truth(np.flatnonzero(IDS % 3 != 0), QUERIES[0])
        assert shard.process.poll() is not None, "what may still send half an answer is ended"
        assert index.search(QUERIES[0], K).partial


RAY = pytest.param("local", marks=[pytest.mark.slow, pytest.mark.filterwarnings("ignore")])


@pytest.mark.parametrize("ray", [None, RAY], ids=["children", "ray"])
def test_shards_wherever_a_launcher_puts_them(ray: str | None, paths: list[Path]) -> None:
    if ray:
        pytest.importorskip("ray")
    launcher, started = BlockingLauncher(ray), list[Process]()

    def start(module: str, arguments: tuple[str, ...], environment: Mapping[str, str]) -> str:
        started.append(launcher.spawn(Program(module, arguments, environment, announces=True)))
        with connect(started[-1].announcement, "0" * 64, 10) as stranger:
            stranger.settimeout(20)
            assert stranger.recv(1) == b"", "who does not know the key is shown out"
        return started[-1].announcement

    try:
        with ShardedIndex.open(paths, timeout_s=30, start=start) as index:
            for query in QUERIES[:5]:
                found = index.exact(query, K)
                assert found.ids.tolist() == truth(np.arange(3000), query)
                assert not found.partial
            launcher.end(started[1])
            found = index.exact(QUERIES[0], K)
            assert list(found.lost) == [str(paths[1])]
            assert found.ids.tolist() == truth(np.flatnonzero(IDS % 3 != 1), QUERIES[0])
        for process in (started[0], started[2]):
            launcher.end(process, 20)
            assert process.returncode == 0, "it ends with whoever asked it"
    finally:
        launcher.close()


def test_a_shard_that_cannot_be_reached_is_told(paths: list[Path]) -> None:
    for address in ("127.0.0.1:1", "no line"):
        with pytest.raises(ShardLost, match=f"nobody answers at '{address}'"):
            ShardedIndex.open(paths, start=lambda *_, address=address: address)


def test_damage_in_one_shard_makes_the_answer_partial(tmp_path: Path) -> None:
    paths = build_shards(tmp_path, ROWS, IDS, shards=2, settings=Settings(24, "l2", R=16, build_window=48), seal=False)
    with paths[1].open("r+b") as file:
        file.seek(3 * 4096)
        file.write(b"\xff" * 4096)
    with ShardedIndex.open(paths) as index:
        found = index.exact(QUERIES[0], K)
        assert "checksum" in found.lost[str(paths[1])]
        assert found.ids.tolist() == truth(np.flatnonzero(IDS % 2 == 0), QUERIES[0])


def test_the_processes_end_with_their_owner_and_a_wrong_file_is_told(paths: list[Path], tmp_path: Path) -> None:
    index = ShardedIndex.open(paths[:1])
    shard = index._shards[0]
    assert isinstance(shard, LocalShard)
    shard._line.close()  # as when the owner dies
    assert shard.process.wait(20) == 0
    (tmp_path / "no.index").write_bytes(b"x" * 10_000)
    with pytest.raises(ShardLost, match="does not begin like an index"):
        ShardedIndex.open([paths[0], tmp_path / "no.index"])


def test_texts_and_bad_questions(tmp_path: Path) -> None:
    texts = [f"doc {one}" for one in range(200)]
    paths = build_shards(tmp_path, ROWS[:200], texts, shards=2, settings=Settings(24, "l2", R=16, build_window=48))
    with ShardedIndex.open(paths) as index:
        found = index.exact(ROWS[17], 3)
        assert found.ids[0] == "doc 17"
        for call, kind, says in (
            (lambda: index.search(ROWS[0][:5]), DimensionError, "5 values"),
            (lambda: index.search(ROWS[0], 0), InvalidRequest, "k: 0"),
            (lambda: index.search(np.full(24, np.nan)), InvalidRequest, "NaN"),
            (lambda: index.search(ROWS[0], filter={"lang": "de"}), InvalidRequest, "no column 'lang'"),
        ):
            with pytest.raises(kind, match=says):
                call()
        assert not index.search(ROWS[0]).partial, "a wrong question loses no shard"
    with pytest.raises(InvalidRequest, match="gets no rows"):
        build_shards(tmp_path, ROWS[:2], shards=3, settings=SETTINGS, columns={"n": [1, 2], "kind": ["a", "b"]})
    with pytest.raises(InvalidRequest, match="at least one"):
        ShardedIndex([])


def test_callers_on_many_threads_get_their_own_answers(index: ShardedIndex) -> None:
    from concurrent.futures import ThreadPoolExecutor

    wanted = {place: index.search(query, K, 80).ids.tolist() for place, query in enumerate(QUERIES)}
    with ThreadPoolExecutor(8) as pool:
        places = [one % len(QUERIES) for one in range(200)]
        found = list(pool.map(lambda place: index.search(QUERIES[place], K, 80).ids.tolist(), places))
    assert found == [wanted[place] for place in places]
