"""Drivers for whole programs: OCI runtimes and CRIU for real where they are, machines by the shape of commands."""

import json
import sys
from pathlib import Path

import pytest
from tests.sandbox import escapes

from statepool.core.errors import InvalidRequest
from statepool.sandbox import Template
from statepool.sandbox.drivers import criu, oci, vm
from statepool.sandbox.errors import IsolationUnavailable
from statepool.sandbox.template import Limits


@pytest.fixture(params=oci.RUNTIMES)
def runtime(request):
    try:
        made = oci.OciRuntime(request.param, Template("oci", limits=Limits(memory_bytes=128 << 20, processes=64)))
    except IsolationUnavailable as error:
        pytest.skip(error.message)
    return made


def test_a_program_runs_and_leaves_nothing(runtime):
    before = {path.name for path in Path("/run").iterdir()}
    done = runtime.run(
        [sys.executable, "-c", "import os\nprint(open('in').read(), os.getuid(), os.getpid())"], files={"in": b"given"}
    )
    assert (done.exit_code, done.stdout) == (0, "given 1000 1\n"), done.stderr
    assert runtime.run(["/bin/sh", "-c", "cat; exit 3"], stdin=b"typed").exit_code == 3
    late = runtime.run(["/bin/sleep", "60"], timeout=1.0)
    assert late.timed_out and late.exit_code == -9
    assert {name for name in {path.name for path in Path("/run").iterdir()} - before if "statepool" in name} == set()


@pytest.mark.parametrize("name", ["pid 1", "kernel memory", "users", "set-user-id programs", "host files", "network"])
def test_no_way_out(runtime, name):
    lines = (escapes.HEAD + escapes.ESCAPES[name]).splitlines()
    last = len(lines) - 1
    while lines[last].startswith((" ", ")", "]")):
        last -= 1
    code = "\n".join(lines[:last]) + "\nprint(" + "\n".join(lines[last:]) + ")"
    if name == "pid 1":  # the program is process 1 itself here
        code = code.replace("/proc/1/", "/proc/2/")
    done = runtime.run([sys.executable, "-c", code])
    # Devices of gVisor's own kernel, which runs as a process: nothing of the host is behind them.
    own = ["/dev/fuse", "/dev/net/tun"] if (runtime.runtime, name) == ("runsc", "kernel memory") else []
    assert done.stdout == f"{own}\n", done


def test_files_stay_in_the_home(runtime):
    with pytest.raises(InvalidRequest, match="leads out"):
        runtime.run(["/bin/true"], files={"../../etc/passwd": b"x"})


def test_what_is_missing_is_an_error():
    with pytest.raises(InvalidRequest):
        oci.OciRuntime("docker")


def test_criu_brings_a_process_back():
    try:
        criu.probe()
    except IsolationUnavailable as error:
        pytest.skip(error.message)


def test_commands_for_machines(tmp_path):
    guest = vm.Guest(Path("/k/vmlinux"), Path("/t/root.erofs"), Path("/s/own.ext4"), tmp_path / "api.sock", 1024, 2)
    command = vm.cloud_hypervisor(guest)
    assert command[command.index("--pmem") + 1] == "file=/t/root.erofs,discard_writes=on"
    assert "root=/dev/pmem0 ro rootflags=dax=always" in command[command.index("--cmdline") + 1]
    assert command[command.index("--memory") + 1] == "size=1024M,shared=off"
    config = vm.firecracker(guest)
    assert json.loads(json.dumps(config))["drives"][0]["is_read_only"] is True
    assert vm.firecracker_restore(Path("/s/state"), Path("/s/memory"))["mem_backend"]["backend_type"] == "File"
    assert vm.cloud_hypervisor_restore(Path("/s/snap"), Path("/s/api"))[-1] == "source_url=file:///s/snap"
    with pytest.raises(InvalidRequest, match="separates options"):
        vm.Guest(Path("/k"), Path("/r,size=1"), Path("/d"), Path("/s"))


def test_a_monitor_without_a_guest_is_no_machine(tmp_path, monkeypatch):
    fake = tmp_path / "cloud-hypervisor"
    fake.write_text('#!/bin/sh\necho "$@"\necho "no guest"\n')
    fake.chmod(0o755)
    guest = vm.Guest(Path("/k"), Path("/r"), Path("/d"), tmp_path / "s")
    with pytest.raises(IsolationUnavailable, match="not installed"):
        vm.probe(guest, "no-such-monitor")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(IsolationUnavailable, match="no guest"):
        vm.probe(guest)
