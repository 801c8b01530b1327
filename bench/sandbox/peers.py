"""What others do for one run of ``import numpy; print(1 + 1)``: bare Python, bubblewrap, runc, gVisor, ipykernel."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from statepool.sandbox.template import Template, skeleton

CODE = "import numpy; print(1 + 1)"
Run = Callable[[], None]


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
        bundle = _bundle(folder / "runc", code, runc)
        found["runc"] = [runc, "run", "--bundle", str(bundle)]
    if runsc := shutil.which("runsc"):
        bundle = _bundle(folder / "runsc", code, None)
        found["runsc"] = [runsc, "--network=none", "--ignore-cgroups", "run", "--bundle", str(bundle)]
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


def cpu_of_children() -> float:
    """Seconds of CPU of all children that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def timed(run: Run) -> float:
    """Seconds of one run."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _runner(command: list[str], named: bool) -> Run:
    def run() -> None:
        full = [*command, f"bench-{os.urandom(4).hex()}"] if named else command
        env = {"PATH": os.environ["PATH"], "OPENBLAS_NUM_THREADS": "1", "LANG": "C.UTF-8"}
        done = subprocess.run(full, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, env=env)
        if done.stdout != b"2\n":
            raise subprocess.CalledProcessError(done.returncode, full, done.stdout, done.stderr)

    return run


def _bundle(folder: Path, code: str, runc: str | None) -> Path:
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
    config["mounts"] += [
        {"destination": path, "type": "bind", "source": path, "options": ["rbind", "ro"]} for path in template.sources()
    ]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def folder() -> tempfile.TemporaryDirectory[str]:
    """Where bundles are."""
    return tempfile.TemporaryDirectory(prefix="statepool-bench-")
