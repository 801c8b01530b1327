"""The server of an index as a real process: the bits of the index itself, whoever asks beside, whatever is killed."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.vector.synthetic import clustered

import statepool.vector as vector
from statepool.core.errors import (
    InvalidConfig,
    InvalidRequest,
    NotFound,
    OutcomeUnknown,
    Overloaded,
    Unauthorized,
    Unavailable,
)
from statepool.vector.protocol import described, raised

DIM = 24


@contextmanager
def serving(path: Path, *options: str):
    """The server's address and process."""
    command = [sys.executable, "-m", "statepool.cli", "vector", "serve", str(path), "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert line.startswith("vector server at http://"), line
        yield line.split(" at ")[1].split(": ")[0], process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    rows, queries = clustered(1500, DIM, 40)
    index = vector.Index(DIM, columns={"lang": "str", "ts": "i64"}, build_window=60)
    index.build(rows, columns={"lang": ["de", "en", "fr"] * 500, "ts": range(1500)})
    index.seal()
    path = tmp_path_factory.mktemp("served") / "index"
    index.save(path)
    with serving(path) as (url, _), vector.RemoteIndex(url) as remote:
        yield index, remote, queries, rows


def same(one: vector.Result, other: vector.Result) -> bool:
    return (
        one.ids.tolist() == other.ids.tolist()
        and one.distances.tobytes() == other.distances.tobytes()
        and (one.truncated, one.stats) == (other.truncated, other.stats)
    )


def posted(url: str, path: str, body: bytes, method: str = "POST") -> tuple[int, dict]:
    """As any client sees it: status and JSON."""
    try:
        with urlopen(Request(url + path, body, method=method), timeout=30) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_answers_have_the_bits_of_the_index(made):
    _, remote, queries, _ = made
    local = vector.open(Path(remote.stats()["path"]))
    chosen = {"lang": ["de", "en"], "ts": {"ge": 100}}
    for query in queries[:8]:
        assert same(remote.search(query, 5, 40), vector.LiveIndex.over(local).search(query, 5, 40))
        assert remote.exact(query, 5).distances.tobytes() == local.exact(query, 5).distances.tobytes()
        assert same(
            remote.search(query, 5, filter=chosen), vector.LiveIndex.over(local).search(query, 5, filter=chosen)
        )
    assert remote.get([3, 700]).tobytes() == local.get([3, 700]).tobytes()
    assert (len(remote), remote.settings) == (1500, local.settings)


def test_exact_answers_are_those_of_brute_force(made):
    _, remote, queries, rows = made
    unit = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    for query in queries[:5]:
        nearest = np.argsort(-(unit @ (query / np.linalg.norm(query))), kind="stable")[:10]
        assert remote.exact(query, 10).ids.tolist() == nearest.tolist()


def test_a_crowd_gets_what_each_gets_alone(made):
    """Requests of many clients are searched in batches, and no answer depends on which."""
    _, remote, queries, _ = made
    alone = {(i, k): remote.search(queries[i], k, 64) for i in range(len(queries)) for k in (3, 10)}
    before = remote.stats()["searches"]
    asked = [(i, k) for _ in range(5) for i in range(len(queries)) for k in (3, 10)]
    with ThreadPoolExecutor(16) as crowd:
        answers = list(crowd.map(lambda one: remote.search(queries[one[0]], one[1], 64), asked))
    assert all(same(answer, alone[one]) for one, answer in zip(asked, answers, strict=True))
    batch = remote.search_batch(queries, 10, 64)
    assert all(same(answer, alone[i, 10]) for i, answer in enumerate(batch))
    after = remote.stats()["searches"]
    assert after["queries"] - before["queries"] == len(asked) + len(queries)
    assert after["batches"] - before["batches"] < after["requests"] - before["requests"]


def test_one_wrong_request_does_not_fail_those_beside_it(made):
    _, remote, queries, _ = made
    wanted = remote.search(queries[0], 10, 64)

    def ask(number: int) -> object:
        if number % 3:
            return remote.search(queries[0], 10, 64)
        with pytest.raises(InvalidRequest) as refused:
            remote.search(np.zeros(DIM, np.float32), 10, 64)  # has no direction
        return refused.value.param

    with ThreadPoolExecutor(12) as crowd:
        answers = list(crowd.map(ask, range(60)))
    assert all(answer == "q" if number % 3 == 0 else same(answer, wanted) for number, answer in enumerate(answers))


def test_it_is_an_index_for_a_tool(made):
    _, remote, queries, _ = made
    texts = {number: f"passage {number}" for number in range(1500)}
    tool = vector.RetrievalTool(remote, lambda _: queries[0], texts)
    assert "lang (str)" in json.dumps(tool.schema)
    found = tool("anything", 3, {"lang": "de"})
    assert [one["id"] % 3 for one in found] == [0, 0, 0]
    assert len(remote.range_search(queries[0], found[0]["distance"]).ids) >= 1


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        ("/search", {"queries": [[1.0] * 3]}, 400, "wrong_dimension", "queries"),
        ("/search", {"queries": [[None] + [1.0] * 23]}, 400, "invalid_value", "queries"),
        ("/search", {"queries": [[1e300] * DIM]}, 400, "invalid_value", "q"),
        ("/search", {"queries": [[1.0] * DIM], "k": 0}, 400, "invalid_value", "k"),
        ("/search", {"queries": [[1.0] * DIM], "k": "5"}, 400, "invalid_value", "k"),
        ("/search", {"queries": [[1.0] * DIM], "filter": {"long": 1}}, 400, "wrong_filter", None),
        ("/search", {"queries": [[1.0] * DIM], "eff": 9}, 400, "invalid_value", None),
        ("/search", {}, 400, "invalid_value", None),
        ("/search", [1], 400, "invalid_value", None),
        ("/search", {"queries": [[1.0] * DIM] * 5000}, 429, "overloaded", None),
        ("/get", {"ids": [99999]}, 404, "not_found", "ids"),
        ("/get", {"ids": ["x"]}, 400, "invalid_value", "ids"),
        ("/get", {"ids": [2**70]}, 404, "not_found", "ids"),
        ("/add", {"ids": [1], "vectors": []}, 400, "invalid_value", "ids"),
        (
            "/add",
            {"ids": [3], "vectors": [[1.0] * DIM], "columns": {"lang": ["a"], "ts": [1]}},
            400,
            "invalid_value",
            "ids",
        ),
        ("/add", {"ids": [7000], "vectors": [[1.0] * DIM]}, 400, "invalid_value", "columns"),
        ("/add", {"ids": [7000], "vectors": [[1.0] * DIM], "durability": "some"}, 400, "invalid_value", "durability"),
        (
            "/update",
            {"ids": [7000], "vectors": [[1.0] * DIM], "columns": {"lang": ["a"], "ts": [1]}},
            404,
            "not_found",
            "ids",
        ),
        ("/delete", {"ids": [1, 1]}, 400, "invalid_value", "ids"),
        ("/nowhere", {}, 404, "not_found", None),
    ],
)
def test_what_is_wrong_is_named(made, path, body, status, code, param):
    remote = made[1]
    got, answer = posted(remote.url, path, json.dumps(body).encode())
    assert (got, answer["error"]["code"]) == (status, code), answer
    assert param is None or answer["error"]["param"] == param, answer
    assert len(remote) == 1500


