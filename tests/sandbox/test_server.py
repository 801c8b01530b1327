"""The server through the clients it is for: E2B's own SDKs, unchanged, and an MCP client."""

import base64
import os
import signal
import subprocess
import sys
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from tests.sandbox.conftest import USABLE, free_port

from statepool.sandbox.template import HOME

e2b = pytest.importorskip("e2b")
interpreter = pytest.importorskip("e2b_code_interpreter")
KEY = "e2b_" + "0" * 40


def _wait(url, process):
    deadline = time.monotonic() + 240
    while True:
        try:
            with urllib.request.urlopen(url + "/health", timeout=5):
                return
        except OSError:  # refused, or too busy to answer yet
            assert process.poll() is None, "the server has ended"
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    if not USABLE:
        pytest.skip("no driver works here")
    port = free_port()
    command = [sys.executable, "-m", "statepool.cli", "sandbox", "serve", "--port", str(port), "--api-key", KEY]
    with (tmp_path_factory.mktemp("server") / "log").open("w") as log:
        process = subprocess.Popen(command, stderr=log)
    url = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"E2B_API_URL": url, "E2B_SANDBOX_URL": url, "E2B_API_KEY": KEY}.items():
            patch.setenv(name, value)
        try:
            _wait(url, process)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(240) in (0, -signal.SIGTERM)


@pytest.fixture
def remote(url):
    made = interpreter.Sandbox.create(timeout=120, metadata={"who": "test"}, envs={"GIVEN": "seven"})
    yield made
    made.kill()


def test_cells(remote):
    seen = []
    done = remote.run_code(
        "import os\nprint(os.environ['GIVEN'])\nx = 40\nx + 2", on_stdout=lambda line: seen.append(line.line)
    )
    assert done.text == "42" and "".join(done.logs.stdout) == "seven\n" == "".join(seen)
    assert remote.run_code("x").execution_count == 2
    assert remote.run_code("1 / 0").error.name == "ZeroDivisionError"
    assert remote.run_code("echo $((x + 1))", language="bash").logs.stdout == ["1\n"]
    context = remote.create_code_context(cwd="/tmp")
    assert remote.run_code("import os\nos.getcwd(), 'x' in globals()", context=context).text == "('/tmp', False)"
    assert len(remote.list_code_contexts()) == 2
    remote.remove_code_context(context)
    with pytest.raises(e2b.SandboxException, match="language"):
        remote.run_code("1", language="cobol")


def test_commands(remote):
    seen = []
    done = remote.commands.run("echo out; echo err >&2; echo $GIVEN", on_stdout=seen.append)
    assert (done.stdout, done.stderr, "".join(seen)) == ("out\nseven\n", "err\n", "out\nseven\n")
    with pytest.raises(e2b.CommandExitException) as failed:
        remote.commands.run("exit 3")
    assert failed.value.exit_code == 3
    running = remote.commands.run("while read line; do echo got $line; done", background=True, stdin=True)
    assert running.pid in [process.pid for process in remote.commands.list()]
    remote.commands.send_stdin(running.pid, "one\n")
    again = remote.commands.connect(running.pid)
    assert remote.commands.kill(running.pid)
    with pytest.raises(e2b.CommandExitException):
        again.wait()
    with pytest.raises(e2b.TimeoutException):
        remote.commands.run("sleep 30", timeout=0.5)


def test_terminal(remote):
    terminal = remote.pty.create(e2b.PtySize(rows=20, cols=90))
    remote.pty.resize(terminal.pid, e2b.PtySize(rows=10, cols=50))
    remote.pty.send_stdin(terminal.pid, b"stty size; exit\n")
    seen = b""
    for _, _, data in terminal:
        seen += data or b""
    assert b"10 50" in seen


