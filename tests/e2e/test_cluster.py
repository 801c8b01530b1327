"""Prefill and decode on different processes over a pool of blocks: the tokens of one engine, whatever is killed."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from openai import OpenAI
from tests.e2e.conftest import PATIENCE

from statepool.engine.config import EngineConfig
from statepool.engine.engine import Engine
from statepool.engine.request import Request, SamplingParams

SHAPE = {"prefill": 2, "decode": 2, "pool_nodes": 2, "pool_bytes": 64 << 20}


def prompts(engine, count, seed=0):
    rng = random.Random(seed)
    words = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "a",
        "lazy",
        "dog",
        "while",
        "rain",
        "falls",
        "on",
        "old",
        "stones",
    ]
    shared = engine.tokenizer.encode(" ".join(rng.choices(words, k=60)))
    texts = [" ".join(rng.choices(words, k=rng.randint(1, 120))) for _ in range(count)]
    return [(shared if i % 3 == 0 else []) + engine.tokenizer.encode(text) for i, text in enumerate(texts)]


def alone(engine, prompt, **params):
    request = Request("alone", tuple(prompt), SamplingParams(ignore_eos=True, **params))
    outputs = engine.generate([request])["alone"]
    return "".join(output.text for output in outputs)


def ask(client, prompt, **params):
    answer = client.completions.create(model="random", prompt=prompt, extra_body={"ignore_eos": True}, **params)
    return answer.choices[0].text


@pytest.fixture(scope="module")
def engine(random_model):
    return Engine(EngineConfig(model=str(random_model), threads=1, kv_bytes=8 << 20))


@pytest.fixture(scope="module")
def server(running, random_model):
    with running(random_model, engine={"pool_replicas": 2}, cluster=SHAPE) as found:
        yield found


@pytest.fixture
def client(server):
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as found:
        yield found


def status(server):
    return server.http.get("/cluster").json()


def pids(server, role):
    return [each["pid"] for each in status(server)["engines"] if each["role"] == role and each["usable"]]


def all_back(server):
    engines = status(server)["engines"]
    return all(e["usable"] for e in engines) and sum(e["running"] + e["waiting"] for e in engines) == 0


def test_tokens_are_those_of_one_engine(server, client, engine):
    asked = [(prompt, i) for i, prompt in enumerate(prompts(engine, 30))]

    def one(entry):
        prompt, i = entry
        return ask(client, prompt, max_tokens=1 + i % 24, temperature=(i % 2) * 0.9, seed=i)

    with ThreadPoolExecutor(12) as crowd:
        answers = list(crowd.map(one, asked))
    wanted = [alone(engine, p, max_tokens=1 + i % 24, temperature=(i % 2) * 0.9, seed=i) for p, i in asked]
    assert answers == wanted


@pytest.mark.slow
def test_two_hundred_prompts(running, random_model, record_property):
    """Greedy and in fp32, with chunks, and prefixes that another engine computed."""
    settings = {"quant": "fp32", "max_batched_tokens": 96}
    reference = Engine(EngineConfig(model=str(random_model), threads=1, kv_bytes=16 << 20, **settings))
    asked = prompts(reference, 200, seed=3)
    with (
        running(random_model, engine=settings | {"kv_bytes": 16 << 20}, cluster=SHAPE) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as client,
        ThreadPoolExecutor(8) as crowd,
    ):
        answers = list(crowd.map(lambda prompt: ask(client, prompt, max_tokens=24, temperature=0), asked))
        hits = server.metric("pool_hit_tokens_total")
    wanted = [alone(reference, prompt, max_tokens=24, temperature=0) for prompt in asked]
    differing = sum(answer != want for answer, want in zip(answers, wanted, strict=True))
    record_property("differing", differing)
    assert differing == 0
    assert hits > 0, "no prefix ever came from the pool"


def test_staged_engines_behind_one_server(running, random_model, engine):
    """Two stages an engine; one of a prefill engine is lost while prompts flow through it."""
    shape = {"prefill": 1, "decode": 1, "pool_bytes": 64 << 20}
    asked = prompts(engine, 12, seed=5)
    with (
        running(random_model, engine={"stages": 2, "max_batched_tokens": 32}, cluster=shape) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as client,
        ThreadPoolExecutor(6) as crowd,
    ):
        pending = [crowd.submit(ask, client, prompt, max_tokens=12, temperature=0) for prompt in asked]
        stages = Path(f"/proc/{pids(server, 'prefill')[0]}/task/{pids(server, 'prefill')[0]}/children").read_text()
        os.kill(int(stages.split()[0]), signal.SIGKILL)
        answers = [each.result() for each in pending]
    assert answers == [alone(engine, prompt, max_tokens=12, temperature=0) for prompt in asked]


def test_a_decode_engine_computes_no_prompt(server, client, engine):
    prompt = (prompts(engine, 1, seed=77)[0] * 200)[:1000]
    before = {each["number"]: each for each in status(server)["engines"]}
    assert ask(client, prompt, max_tokens=20, temperature=0) == alone(engine, prompt, max_tokens=20, temperature=0)
    server.wait_until(lambda: all_back(server))
    grown = {"prefill": 0, "decode": 0}
    loaded = 0
    server.metric("steps_total")  # brings the counters up to date
    for each in status(server)["engines"]:
        grown[each["role"]] += each["forward_tokens"] - before[each["number"]]["forward_tokens"]
        loaded += each["pool_loaded_blocks"] - before[each["number"]]["pool_loaded_blocks"]
    assert grown["prefill"] == 1000
    assert grown["decode"] == 19, "every token but the first, and nothing of the prompt"
    assert loaded == 1000 // 16


def test_a_session_stays_on_its_engine(server, client, engine):
    prompt = prompts(engine, 1, seed=5)[0]
    body = {"session": "talk", "ignore_eos": True}
    first = client.completions.create(model="random", prompt=prompt, max_tokens=8, temperature=0, extra_body=body)
    assert server.http.get("/v1/sessions").json()["data"]
    longer = [*prompt, *engine.tokenizer.encode(first.choices[0].text)]
    client.completions.create(model="random", prompt=longer, max_tokens=4, temperature=0, extra_body=body)
    for i in range(8):  # names that lie on either engine
        assert server.http.post("/v1/sessions/talk/fork", json={"name": f"fork{i}"}).status_code in (200, 201)
        body["session"] = f"fork{i}"
        again = client.completions.create(model="random", prompt=longer, max_tokens=1, temperature=0, extra_body=body)
        assert again.usage.prompt_tokens_details.cached_tokens >= len(prompt), "a fork was not found"
        assert server.http.delete(f"/v1/sessions/fork{i}").status_code == 200
        assert f"fork{i}" not in server.http.get("/v1/sessions").text, "it was on two engines"
    assert server.http.delete("/v1/sessions/talk").status_code == 200
    assert server.http.delete("/v1/sessions/talk").status_code == 404


def test_wrong_requests_are_refused_as_by_one_engine(server, client):
    for prompt, status_code in (([], 400), ([10**6], 400), ([5] * 5000, 400)):
        answer = server.http.post("/v1/completions", json={"model": "random", "prompt": prompt, "max_tokens": 4})
        assert answer.status_code == status_code, answer.text


def test_a_client_that_leaves_frees_its_request(server, client, engine):
    prompt = prompts(engine, 1, seed=9)[0]
    stream = client.completions.create(model="random", prompt=prompt, max_tokens=3000, stream=True)
    next(iter(stream))
    stream.close()
    server.wait_until(lambda: all_back(server))


def test_roles_change_and_engines_restart_under_load(server, engine):
    def blow():
        for number, role in ((0, "decode"), (2, "prefill"), (0, "mixed")):
            assert server.http.post(f"/cluster/{number}/role", json={"role": role}).status_code == 200
        assert server.http.post("/cluster/1/restart").status_code == 200

    before = {each["number"]: each["pid"] for each in status(server)["engines"]}
    strike(server, engine, 16, blow)
    after = {each["number"]: (each["pid"], each["role"]) for each in status(server)["engines"]}
    assert [role for _, role in after.values()] == ["mixed", "prefill", "prefill", "decode"]
    assert [number for number, (pid, _) in after.items() if pid != before[number]] == [1]
    for number, role in ((0, "prefill"), (2, "decode")):
        assert server.http.post(f"/cluster/{number}/role", json={"role": role}).status_code == 200
    assert server.http.post("/cluster/9/role", json={"role": "decode"}).status_code == 404
    assert server.http.post("/cluster/0/role", json={"role": "chief"}).status_code == 400
    assert server.http.post("/cluster/2/role", json={"role": "prefill"}).status_code == 200
    refused = server.http.post("/cluster/3/role", json={"role": "prefill"})
    assert refused.status_code == 400
    assert "no engine would be left for decode" in refused.text
    assert server.http.post("/cluster/2/role", json={"role": "decode"}).status_code == 200


def test_top_shows_engines_and_nodes(server):
    command = [sys.executable, "-m", "statepool.cli", "top", "--once", "--url", server.url]
    shown = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, env=os.environ | {"COLUMNS": "140"}, check=True
    )
    assert shown.stdout.count("prefill") >= 2
    assert shown.stdout.count("unix:") == 2
    command[-1] = "http://127.0.0.1:9"
    away = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert away.returncode == 2
    assert "no server answers" in away.stderr


def test_metrics_name_every_engine_and_node(server, client, engine):
    (prompt,) = prompts(engine, 1, seed=11)
    ask(client, prompt, max_tokens=4)
    server.wait_until(lambda: all_back(server))
    text, now = server.http.get("/metrics").text, status(server)
    for each in now["engines"]:
        labels = f'{{engine="{each["number"]}",role="{each["role"]}"}}'
        assert f"statepool_engine_usable{labels} 1.0\n" in text
        assert f"statepool_engine_queued_tokens{labels} 0.0\n" in text
    for node in now["nodes"]:
        labels = f'{{node="{node["address"]}"}}'
        assert f"statepool_pool_node_slots{labels} {float(node['slots'])}\n" in text
        assert f"statepool_pool_node_hits_total{labels} " in text


def test_a_server_that_cannot_keep_its_promise_says_when_to_come_back(running, random_model, engine):
    shape = {"workers": 1, "admission": "both", "slo_ttft": 1e-3}
    with running(random_model, cluster=shape) as busy:
        answers = []
        for prompt in [long for long in prompts(engine, 60, seed=21) if len(long) >= 300]:
            body = {"model": "random", "prompt": prompt, "max_tokens": 2}
            answers.append(busy.http.post("/v1/completions", json=body))
        refused = [answer for answer in answers if answer.status_code == 429]
        assert any(answer.status_code == 200 for answer in answers[:12]), "nothing is known yet"
        assert refused, "no prefill of 300 tokens takes less than a millisecond"
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        assert "first token would come too late" in refused[0].json()["error"]["message"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_lost_engine_costs_time_and_no_token(server, engine, role, number):
    strike(server, engine, 16, lambda: os.kill(random.choice(pids(server, role)), number))


def test_a_lost_pool_node_costs_time_and_no_token(server, engine):
    strike(server, engine, 16, lambda: os.kill(random.choice(node_pids(server)), signal.SIGKILL))
    server.wait_until(lambda: all(node["answers"] for node in status(server)["nodes"]))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_kills(server, engine, record_property):
    """Any engine or pool node, killed or stopped at any moment under load: no hang, no wrong token, no lost block."""
    chance, seconds = random.Random(1), []
    for _ in range(200):
        victims = [*pids(server, "prefill"), *pids(server, "decode"), *node_pids(server)]
        number = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP])
        seconds.append(strike(server, engine, 6, partial(hit, chance, victims, number), chance.uniform(0, 0.3)))
    record_property("wrong", 0)
    record_property("recovery_s", max(seconds))


def hit(chance, victims, number):
    """Strike one of them that is still there: a node that was stopped before may just be taken out of the way."""
    while True:
        with suppress(ProcessLookupError):
            return os.kill(chance.choice(victims), number)


def strike(server, engine, count, blow, delay=0.15):
    """Ask much at once, strike in the middle, and compare every answer with that of one engine.

    Returns the seconds from the blow until the last answer was there.
    """
    struck = []

    def now():
        struck.append(time.monotonic())
        blow()

    asked = [(prompt, i) for i, prompt in enumerate(prompts(engine, count, seed=time.monotonic_ns()))]
    timer = threading.Timer(delay, now)
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as client:

        def one(entry):
            prompt, i = entry
            return ask(client, prompt, max_tokens=60, temperature=(i % 2) * 0.9, seed=i)

        with ThreadPoolExecutor(count) as crowd:
            timer.start()
            answers = list(crowd.map(one, asked))
        ended = time.monotonic()
        timer.join()
    assert answers == [alone(engine, p, max_tokens=60, temperature=(i % 2) * 0.9, seed=i) for p, i in asked]
    server.wait_until(lambda: all_back(server))
    for each in status(server)["engines"]:
        assert each["kv_blocks_free"] == each["kv_blocks_total"]
    server.wait_until(lambda: not any(node["held"] for node in status(server)["nodes"]))
    return max(ended - struck[0], 0.0)


def node_pids(server):
    name = b"statepool.kv.pool.commands"
    return [pid for pid in server.children() if name in Path(f"/proc/{pid}/cmdline").read_bytes()]