@settings(max_examples=60, deadline=None)
@given(path=st.sampled_from(["/search", "/get", "/add", "/delete"]), body=st.binary(max_size=40))
def test_no_body_is_an_error_of_the_server(made, path, body):
    status, answer = posted(made[1].url, path, b"[" + body)
    assert status == 400, answer


def test_methods_and_health(made):
    remote = made[1]
    assert posted(remote.url, "/health", None, "GET") == (200, {"status": "ok", "rows": 1500})
    assert posted(remote.url, "/search", None, "GET")[0] == 405
    with urlopen(remote.url + "/metrics", timeout=30) as answer:
        assert b"statepool_vector_rows 1500" in answer.read()


def test_errors_come_back_as_what_they_were():
    every = [
        vector.DimensionError("a", param="q"),
        vector.FilterError("b"),
        vector.IndexCorruptError("c", "rows", 4096),
        NotFound("d", param="ids"),
        Overloaded("e"),
    ]
    for error in every:
        back = raised(error.status, json.dumps(described(error)).encode())
        assert type(back) is type(error) and (back.message, back.param) == (error.message, error.param)
    assert raised(500, json.dumps(described(every[2])).encode()).offset == 4096
    assert isinstance(raised(502, b"<html>"), Unavailable)


def test_a_killed_server_has_lost_nothing_it_answered(tmp_path):
    rows, queries = clustered(900, DIM, 10)
    built = vector.Index(DIM, build_window=60)
    built.build(rows[:600], [f"row {number}" for number in range(600)])
    built.save(tmp_path / "index")
    acknowledged: set[str] = set()

    def add(url: str, from_: int) -> None:
        with vector.RemoteIndex(url) as remote:
            for at in range(from_, from_ + 100):
                try:
                    remote.add(rows[at : at + 1], [f"row {at}"])
                except (OutcomeUnknown, Unavailable):
                    return
                acknowledged.add(f"row {at}")

    with serving(tmp_path / "index") as (url, process):
        with vector.RemoteIndex(url) as remote:
            assert remote.delete(["row 5", "none"]) == 1
            assert remote.update(["row 6"], rows[899:900]) == 1
        writers = [threading.Thread(target=add, args=(url, from_)) for from_ in (600, 700)]
        for writer in writers:
            writer.start()
        while len(acknowledged) < 30:
            pass
        process.kill()
        for writer in writers:
            writer.join()
    with serving(tmp_path / "index") as (url, process), vector.RemoteIndex(url) as remote:
        assert len(remote.get(sorted(acknowledged))) == len(acknowledged)
        assert remote.search(rows[899], 1).ids.tolist() == ["row 6"]
        with pytest.raises(NotFound):
            remote.get(["row 5"])
        before = remote.search_batch(queries, 5, 80)
        assert remote.compact() == len(remote)
        assert remote.stats()["changed"] == 0
        found = [remote.exact(query, 5) for query in queries]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    again = vector.open(tmp_path / "index")
    assert [one.ids.tolist() for one in found] == [again.exact(query, 5).ids.tolist() for query in queries]
    assert all(set(one.ids) & set(other.ids) for one, other in zip(before, found, strict=True))