def test_files(remote):
    remote.files.write("dir/a.txt", "text")
    remote.files.write_files([{"path": "dir/b.bin", "data": b"\x00\xff"}, {"path": "dir/c.txt", "data": "c"}])
    assert remote.files.read("dir/a.txt") == "text"
    assert bytes(remote.files.read("dir/b.bin", format="bytes")) == b"\x00\xff"
    assert b"".join(remote.files.read("dir/a.txt", format="stream")) == b"text"
    assert [entry.name for entry in remote.files.list("dir")] == ["a.txt", "b.bin", "c.txt"]
    assert remote.files.rename("dir/a.txt", "dir/z.txt").path == f"{HOME}/dir/z.txt"
    assert remote.files.exists("dir/z.txt") and not remote.files.exists("dir/a.txt")
    assert remote.files.get_info("dir/z.txt").size == 4
    assert remote.files.make_dir("made") and not remote.files.make_dir("made")
    remote.files.remove("dir")
    with pytest.raises(e2b.NotFoundException):
        remote.files.read("dir/z.txt")
    with pytest.raises(e2b.NotFoundException):
        remote.files.list("dir")


def test_links_to_files_are_signed(remote):
    remote.files.write("f", "linked")
    headers = {"E2b-Sandbox-Id": remote.sandbox_id, "E2b-Sandbox-Port": "49983"}
    link = remote.download_url("f", use_signature_expiration=100)
    assert httpx.get(link, headers=headers).text == "linked"
    assert httpx.get(link.replace("path=f", "path=g"), headers=headers).status_code == 401
    assert httpx.get(link.split("&signature")[0], headers=headers).status_code == 401


def test_watching(remote):
    remote.files.make_dir("watched")
    watcher = remote.files.watch_dir("watched")
    remote.files.write("watched/new", "1")
    deadline, events = time.monotonic() + 20, []
    while not events and time.monotonic() < deadline:
        events = watcher.get_new_events()
    assert {(event.name, event.type.value) for event in events} >= {("new", "create")}
    watcher.stop()


def test_life_of_a_sandbox(url, remote):
    assert remote.is_running()
    info = remote.get_info()
    assert info.metadata == {"who": "test"} and info.state.value == "running"
    assert remote.sandbox_id in [
        item.sandbox_id
        for item in interpreter.Sandbox.list(query=e2b.SandboxQuery(metadata={"who": "test"})).next_items()
    ]
    assert not interpreter.Sandbox.list(query=e2b.SandboxQuery(metadata={"who": "nobody"})).next_items()
    remote.run_code("x = 1")
    remote.pause()
    assert remote.get_info().state.value == "paused"
    same = interpreter.Sandbox.connect(remote.sandbox_id)
    assert same.run_code("x").text == "1"
    same.set_timeout(50)
    assert 0 < (same.get_info().end_at.timestamp() - time.time()) < 51
    assert same.get_metrics()[0].mem_used > 0
    short = interpreter.Sandbox.create(timeout=1)
    deadline = time.monotonic() + 20
    while short.is_running():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with pytest.raises(e2b.SandboxNotRunningException):
        short.files.list("/")
    assert not short.kill()
    with pytest.raises(e2b.SandboxNotFoundException):
        interpreter.Sandbox.connect("nothing")


def test_forks_and_snapshots(remote):
    remote.run_code("x = 1\nopen('f', 'w').write('base')")
    kids = remote.fork(count=2)
    assert [kid.run_code("x += 1\nx").text for kid in kids] == ["2", "2"]
    kids[0].files.write("f", "changed")
    assert kids[1].files.read("f") == remote.files.read("f") == "base"
    moment = remote.create_snapshot()
    remote.run_code("x = 100")
    back = interpreter.Sandbox.create(moment.snapshot_id)
    assert back.run_code("x, open('f').read()").text == "(1, 'base')"
    assert moment.snapshot_id in [item.snapshot_id for item in remote.list_snapshots().next_items()]
    assert interpreter.Sandbox.delete_snapshot(moment.snapshot_id)
    remote.commands.run("sleep 100", background=True)
    remote.run_code(
        "import glob\ndef read(path): return open(path, 'rb').read()\n"
        "while not any(b'sleep\\x00100' in read(path) for path in glob.glob('/proc/*/cmdline')): ..."
    )
    with pytest.raises(e2b.SandboxException, match="sleep 100"):
        remote.create_snapshot()
    for one in (*kids, back):
        one.kill()


