"""Three machines, as far as the network goes: gateway and pool on one, prefill on another, decode on the third.

Each is a network namespace with an address of its own on one bridge; Ray joins them. Needs root, ``ip`` and Ray.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager

import pytest
from openai import APIError, OpenAI
from tests.e2e.conftest import PATIENCE, run_server
from tests.e2e.test_cluster import alone, ask, prompts, status

from statepool.engine.config import EngineConfig
from statepool.engine.engine import Engine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # three nodes of Ray start, which takes minutes on a busy machine
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="makes network namespaces"),
]

HOSTS = ("spgate", "spfill", "spcode")
BRIDGE, SUBNET = "spbridge", "10.177.61"
MEBI = 1 << 20


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def address(host):
    return f"{SUBNET}.{HOSTS.index(host) + 1}"


@contextmanager
def ray_node(host, *options):
    """A Ray node on a host, up."""
    command = ["ip", "netns", "exec", host, sys.executable, "-m", "ray.scripts.scripts", "start"]
    command += ["--node-ip-address", address(host), "--block", "--disable-usage-stats", *options]
    # Ports left open are told through a file, for which a node waits 15 s and then dies; each host has its own.
    for port, name in enumerate(("dashboard-agent-grpc", "dashboard-agent-listen", "runtime-env-agent"), 6391):
        command += [f"--{name}-port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    reader = None
    try:
        printed = []
        for line in process.stdout:
            printed.append(line)
            if "Ray runtime started" in line:
                break
        else:
            pytest.fail(f"no Ray on {host}: {''.join(printed)}")
        reader = threading.Thread(target=process.stdout.read)
        reader.start()
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:  # it was cut off
            process.kill()
            process.wait()
        if reader is not None:
            reader.join()
        process.stdout.close()


@pytest.fixture(scope="module")
def hosts():
    """Three hosts on one bridge, the machine's own side at ``.254``, and the address of their Ray cluster."""
    pytest.importorskip("ray")
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("RAY_AUTH_MODE", "disabled")
        ip("link", "add", BRIDGE, "type", "bridge")
        stack.callback(ip, "link", "del", BRIDGE)
        ip("addr", "add", f"{SUBNET}.254/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for host in HOSTS:
            ip("netns", "add", host)
            stack.callback(ip, "netns", "del", host)
            ip("link", "add", f"{host}0", "type", "veth", "peer", "name", "eth0", "netns", host)
            stack.callback(ip, "link", "del", f"{host}0")
            ip("link", "set", f"{host}0", "master", BRIDGE, "up")
            for words in (
                ["addr", "add", f"{address(host)}/24", "dev", "eth0"],
                ["link", "set", "eth0", "up"],
                ["link", "set", "lo", "up"],
            ):
                ip("-n", host, *words)
        # Room decides who goes where: an engine needs a core, the pool more memory than the other hosts have.
        gate, *others = HOSTS
        head = ["--head", "--port", "6399", "--num-cpus", "0", "--memory", str(512 * MEBI), "--include-dashboard=false"]
        # A folder of its own, with a short name for its sockets: Ray takes what is noted in the usual one for a cluster
        # that runs, for ever.
        head += [
            "--temp-dir",
            stack.enter_context(tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True)),
        ]
        stack.enter_context(ray_node(gate, *head))
        joined = ["--address", f"{address(gate)}:6399", "--num-cpus", "1", "--memory", str(32 * MEBI)]
        for host in others:
            stack.enter_context(ray_node(host, *joined))
        yield f"{address(gate)}:6399"


@pytest.fixture
def server(hosts, random_model, tmp_path):
    """A server on the first host."""
    python = tmp_path / "python"  # what `run_server` starts, inside the host
    python.write_text(f'#!/bin/sh\nexec ip netns exec {HOSTS[0]} {sys.executable} "$@"\n')
    python.chmod(0o755)
    shape = {"prefill": 1, "decode": 1, "pool_bytes": 128 * MEBI, "ray": hosts}
    with run_server(random_model, python=str(python), host=address(HOSTS[0]), cluster=shape) as found:
        yield found


@pytest.fixture
def client(server):
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as found:
        yield found


def host_of(pid):
    return subprocess.run(
        ["ip", "netns", "identify", str(pid)], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_prefill_decode_and_pool_on_three_hosts(server, client, random_model):
    engine = Engine(EngineConfig(model=str(random_model), threads=1, kv_bytes=8 * MEBI))
    engines = {each["role"]: host_of(each["pid"]) for each in status(server)["engines"]}
    assert set(engines.values()) == set(HOSTS[1:])
    assert [node["address"].split(":")[1].strip("/") for node in status(server)["nodes"]] == [address(HOSTS[0])]
    for i, prompt in enumerate(prompts(engine, 12)):
        given = {"max_tokens": 12, "temperature": (i % 2) * 0.9, "seed": i}
        assert ask(client, prompt, **given) == alone(engine, prompt, **given)
    server.metric("steps_total")  # brings the counters up to date
    assert sum(each["pool_loaded_blocks"] for each in status(server)["engines"]) > 0

    # The decode host is cut off in the middle of an answer.
    decode = next(host for role, host in engines.items() if role == "decode")
    prompt = prompts(engine, 1, seed=9)[0]
    cut = threading.Timer(0.4, ip, ("link", "set", f"{decode}0", "down"))
    cut.start()
    try:
        wanted = alone(engine, prompt, max_tokens=900, temperature=0)
        begun = time.monotonic()
        assert ask(client, prompt, max_tokens=900, temperature=0) == wanted
    except APIError as error:
        assert json.dumps(error.body), "an error that says what it is"
        assert time.monotonic() - begun < 90
    finally:
        cut.join()
    assert server.http.get("/health").status_code in (200, 503)