def test_a_reader_a_key_and_a_second_owner(made, tmp_path):
    path = Path(made[1].stats()["path"])
    with serving(path, "--read-only", "--api-key", "secret") as (url, _):
        with pytest.raises(Unauthorized):
            vector.RemoteIndex(url)
        assert posted(url, "/health", None, "GET")[0] == 200
        with vector.RemoteIndex(url, api_key="secret") as remote:
            assert same(remote.search(made[2][0], 5), vector.open(path).search(made[2][0], 5))
            with pytest.raises(vector.ReadOnlyError):
                remote.delete([1])
    command = [sys.executable, "-m", "statepool.cli", "vector", "serve", str(path), "--port", "0"]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 2 and "statepool vector serve: " in second.stderr


def test_nobody_there():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(Unavailable, match=f"127.0.0.1:{port}"):
        vector.RemoteIndex(f"http://127.0.0.1:{port}")
    with pytest.raises(InvalidConfig, match="write http://host:port"):
        vector.RemoteIndex("localhost:8300")


def test_a_change_without_an_answer_is_said_to_be_unknown(made):
    """A server takes the rows and closes the connection: the client neither sends them again nor says they failed."""
    stats = json.dumps(made[1].stats()).encode()
    taken = []

    def answer(listener: socket.socket) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(stats)
        for reply in (head + stats, b""):
            connection, _ = listener.accept()
            with connection:
                taken.append(connection.recv(65536))
                connection.sendall(reply)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with vector.RemoteIndex(url) as remote, pytest.raises(OutcomeUnknown, match="done or not"):
            remote.add(np.ones((1, DIM)), [1])
        thread.join()
    assert [one.split(b" ")[1] for one in taken] == [b"/stat", b"/add"]