def test_keys_and_tokens(url, remote):
    assert httpx.get(url + "/v2/sandboxes", headers={"X-API-Key": "wrong"}).status_code == 401
    headers = {"E2b-Sandbox-Id": remote.sandbox_id, "E2b-Sandbox-Port": "49999"}
    for token in ({}, {"X-Access-Token": "0" * 40}):
        assert httpx.post(url + "/execute", json={"code": "1"}, headers=headers | token).status_code == 401
    with pytest.raises(e2b.AuthenticationException):
        interpreter.Sandbox.create(api_key="e2b_" + "1" * 40)


def test_nothing_of_an_ended_sandbox_opens_another(url):
    """Its token, its links and its id, tried on itself and on whoever has its slot now."""
    old = interpreter.Sandbox.create()
    old.files.write("f", "mine")
    link = old.download_url("f", use_signature_expiration=1000)
    token = httpx.get(f"{url}/sandboxes/{old.sandbox_id}", headers={"X-API-Key": KEY}).json()["envdAccessToken"]
    assert old.kill()
    new = interpreter.Sandbox.create()
    new.files.write("f", "theirs")
    assert new.sandbox_id != old.sandbox_id
    for name, refused in ((old.sandbox_id, {401, 404, 502}), (new.sandbox_id, {401})):
        headers = {"E2b-Sandbox-Id": name, "E2b-Sandbox-Port": "49983"}
        assert httpx.get(link, headers=headers).status_code in refused
        assert httpx.get(url + "/files?path=f", headers=headers | {"X-Access-Token": token}).status_code in refused
        headers["E2b-Sandbox-Port"] = "49999"
        answer = httpx.post(url + "/execute", json={"code": "1"}, headers=headers | {"X-Access-Token": token})
        assert answer.status_code in refused
    new.kill()


def test_bad_requests_are_named(url):
    bad = [
        ({"timeout": -1}, "timeout"),
        ({"timeout": "x"}, "timeout"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"templateID": "no"}, "template"),
    ]
    with httpx.Client(base_url=url, headers={"X-API-Key": KEY}) as ask:
        for body, name in [*bad, ({"network": {"allowOut": ["example.com"]}}, "network")]:
            answer = ask.post("/v2/sandboxes", json=body)
            assert answer.status_code == 400 and name in answer.json()["message"], answer.text
        assert ask.post("/v2/sandboxes", content=b"{").status_code == 400


def test_a_run_in_one_request(url):
    body = {
        "code": "import sys\nprint(open('in.txt').read(), input())\nopen('out.bin', 'wb').write(b'\\x01')",
        "language": "python",
        "files": {"in.txt": base64.b64encode(b"given").decode()},
        "fetch_files": ["out.bin"],
        "stdin": "typed",
    }
    done = httpx.post(url + "/run_code", json=body, headers={"X-API-Key": KEY}, timeout=60).json()
    assert (done["status"], done["run_result"]["stdout"], done["files"]) == (
        "Success",
        "given typed\n",
        {"out.bin": "AQ=="},
    )
    late = httpx.post(
        url + "/run_code", json={"code": "while True: pass", "run_timeout": 0.3}, headers={"X-API-Key": KEY}, timeout=60
    ).json()
    assert late["run_result"]["status"] == "TimeLimitExceeded"


def test_metrics_can_be_scraped(url, remote):
    text = httpx.get(url + "/metrics", headers={"X-API-Key": KEY}).text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert int(values["statepool_sandbox_created_total"]) >= 1
    assert int(values['statepool_sandbox_live{state="running"}']) >= 1


