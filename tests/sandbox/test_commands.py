"""Commands, terminals and files of a sandbox."""

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from statepool.core.errors import InvalidRequest, NotFound, PayloadTooLarge
from statepool.sandbox.template import HOME


def test_a_command_gives_output_and_exit_code(sandbox):
    done = sandbox.commands.run("echo out; echo err >&2; exit 7")
    assert (done.exit_code, done.stdout, done.stderr) == (7, "out\n", "err\n")


def test_stdin_env_and_cwd(sandbox):
    sandbox.files.make_dir("sub")
    done = sandbox.commands.run("pwd; echo $X; cat", cwd=f"{HOME}/sub", env={"X": "y z"}, stdin="typed")
    assert done.stdout == f"{HOME}/sub\ny z\ntyped"


def test_a_command_in_the_background(sandbox):
    running = sandbox.commands.start("read line; echo got $line; sleep 60")
    running.send_stdin("hello\n")
    seen = []
    deadline = time.monotonic() + 20
    while not any("sleep 60" in line for _, line in sandbox.commands.running()):
        assert time.monotonic() < deadline
    assert running.kill()
    assert running.wait(10, on_stdout=seen.append).exit_code == -9
    assert seen in ([], ["got hello\n"])


def test_a_command_that_runs_too_long_is_ended_with_its_children(sandbox):
    began = time.monotonic()
    done = sandbox.commands.run("sleep 61 & sleep 62", timeout=0.3)
    assert done.timed_out and time.monotonic() - began < 20
    deadline = time.monotonic() + 20  # the shell may be gone before a killed child is
    while [line for _, line in sandbox.commands.running() if "sleep" in line]:
        assert time.monotonic() < deadline


def test_what_cannot_be_started_is_named(sandbox):
    with pytest.raises(InvalidRequest, match="No such file"):
        sandbox.commands.start(["/no/such/program"])
    with pytest.raises(InvalidRequest, match="No such file"):
        sandbox.commands.run("true", cwd="/nowhere")


def test_a_terminal_echoes_resizes_and_ends(sandbox):
    terminal = sandbox.commands.terminal(["/bin/bash", "--norc", "-i"], rows=30, cols=100)
    terminal.write(b"stty size; echo $((40 + 2)); tty\n")
    seen = b""
    while b"/dev/pts/" not in seen:
        seen += terminal.read()
    assert b"30 100" in seen and b"\n42" in seen.replace(b"\r", b"")
    terminal.resize(10, 20)
    terminal.write(b"stty size; exit 3\n")
    while data := terminal.read():
        seen += data
    assert b"10 20" in seen
    assert terminal.wait(10) == 3
    terminal.close()


def test_files_round_trip_and_belong_to_the_user(sandbox):
    sandbox.files.write("a/b/c.bin", bytes(range(256)))
    assert sandbox.commands.run("sha256sum a/b/c.bin; stat -c %U a a/b a/b/c.bin").stdout.split() == [
        "40aff2e9d2d8922e47afd4648e6967497158785fbd1da870e7110266bf944880",
        "a/b/c.bin",
        *["user"] * 3,
    ]
    sandbox.commands.run("echo -n changed > a/b/c.bin; ln -s c.bin a/b/link; mkfifo a/b/pipe")
    assert sandbox.files.read("a/b/link") == b"changed"
    kinds = {entry.name: entry.kind for entry in sandbox.files.list("a", depth=3)}
    assert kinds == {"b": "dir", "c.bin": "file", "link": "link", "pipe": "other"}
    assert sandbox.files.rename("a/b/c.bin", "moved").path == f"{HOME}/moved"
    sandbox.files.remove("a")
    assert not sandbox.files.exists("a") and sandbox.files.exists("moved")


@pytest.mark.parametrize(
    "path", ["../../../../etc/shadow", "/proc/self/cwd/../../etc/shadow", "link/etc/shadow", "up/../../etc/shadow"]
)
def test_no_path_leads_out(sandbox, path):
    sandbox.commands.run("ln -s / link; ln -s ../../../../../../.. up")
    with pytest.raises((NotFound, InvalidRequest)):
        sandbox.files.read(path)


def test_a_link_to_the_hosts_etc_reads_the_sandboxs_own(sandbox):
    sandbox.commands.run("ln -s /etc/passwd mine")
    assert b"user:x:" in sandbox.files.read("mine") and sandbox.files.read("mine") != Path("/etc/passwd").read_bytes()


def test_a_pipe_or_device_is_no_file(sandbox):
    sandbox.commands.run("mkfifo pipe")
    for path in ("pipe", "/dev/zero", "/home/user"):
        with pytest.raises(InvalidRequest):
            sandbox.files.read(path)
    with pytest.raises(InvalidRequest):
        sandbox.files.write("/usr/bin/new", b"x")
    with pytest.raises(PayloadTooLarge):
        sandbox.files.write("big", b"x" * 2000) and sandbox.files.read("big", most=1000)


NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=40)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(NAMES.filter(lambda name: name not in (".", "..") and not name.startswith("~")), st.binary(max_size=300))
def test_any_name_and_any_bytes(sandbox, name, data):
    try:
        sandbox.files.write(name, data)
    except InvalidRequest as error:
        assert len(os.fsencode(name)) > 255, error
        return
    assert sandbox.files.read(name) == data
    assert [entry.name for entry in sandbox.files.list() if entry.name == name] == [name]
    sandbox.files.remove(name)


def test_a_kind_is_built_shown_and_listed(tmp_path, capsys):
    from statepool.sandbox.commands import main

    manifest, code = tmp_path / "kind.toml", tmp_path / "cell.py"
    manifest.write_text('preload = ["json"]\n[limits]\nmemory_bytes = "64MiB"\n')
    code.write_text("import csv, wave")
    assert main(["template", "build", str(manifest), "--trace", str(code), "--json"]) == 0
    built = json.loads(capsys.readouterr().out)
    assert built["name"] == "kind" and {"csv", "wave"} <= set(built["imports"]) and "json" not in built["imports"]
    assert main(["template", "show", str(manifest)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["limits"]["memory_bytes"] == 64 << 20 and "/usr" in shown["sees"]
    code.write_text("1 / 0")
    assert main(["template", "build", str(manifest), "--trace", str(code)]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert main(["template", "show", str(tmp_path / "none.toml")]) == 2
    assert main(["template", "list", "--url", "http://127.0.0.1:9"]) == 2


def test_a_user_measures_what_a_kind_costs(capsys):
    from statepool.sandbox.commands import main

    assert main(["bench", "--starts", "2", "--burst", "6", "--at-once", "3", "--forks", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["burst_errors"] == 0 and 0 < told["start_p50_ms"] <= told["start_p99_ms"] and told["forks_ms"] > 0
    assert main(["bench", "--starts", "0"]) == 2
