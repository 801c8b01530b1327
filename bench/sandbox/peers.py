"""What others do for one run of ``import numpy; print(1 + 1)``: bare Python, bubblewrap, runc, gVisor, ipykernel."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.peers.setup import python_of
from statepool.sandbox.cgroup import PREFIX, Cgroup, roots
from statepool.sandbox.template import Template, skeleton

CODE = "import numpy; print(1 + 1)"
Run = Callable[[], float | None]
"""Runs once; answers the seconds that count, where not all of them do."""
_KERNELS = """
import sys, time
from jupyter_client.manager import start_new_kernel
for _ in sys.stdin:
    began, said = time.perf_counter(), []
    manager, client = start_new_kernel(kernel_name="python3")
    client.execute_interactive(sys.argv[1], output_hook=lambda message: said.append(message["content"].get("text")))
    seconds = time.perf_counter() - began
    assert "2\\n" in said, said
    client.stop_channels()
    manager.shutdown_kernel(now=True)
    print(seconds, flush=True)
"""


def available(folder: Path, code: str = CODE) -> dict[str, Run]:
    """A way to run once, by name, for every peer this machine has."""
    found: dict[str, list[str]] = {"python": [sys.executable, "-c", code]}
    if bwrap := shutil.which("bwrap"):
        inside = [
            "--ro-bind",
            "/",
            "/",
            "--dev",
            "/dev",
            "--proc",
            "/proc",
            "--tmpfs",
            "/tmp",
            "--unshare-all",
            "--die-with-parent",
        ]
        found["bwrap"] = [bwrap, *inside, sys.executable, "-c", code]
    if runc := shutil.which("runc", path="/usr/sbin:/usr/bin:/usr/local/bin"):
        found["runc"] = [runc, "run", "--bundle", str(bundle(folder / "runc", code, runc))]
    if runsc := shutil.which("runsc"):
        place = bundle(folder / "runsc", code, None)
        found["runsc"] = [runsc, "--network=none", "--ignore-cgroups", "run", "--bundle", str(place)]
    made = {}
    for name, command in found.items():
        run = _runner(command, named=name in ("runc", "runsc"))
        try:
            run()
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            print(f"{name} does not work here: {error}", file=sys.stderr)
            continue
        made[name] = run
    return made


@contextlib.contextmanager
def kernels(code: str = CODE) -> Iterator[dict[str, Run]]:
    """ipykernel as a peer: a new kernel for each run, started by a client that has long been there."""
    python = python_of("jupyter")
    if python is None:
        print("ipykernel is not installed: python -m bench.peers.setup jupyter", file=sys.stderr)
        yield {}
        return
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    command = [str(python), "-c", _KERNELS, code]
    client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)

    def run() -> float:
        client.stdin.write(b"run\n")
        client.stdin.flush()
        return float(client.stdout.readline())

    try:
        yield {"ipykernel": run}
    finally:
        client.communicate()


def cpu(run: Run, count: int) -> float | None:
    """Seconds of CPU of one run, whoever its processes belong to in the end: counted by a cgroup that this thread is in
    meanwhile, without the thread itself. None where there is no cgroup that a thread can join (version 2).
    """
    if "cpuacct" not in roots():
        return None
    group, tid = Cgroup("bench", {"cpuacct": roots()["cpuacct"]}), str(threading.get_native_id())
    home = next(
        line for line in Path("/proc/self/cgroup").read_text().splitlines() if ":cpuacct" in line or ",cpuacct" in line
    )
    group.create()
    try:
        own, before = time.thread_time(), group.usage().cpu_seconds  # runc's groups lie in this one, and may have run
        (group.paths["cpuacct"] / "tasks").write_text(tid)
        for _ in range(count):
            run()
        (roots()["cpuacct"] / home.rpartition(":")[2].lstrip("/") / "tasks").write_text(tid)
        return (group.usage().cpu_seconds - before - (time.thread_time() - own)) / count
    finally:
        group.remove()


def timed(run: Run) -> float:
    """Seconds of one run."""
    began = time.perf_counter()
    said = run()
    return time.perf_counter() - began if said is None else said


def _runner(command: list[str], named: bool) -> Run:
    def run() -> None:
        full = [*command, f"bench-{os.urandom(4).hex()}"] if named else command
        env = {"PATH": os.environ["PATH"], "OPENBLAS_NUM_THREADS": "1", "LANG": "C.UTF-8"}
        done = subprocess.run(full, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, env=env)
        if done.stdout != b"2\n":
            raise subprocess.CalledProcessError(done.returncode, full, done.stdout, done.stderr)

    return run


def bundle(folder: Path, code: str, runc: str | None) -> Path:
    """An OCI bundle with the same root file system that our sandboxes have."""
    template = Template()
    (folder / "rootfs").mkdir(parents=True)
    skeleton(template, folder / "rootfs")
    if runc is None:
        runc = shutil.which("runc", path="/usr/sbin:/usr/bin")
    subprocess.run([str(runc), "spec"], cwd=folder, check=True)
    config = json.loads((folder / "config.json").read_text())
    config["process"] |= {"terminal": False, "args": [sys.executable, "-c", code], "cwd": "/"}
    config["process"]["env"] += ["OPENBLAS_NUM_THREADS=1", "LANG=C.UTF-8"]
    config["root"]["readonly"] = False
    config["linux"]["cgroupsPath"] = f"/{PREFIX}bench/inside"  # where ``cpu`` counts
    config["mounts"] += [
        {"destination": path, "type": "bind", "source": path, "options": ["rbind", "ro"]} for path in template.sources()
    ]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def folder() -> tempfile.TemporaryDirectory[str]:
    """Where bundles are."""
    return tempfile.TemporaryDirectory(prefix="statepool-bench-")