async def test_mcp_client():
    mcp = pytest.importorskip("mcp")
    from mcp.client.stdio import StdioServerParameters, stdio_client

    if not USABLE:
        pytest.skip("no driver works here")
    command = StdioServerParameters(
        command=sys.executable,
        args=["-m", "statepool.cli", "sandbox", "mcp"],
        env=dict(os.environ),
        cwd=str(Path.cwd()),
    )
    async with stdio_client(command) as (read, write), mcp.ClientSession(read, write) as session:
        await session.initialize()
        names = {tool.name for tool in (await session.list_tools()).tools}
        assert names >= {"run_code", "shell", "read_file", "write_file", "snapshot", "rollback"}

        async def call(tool, **arguments):
            return (await session.call_tool(tool, arguments)).content[0].text

        assert await call("run_code", code="x = 2\nprint('hi')\nx * 21") == "hi\n\n42"
        await call("snapshot", name="m")
        await call("write_file", path="f", text="gone later")
        assert await call("shell", command="cat f") == "gone later"
        assert await call("rollback", name="m") == "back at m"
        assert "No such file" in await call("shell", command="cat f")
        assert await call("run_code", code="x") == "2"


def _cli(*arguments, text=None):
    command = [sys.executable, "-m", "statepool.cli", "sandbox", *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_command_line_with_a_server(url, tmp_path):
    name = _cli("create")[1].strip()
    assert name in _cli("ps")[1]
    assert _cli("exec", name, "x = 5\nprint('said')\nx + 1") == (0, "said\n6\n", "")
    (tmp_path / "in.txt").write_text("copied")
    assert _cli("cp", str(tmp_path / "in.txt"), f"{name}:sub/in.txt")[0] == 0
    assert _cli("exec", name, "--shell", text="cat sub/in.txt; exit 3")[:2] == (1, "copied")
    assert _cli("exec", name, "--shell", "cat sub/in.txt")[:2] == (0, "copied")
    assert _cli("cp", f"{name}:sub/in.txt", str(tmp_path / "out.txt"))[0] == 0
    assert (tmp_path / "out.txt").read_text() == "copied"
    kid = _cli("fork", name)[1].strip()
    assert _cli("exec", kid, "x")[1] == "5\n"
    assert _cli("snapshot", name, "--name", "kept")[1] == "kept\n"
    again = _cli("create", "kept")[1].strip()
    assert _cli("exec", again, "x")[1] == "5\n"
    assert _cli("pause", again)[0] == 0 and "paused" in _cli("ps")[1]
    assert _cli("resume", again, "--seconds", "9000")[0] == 0
    (ends,) = (line.split()[-1] for line in _cli("ps")[1].splitlines() if line.startswith(again))
    left = datetime.fromisoformat(ends).replace(tzinfo=UTC) - datetime.now(UTC)
    assert timedelta(seconds=8000) < left <= timedelta(seconds=9000)
    for one in (name, kid, again):
        assert _cli("kill", one)[0] == 0
    code, _, error = _cli("exec", name, "1")
    assert code == 2 and "not found" in error
    assert _cli("ps", "--url", "http://127.0.0.1:9")[0] == 2


def test_a_port_that_cannot_be_had_is_told_at_once(url):
    for port in (url.rpartition(":")[2], "99999"):
        code, _, error = _cli("serve", "--port", port)
        assert code == 2 and f"cannot listen on 127.0.0.1:{port}" in error


def test_command_line_alone(tmp_path):
    if not USABLE:
        pytest.skip("no driver works here")
    (tmp_path / "d.txt").write_text("given")
    assert _cli("run", "print(open('d.txt').read())\n1 + 1", "--file", str(tmp_path / "d.txt")) == (0, "given\n2\n", "")
    code, out, error = _cli("run", text="1 / 0")
    assert (code, out) == (1, "") and "ZeroDivisionError" in error
    assert _cli("run", "1", "--driver", "vm")[0] == 2
    assert _cli("doctor")[0] == 0
