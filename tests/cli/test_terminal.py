"""The chat loop, with a model here and with a server behind HTTP."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from statepool.core.errors import InvalidConfig, InvalidRequest, Unavailable
from statepool.engine.request import SamplingParams
from statepool.terminal import Chat, LocalModel, RemoteModel, Reply

PARAMS = SamplingParams(max_tokens=50, temperature=0.0, seed=0)


def talk(model, *lines):
    """Run a chat over ``lines``; returns what was written and what was noted."""
    written, noted = [], []
    left = list(lines)

    def read():
        if not left:
            raise EOFError
        return left.pop(0)

    ticks = iter(range(1000))
    chat = Chat(model, read, written.append, noted.append, clock=lambda: float(next(ticks)))
    chat.run()
    return chat, "".join(written), noted


def test_turns_carry_the_conversation(engine):
    chat, written, noted = talk(LocalModel(engine, PARAMS), "hi", "", "ho")
    assert (
        written
        == "]ih:resu[\n]oh:resu[" + "]]ih:resu[:tnatsissa[]ih:resu["[0:0] + written[len("]ih:resu[\n]oh:resu[") :]
    )
    assert [message["role"] for message in chat.messages] == ["user", "assistant", "user", "assistant"]
    assert engine.submitted[1].prompt == tuple(engine.tokenizer.encode("[user:hi][assistant:]ih:resu[][user:ho]"))
    assert "0 of 9 prompt tokens cached" in noted[1]


def test_commands(engine):
    chat, _, noted = talk(
        LocalModel(engine, PARAMS), "hi", "/system be brief", "/unknown", "/reset", "yo", "/quit", "no"
    )
    assert chat.messages[0] == {"role": "user", "content": "yo"}
    assert noted[-3:-1] == [noted[0].partition(": ")[2], "forgotten"]


def test_interrupt_stops_the_reply_and_frees_the_request(engine):
    steps = engine.step
    count = 0

    def step():
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return steps()

    engine.step = step
    chat, _, noted = talk(LocalModel(engine, PARAMS), "hello")
    assert engine.open == {}
    assert "stopped" in noted
    assert chat.messages[-1]["content"] == "]o"


def test_an_error_takes_the_turn_back(engine):
    def refuse(request):
        raise InvalidRequest("too long")

    engine.submit = refuse
    chat, _, noted = talk(LocalModel(engine, PARAMS), "hello")
    assert chat.messages == []
    assert noted[-1] == "error: too long"


class Server(BaseHTTPRequestHandler):
    bodies = []  # noqa: RUF012

    def log_message(self, *args):
        pass

    def _send(self, status, body, kind="application/json"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self._send(200, json.dumps({"data": [{"id": "far"}]}).encode())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.bodies.append((body, self.headers.get("Authorization")))
        text = body["messages"][-1]["content"]
        if text == "bad":
            self._send(400, b'{"error": {"message": "no such thing"}}')
            return
        chunks = [
            {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
            {"choices": [{"delta": {"content": text[::-1]}}]},
            {"choices": [{"delta": {}, "finish_reason": "stop"}]},
            {
                "choices": [],
                "usage": {
                    "prompt_tokens": 5,
                    "completion_tokens": 3,
                    "prompt_tokens_details": {"cached_tokens": 4},
                },
            },
        ]
        lines = [": ping\n\n", *(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks), "data: [DONE]\n\n"]
        self._send(200, "".join(lines).encode(), "text/event-stream")


@pytest.fixture
def url():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_a_server_answers(url, suffix):
    model = RemoteModel(url + suffix, PARAMS, api_key="k")
    assert model.name == "far"
    reply = Reply()
    assert list(model.stream([{"role": "user", "content": "abc"}], reply)) == ["cba"]
    assert (reply.completion_tokens, reply.prompt_tokens, reply.cached_tokens) == (3, 5, 4)
    body, key = Server.bodies[-1]
    assert key == "Bearer k"
    assert body["stream"] is True
    assert body["seed"] == 0


def test_an_error_of_the_server_is_its_sentence(url):
    _, _, noted = talk(RemoteModel(url, PARAMS), "bad")
    assert noted[-1] == "error: no such thing"


def test_nobody_there():
    with pytest.raises(Unavailable, match="is `statepool serve` running"):
        RemoteModel("http://127.0.0.1:9", PARAMS)
    with pytest.raises(InvalidConfig, match="must start with http"):
        RemoteModel("file:///etc/passwd", PARAMS)
