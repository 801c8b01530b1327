"""Start, overload, drain, death, weight updates: each with a server of its own."""

import json
import os
import signal
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from tests.e2e.conftest import PATIENCE

pytestmark = pytest.mark.e2e


def endless(**changes):
    return {"prompt": "hello", "max_tokens": 3500, "ignore_eos": True, "stream": True, **changes}


def test_sigterm_lets_streams_finish_and_exits_0(running, random_model):
    with running(random_model) as server:
        lines = []
        started = threading.Event()

        def read():
            body = endless(max_tokens=200)
            with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=PATIENCE) as response:
                for line in response.iter_lines():
                    lines.append(line)
                    started.set()

        reader = threading.Thread(target=read)
        reader.start()
        with httpx.Client(base_url=server.url, timeout=PATIENCE) as kept:
            kept.get("/health")
            assert started.wait(PATIENCE)
            server.process.send_signal(signal.SIGTERM)
            server.wait_until(lambda: not reader.is_alive() or kept.get("/health").status_code == 503)
        reader.join(PATIENCE)
        assert "data: [DONE]" in lines
        assert server.process.wait(PATIENCE) == 0
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{server.url}/health")


def test_a_killed_engine_is_503_for_everyone(running, random_model):
    with running(random_model) as server:
        with httpx.stream("POST", f"{server.url}/v1/completions", json=endless(), timeout=PATIENCE) as response:
            lines = response.iter_lines()
            next(lines)
            (engine,) = server.children()
            os.kill(engine, signal.SIGKILL)
            rest = [line for line in lines if line.startswith("data: ")]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2][6:])["error"]["type"] == "service_unavailable_error"
        for response in (
            server.http.get("/health"),
            server.http.post("/v1/completions", json={"prompt": "x"}),
            server.http.post("/v1/messages", json={}),
        ):
            assert response.status_code in (503, 400)
        answer = server.http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}]})
        assert answer.status_code == 503
        assert "engine process ended" in answer.json()["error"]["message"]
        assert server.http.get("/metrics").status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE) == 0


def test_the_engine_leaves_when_the_gateway_is_killed(running, random_model):
    with running(random_model) as server:
        (engine,) = server.children()
        server.process.kill()
        server.process.wait(PATIENCE)

        def gone():
            try:
                os.kill(engine, 0)
            except ProcessLookupError:
                return True
            return Path(f"/proc/{engine}/stat").read_text().rpartition(")")[2].split()[0] == "Z"

        server.wait_until(gone)


def test_a_full_queue_and_a_key(running, random_model):
    with running(random_model, api_key="secret", max_in_flight=1) as server:
        assert server.http.post("/v1/completions", json={"prompt": "x"}).status_code == 401
        with httpx.Client(base_url=server.url, headers={"Authorization": "Bearer secret"}, timeout=PATIENCE) as client:
            # A paused engine keeps what it has, so the queue stays full for as long as the test looks.
            assert client.post("/pause").status_code == 200
            body = {"prompt": "x", "max_tokens": 2, "stream": True}
            with client.stream("POST", "/v1/completions", json=body) as response:
                refused = client.post("/v1/completions", json={"prompt": "x"})
                assert refused.status_code == 429
                assert int(refused.headers["retry-after"]) >= 1
                assert client.post("/resume").status_code == 200
                assert [line for line in response.iter_lines() if line][-1] == "data: [DONE]"
            assert client.post("/v1/completions", json={"prompt": "x"}).status_code == 200


def test_a_trainer_hands_over_new_weights(running, random_model, write_checkpoint, tmp_path):
    """Frozen requests go on afterwards; answers are those of a server started with the new weights."""
    new_model = write_checkpoint(tmp_path / "random", seed=1)
    body = {"prompt": "hello", "max_tokens": 8, "logprobs": 0, "temperature": 0, "ignore_eos": True}

    def answer(url):
        return httpx.post(f"{url}/v1/completions", json=body, timeout=PATIENCE).json()["choices"][0]["logprobs"]

    with running(random_model) as server:
        old = answer(server.url)
        with httpx.stream(
            "POST", f"{server.url}/v1/completions", json=endless(max_tokens=400), timeout=PATIENCE
        ) as response:
            lines = response.iter_lines()
            next(lines)

            def post(path, **fields):
                assert httpx.post(f"{server.url}{path}", timeout=PATIENCE, **fields).status_code == 200, path

            post("/init_weight_transfer_engine", json={"init_info": {"backend": "files"}})
            post("/pause", params={"mode": "keep"})
            post("/start_weight_update", json={"is_checkpoint_format": True})
            post("/update_weights", json={"update_info": {"path": str(new_model), "version": "7"}})
            post("/finish_weight_update")
            post("/resume")
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert server.http.get("/server_info").json()["weight_version"] == "7"
        updated = answer(server.url)
        wrong = {"update_info": {"path": str(tmp_path)}}
        assert server.http.post("/update_weights", json=wrong).status_code == 400
        assert answer(server.url) == updated
    with running(new_model) as server:
        assert answer(server.url) == updated
    assert updated != old


def test_a_model_that_is_not_there_is_one_line(running, tmp_path):
    with pytest.raises(pytest.fail.Exception) as caught, running(tmp_path / "none"):
        pass
    assert "does not exist" in str(caught.value)


@pytest.mark.parametrize("cluster", [{}, {"workers": 2}])
def test_a_model_that_never_loads_ends_the_server_with_a_reason(
    running, write_checkpoint, tmp_path, monkeypatch, cluster
):
    """A file of the model is a pipe that nobody fills: the engine is alive, and would wait for ever."""
    model = write_checkpoint(tmp_path / "random")
    (model / "tokenizer.json").unlink()
    os.mkfifo(model / "tokenizer.json")
    with tempfile.TemporaryDirectory() as scratch:
        monkeypatch.setenv("TMPDIR", scratch)
        with pytest.raises(pytest.fail.Exception) as caught, running(model, start_seconds=4, cluster=cluster):
            pass
        assert "did not load within the 4 s that start_seconds allows" in str(caught.value)
        assert list(Path(scratch).iterdir()) == []
        assert processes_told(scratch) == []


def processes_told(word):
    """Processes that were started with ``word`` in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended, or is another user's
            found += [int(path.parent.name)] if word.encode() in path.read_bytes() else []
    return found
