"""`statepool serve --attention-workers 2`: a real client, and processes that are killed while it reads."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.small_models import write_model

from statepool.engine.config import EngineConfig
from statepool.engine.engine import Engine
from statepool.engine.request import Request, SamplingParams

pytest.importorskip("fastapi")

PROMPT = list(range(3, 203))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "random", max_position_embeddings=4096)


@contextmanager
def server(model, *flags):
    """A running `statepool serve`: its url and its process."""
    command = [sys.executable, "-m", "statepool.cli", "serve", str(model), "--port", "0", "--threads", "1"]
    process = subprocess.Popen(
        [*command, "--kv-bytes", "8MiB", "--no-chat-page", *flags], stdout=subprocess.PIPE, text=True
    )
    try:
        lines = iter(process.stdout.readline, "")
        url = next(found[1] for line in lines if (found := re.search(r"API\s+(http://\S+)/v1", line)))
        yield url, process
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


def complete(url, tokens):
    """The tokens' text, and when each piece came."""
    body = {"model": "random", "prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body | {"stream": True}).encode(), {"Content-Type": "application/json"}
    )
    text = ""
    with urllib.request.urlopen(request, timeout=60) as answer:
        for line in answer:
            if line.startswith(b"data: {"):
                text += json.loads(line[6:])["choices"][0]["text"]
                yield text


def children(process, word):
    """Living children of a server whose command line has this word."""
    found = []
    for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
        if word in command:
            found.append(int(pid))
    return found


def test_kills_cost_time_and_no_token(model):
    params = SamplingParams(max_tokens=600, temperature=0.0, ignore_eos=True)
    engine = Engine(EngineConfig(model=str(model), threads=1, kv_bytes=8 << 20))
    expected = "".join(o.text for o in engine.generate([Request("r", tuple(PROMPT), params)])["r"])
    with server(model, "--attention-workers", "2") as (url, process):
        assert len(children(process, "attention.remote")) == 2
        text = [""]

        def ask():
            for piece in complete(url, 600):
                text[0] = piece

        client = threading.Thread(target=ask)
        client.start()
        for word in ("attention.remote", "engine_process"):
            before = len(text[0])
            end = time.monotonic() + 20
            while len(text[0]) < before + 20 and client.is_alive() and time.monotonic() < end:
                time.sleep(0.005)
            assert client.is_alive(), "the answer was over before anything was killed"
            os.kill(children(process, word)[0], signal.SIGKILL)
        client.join(60)
        assert text[0] == expected
        assert len(children(process, "attention.remote")) == 2
