"""Several nodes behind one address: E2B's SDK through the front, a node that dies, a node that is full."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.sandbox.conftest import USABLE, free_port

from statepool.sandbox.commands import main
from statepool.sandbox.policy import NodeLoad, by_room

e2b = pytest.importorskip("e2b")
interpreter = pytest.importorskip("e2b_code_interpreter")
KEY = "e2b_" + "1" * 40


def get(url, path, key=KEY):
    request = urllib.request.Request(url + path, headers={"X-API-Key": key})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.read().decode()


@contextlib.contextmanager
def front(folder, *flags):
    """A front in a process of its own: its address and the process."""
    if not USABLE:
        pytest.skip("no driver works here")
    port = free_port()
    command = [sys.executable, "-m", "statepool.cli", "sandbox", "serve", "--port", str(port), "--api-key", KEY]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*command, "--ready", "1", *flags], stderr=log)
    url = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"E2B_API_URL": url, "E2B_SANDBOX_URL": url, "E2B_API_KEY": KEY}.items():
            patch.setenv(name, value)
        try:
            deadline = time.monotonic() + 60
            while True:
                with contextlib.suppress(OSError):  # refused, or too busy to answer yet
                    get(url, "/health")
                    break
                assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.05)
            yield url, process
        finally:
            nodes = pids(process.pid)
            process.send_signal(signal.SIGTERM)
            assert process.wait(40) in (0, -signal.SIGTERM)
            assert not [pid for pid in nodes.values() if Path(f"/proc/{pid}").exists()]


def pids(parent):
    """Process id of each node of a front, by name."""
    found = {}
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        if "--name" in words:
            found[words[words.index("--name") + 1]] = int(pid)
    return found


def node(sandbox_id):
    return sandbox_id.partition("-")[0]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    with front(tmp_path_factory.mktemp("front"), "--nodes", "2", "--most", "3") as found:
        yield found


def test_sandboxes_of_all_nodes_through_one_address(two, capsys, tmp_path):
    url, _ = two
    made = [interpreter.Sandbox.create(metadata={"n": str(n)}) for n in range(4)]
    assert sorted(node(one.sandbox_id) for one in made) == ["n1", "n1", "n2", "n2"]
    for n, one in enumerate(made):
        seen = []
        assert one.run_code(f"print({n})\nx = {n}\nx", on_stdout=lambda line, seen=seen: seen.append(line.line)).text
        assert "".join(seen) == f"{n}\n"
        one.files.write("f", f"file {n}")
    assert [one.run_code("x").text for one in made] == ["0", "1", "2", "3"]
    assert [one.files.read("f") for one in made] == [f"file {n}" for n in range(4)]
    listed = interpreter.Sandbox.list().next_items()
    assert {item.sandbox_id for item in listed} == {one.sandbox_id for one in made}
    moment = made[1].create_snapshot()
    assert node(moment.snapshot_id) == node(made[1].sandbox_id)
    with interpreter.Sandbox.create(moment.snapshot_id) as again:
        assert again.run_code("x").text == "1" and node(again.sandbox_id) == node(made[1].sandbox_id)
    assert moment.snapshot_id in get(url, "/snapshots")
    assert interpreter.Sandbox.delete_snapshot(moment.snapshot_id)  # it would hold its slot
    assert main(["template", "list"]) == 0
    assert "py" in capsys.readouterr().out
    (tmp_path / "in").write_text("copied")
    assert main(["cp", str(tmp_path / "in"), f"{made[2].sandbox_id}:in"]) == 0
    assert made[2].commands.run("cat in").stdout == "copied"
    metrics = get(url, "/metrics")
    assert 'statepool_sandbox_live{state="running",node="n1"}' in metrics and 'created_total{node="n2"}' in metrics
    interpreter.Sandbox.kill(made[0].sandbox_id)
    with pytest.raises(e2b.TimeoutException):
        made[0].run_code("1")
    for one in made[1:]:
        one.kill()


def test_the_door_asks_for_the_key_and_the_nodes_for_theirs(two):
    url, process = two
    with pytest.raises(urllib.error.HTTPError, match="401"):
        get(url, "/v2/sandboxes", "e2b_wrong")
    told = subprocess.run(["ss", "-tlnp"], capture_output=True, text=True, check=True).stdout
    (line,) = (line for line in told.splitlines() if f"pid={pids(process.pid)['n1']}," in line)
    address = "http://" + line.split()[3]
    with pytest.raises(urllib.error.HTTPError, match="401"):
        get(address, "/v2/sandboxes")


def test_a_full_server_refuses(two):
    made = [interpreter.Sandbox.create() for _ in range(6)]
    try:
        with pytest.raises(e2b.RateLimitException):
            interpreter.Sandbox.create()
    finally:
        for one in made:
            one.kill()


def test_a_node_that_dies_takes_its_sandboxes_and_nothing_else(two):
    url, process = two
    made = [interpreter.Sandbox.create() for _ in range(4)]  # one node holds three
    first = made[0]
    second = next(one for one in made if node(one.sandbox_id) != node(first.sandbox_id))
    second.run_code("x = 5")
    lost = node(first.sandbox_id)
    os.kill(pids(process.pid)[lost], signal.SIGKILL)
    with pytest.raises(e2b.TimeoutException, match="not found"):
        first.run_code("1")
    with pytest.raises(e2b.SandboxException):
        interpreter.Sandbox.connect(first.sandbox_id)
    assert second.run_code("x").text == "5"
    deadline = time.monotonic() + 30
    # Its place is taken under a new name, so that ids of the old one stay gone.
    while len(names := [each["node"] for each in json.loads(get(url, "/health"))["nodes"]]) < 2 or lost in names:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    third = interpreter.Sandbox.create()
    assert third.run_code("1 + 1").text == "2" and node(third.sandbox_id) in names
    for one in (*(one for one in made if node(one.sandbox_id) != lost), third):
        one.kill()


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
@pytest.mark.slow
def test_nodes_that_ray_places(tmp_path):
    with front(tmp_path, "--ray", "local", "--nodes", "1") as (_, _):
        one = interpreter.Sandbox.create()
        assert one.run_code("1 + 1").text == "2"
        one.kill()


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9))))
def test_who_gets_the_next_one(loads):
    nodes = [NodeLoad(str(n), min(live, most), most) for n, (live, most) in enumerate(loads)]
    order = by_room(nodes)
    assert sorted(order) == sorted(each.name for each in nodes)
    shares = [nodes[int(name)].live / nodes[int(name)].most for name in order]
    assert shares == sorted(shares)


def test_what_cannot_be_is_named(capsys):
    assert main(["serve", "--nodes", "0"]) == 2
    assert "--nodes" in capsys.readouterr().err
