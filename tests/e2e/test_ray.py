"""A server whose engines and pool nodes are placed by Ray, on a cluster of two nodes: the tokens of one engine."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest
from openai import OpenAI
from tests.e2e.conftest import PATIENCE, descendants, run_house
from tests.e2e.test_cluster import alone, ask, prompts, status

from statepool.engine.config import EngineConfig
from statepool.engine.engine import Engine
from statepool.vector import Index, RemoteIndex

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def ray_address():
    """A Ray cluster of two nodes on this machine, each with two cores to give away."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=2, include_dashboard=False, **agent_ports())
        cluster.add_node(num_cpus=2, **agent_ports())
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        cluster.shutdown()


def agent_ports():
    """Ports left open are told through a file, for which a node waits 15 s and then dies."""
    names = ("metrics_agent_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in names]
        return {name: each.getsockname()[1] for name, each in zip(names, taken, strict=True)}


@pytest.fixture(scope="module")
def engine(random_model):
    return Engine(EngineConfig(model=str(random_model), threads=1, kv_bytes=8 << 20))


@pytest.fixture
def server(running, random_model, ray_address):
    shape = {"prefill": 1, "decode": 2, "pool_nodes": 2, "pool_bytes": 64 << 20, "ray": ray_address}
    with running(random_model, engine={"pool_replicas": 2}, cluster=shape) as found:
        yield found


@pytest.fixture
def client(server):
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as found:
        yield found


def test_tokens_are_those_of_one_engine_whatever_is_killed(server, client, engine):
    assert all(node["address"].startswith("tcp://") for node in status(server)["nodes"])
    asked = [(prompt, i) for i, prompt in enumerate(prompts(engine, 24))]

    def one(entry):
        prompt, i = entry
        return ask(client, prompt, max_tokens=64, temperature=(i % 2) * 0.9, seed=i)

    def strike():
        for role in ("decode", "prefill"):
            time.sleep(0.5)
            os.kill(next(e["pid"] for e in status(server)["engines"] if e["role"] == role), signal.SIGKILL)

    striking = threading.Thread(target=strike)
    striking.start()
    with ThreadPoolExecutor(6) as crowd:
        answers = list(crowd.map(one, asked))
    striking.join()
    assert answers == [alone(engine, p, max_tokens=64, temperature=(i % 2) * 0.9, seed=i) for p, i in asked]
    server.wait_until(lambda: all(e["usable"] for e in status(server)["engines"]))
    assert sum(e["replaced"] for e in status(server)["engines"]) == 2


def test_a_killed_gateway_leaves_no_process_behind(server):
    pids = [each["pid"] for each in status(server)["engines"]]
    assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    server.process.kill()
    server.wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_the_whole_platform_on_the_cluster(random_model, ray_address, engine, tmp_path):
    """`statepool up --ray`: engines, pool and sandboxes where Ray puts them, store and index where their files are."""
    rows = np.random.default_rng(0).normal(size=(200, 16)).astype(np.float32)
    index = Index(16)
    index.build(rows)
    index.save(tmp_path / "docs.idx")
    with tempfile.TemporaryDirectory(prefix="ray") as short:
        file = {
            "serve": {"model": str(random_model), "port": 0, "kv_bytes": "8MiB", "threads": 1, "workers": 1}
            | {"pool_bytes": "8MiB"},
            "sandbox": {"port": 0, "ready": 1},
            "store": {"path": str(tmp_path / "store"), "capacity": "16MiB", "listen": f"unix://{short}/store"},
            "vector": {"path": str(tmp_path / "docs.idx"), "port": 0},
        }
        with run_house(tmp_path, file, "--ray", ray_address) as house:
            here = descendants(house.process.pid)
            serving = house.now("serving")
            placed = [each["pid"] for each in serving["engines"]]
            assert placed and not set(placed) & set(here)  # children of Ray
            assert all(each["address"].startswith("tcp://") for each in serving["nodes"])
            with OpenAI(base_url=f"{house.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as client:
                for i, prompt in enumerate(prompts(engine, 6)):
                    given = {"max_tokens": 16, "temperature": (i % 2) * 0.9, "seed": i}
                    assert ask(client, prompt, **given) == alone(engine, prompt, **given)
            with RemoteIndex(house.vector) as remote:
                assert remote.search(rows[3], 1).ids.tolist() == [3]
            assert httpx.get(f"{house.sandbox}/health", timeout=PATIENCE).json()["status"] == "ok"
            assert house.now("storage")["store"]["state"] == "live"
        assert not any(Path(f"/proc/{pid}").exists() for pid in placed)


def test_a_training_run_whose_conversations_the_cluster_holds_leaves_the_bits_of_one_engine(ray_address, tmp_path):
    file = {
        "model": "tiny", "task": "python-steps", "settings": {"steps": 1, "digits": 5}, "threads": 1, "imitation": 2,
        "imitation_batch": 4, "demonstrations": 6, "steps": 2, "prompts": 3, "members": 3, "rate": 3e-4, "turns": 3,
        "turn_tokens": 48, "eval_problems": 4, "kv_bytes": "32MiB", "tensorboard": False, "isolation": "process",
    }  # fmt: skip
    left = []
    for name, where in (("here", {}), ("there", {"engines": 2, "ray": ray_address})):
        out = tmp_path / name
        (tmp_path / f"{name}.yaml").write_text(json.dumps({**file, **where, "out": str(out)}))
        command = [sys.executable, "-m", "statepool.cli", "train", str(tmp_path / f"{name}.yaml")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        curve = [json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()]
        kept = [{k: v for k, v in line.items() if k not in ("seconds", "computed", "fresh")} for line in curve]
        left.append((kept, (out / "model" / "model.safetensors").read_bytes()))
    played = [line for line in left[0][0] if line["phase"] == "play"]
    assert any(line["grad_norm"] > 0 for line in played), "a run that learns nothing would agree as well"
    assert left[0] == left[1]
