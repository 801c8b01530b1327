"""A model proposes codes or writes programs; only what the objective confirms counts. A script is the model."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from statepool import sequence_agent
from statepool.core.errors import ContextLengthExceeded, Unavailable
from statepool.sandbox.errors import IsolationUnavailable
from statepool.tasks.sequences import make, read_records, verify
from statepool.tasks.sequences.search import Budget, search, searcher
from statepool.tasks.sequences.search.llm import TURNS, Llm, codes_in

BARKER = "+++++--++-+-+"


class Server(ThreadingHTTPServer):
    """Answers with its script, one line a request, then with the last one again."""

    def __init__(self, script: list[str]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.asked, self.refusal = script, [], None
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server: Any = self.server
        server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        text = server.script[min(len(server.asked), len(server.script)) - 1]
        body = json.dumps({"choices": [{"message": {"content": text}}]} if text else {"error": "no"}).encode()
        if server.refusal is not None:
            body = json.dumps(server.refusal).encode()
        self.send_response(200 if server.refusal is None else 400)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served() -> Iterator[Any]:
    servers = []

    def start(*script: str) -> Server:
        server = Server(list(script))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return server

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


def test_codes_are_read_from_any_text_and_in_whole_sets() -> None:
    assert codes_in("I take ++-+ and, better, +++- (not ++ or +++++).", 1, 4).tolist() == [
        [[1, 1, -1, 1]],
        [[1, 1, 1, -1]],
    ]
    assert codes_in("++- +-+ ---", 2, 3).shape == (1, 2, 3)
    assert codes_in("a score of 10 billion", 1, 13).shape == (0, 1, 13)


def test_proposed_codes_are_judged_and_claims_are_not_believed(served: Any) -> None:
    server = served("The cost is 0: " + "+" * 13, f"Try {BARKER}")
    found = search(searcher("llm", {"url": server.url}), make("labs"), 13, Budget(rounds=5, target=6), seed=4)
    assert found.best.value == "6" and found.rounds == 2
    verify(found.best)
    first, second = (request["messages"] for request in server.asked)
    assert "13 symbols" in first[0]["content"] and [m["role"] for m in second] == ["user", "assistant", "user"]
    assert "1 candidates, the best one costs 650." in second[2]["content"]  # 12² + 11² + … + 1


def test_a_program_is_run_by_whom_the_caller_names() -> None:
    asked: list[Any] = []

    def ask(messages: Any, seed: int) -> str:
        asked.append((messages, seed))
        return "```python\nprint('x')\n```"

    ran: list[str] = []

    def run(program: str) -> str:
        ran.append(program)
        return BARKER

    batch = next(Llm(ask, run).batches(make("labs"), 13, 1, 0))
    assert batch.cost == 6 and ran == ["print('x')\n"] and batch.evaluations == 65
    list(islice(Llm(ask).batches(make("labs"), 13, 1, 0), 2))
    assert "Programs cannot be run here" in asked[-1][0][2]["content"]
    assert "```python" in asked[0][0][0]["content"] and "```python" not in asked[-1][0][0]["content"]


def test_a_later_start_repeats_its_conversation_only() -> None:
    seeds: list[int] = []

    def ask(messages: Any, seed: int) -> str:
        seeds.append(seed)
        return "".join("+-"[seed * 7919 >> bit & 1] for bit in range(9))

    def rounds(first: int, count: int) -> list[bytes]:
        batches = Llm(ask).batches(make("psl"), 9, 3, first)
        return [batch.phases.tobytes() for batch in islice(batches, count)]

    whole = rounds(0, TURNS + 3)
    seeds.clear()
    assert rounds(TURNS + 2, 1) == whole[-1:]
    assert len(seeds) == 3


def test_a_conversation_that_outgrows_the_context_begins_anew_from_the_best() -> None:
    asked: list[Any] = []

    def ask(messages: Any, seed: int) -> str:
        if len(messages) > 1:
            raise ContextLengthExceeded("full")
        asked.append(messages[0]["content"])
        return BARKER

    batches = list(islice(Llm(ask).batches(make("labs"), 13, 1, 0), 2))
    assert [batch.cost for batch in batches] == [6, 6]
    assert BARKER not in asked[0] and f"costs 6: {BARKER}" in asked[1]


def test_a_server_says_itself_why_it_refuses(served: Any) -> None:
    server = served("x")
    server.refusal = {"error": {"message": "9 tokens too many", "code": "context_length_exceeded"}}
    with pytest.raises(ContextLengthExceeded, match="9 tokens too many"):
        next(searcher("llm", {"url": server.url}).batches(make("labs"), 9, 0, 0))
    server.refusal = {"error": {"message": "no such model", "code": "not_found"}}
    with pytest.raises(Unavailable, match=r"refused with 400.*no such model"):
        next(searcher("llm", {"url": server.url}).batches(make("labs"), 9, 0, 0))


def test_a_server_that_gives_no_completion_is_named(served: Any) -> None:
    with pytest.raises(Unavailable, match="other than a chat completion"):
        next(searcher("llm", {"url": served("").url}).batches(make("labs"), 9, 0, 0))
    server = served("x")
    closed = server.url.replace(str(server.server_address[1]), "1")
    with pytest.raises(Unavailable, match="gave no answer"):
        next(searcher("llm", {"url": closed}).batches(make("labs"), 9, 0, 0))


def test_programs_run_in_a_sandbox_under_a_budget_of_processor_time(served: Any, tmp_path: Path) -> None:
    endless = f"print('{BARKER}', flush=True)\nwhile True: pass"
    server = served(f"```python\n{endless}\n```")
    try:
        sequence_agent.in_sandbox("0", 1)
    except IsolationUnavailable as error:
        pytest.skip(error.message)
    out = tmp_path / "found.jsonl"
    command = ["search", "labs", "-n", "13", "--searcher", "llm", "--url", server.url, "--rounds", "1"]
    assert sequence_agent.main([*command, "--cpu-seconds", "1", "--out", str(out)]) == 0
    record = list(read_records(out))[-1]
    verify(record)
    assert record.value == "6"
    assert "ValueError: no" in sequence_agent.in_sandbox("raise ValueError('no')", 1)
