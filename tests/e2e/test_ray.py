"""A server whose engines and pool nodes are placed by Ray, on a cluster of two nodes: the tokens of one engine."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from openai import OpenAI
from tests.e2e.test_cluster import alone, ask, prompts, status

from statepool.engine.config import EngineConfig
from statepool.engine.engine import Engine

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def ray_address():
    """A Ray cluster of two nodes on this machine, each with two cores to give away."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    yield cluster.address
    cluster.shutdown()


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
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as found:
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
    server.wait_until(lambda: all(e["usable"] for e in status(server)["engines"]), seconds=60)
    assert sum(e["replaced"] for e in status(server)["engines"]) == 2


def test_a_killed_gateway_leaves_no_process_behind(server):
    pids = [each["pid"] for each in status(server)["engines"]]
    assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    server.process.kill()
    server.wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), seconds=30)
