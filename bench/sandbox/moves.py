"""T5: how often a process is moved into a cgroup from create to first result: 5 to 17 ms each on a quiet kernel."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.machine import LoadWatch
from bench.row import Row
from bench.sandbox import peers
from bench.sandbox.measure import row, wanted

_MOVE = re.compile(r'^\d+ +open(?:at2?)?\(.*["/](?:cgroup\.procs|tasks)", .*O_(?:WRONLY|RDWR)')
_MARK = "/statepool-mark-"
_OURS = f"""
from statepool.sandbox import Pool, Sandbox
def mark(name):
    try: open("{_MARK}" + name)
    except OSError: pass
with Pool(low=0, high=4) as pool:
    pool.fill("py", 2)
    for _ in range({{count}}):
        mark("begin")
        sandbox = Sandbox(pool=pool)
        assert sandbox.run_code("1 + 1").text == "2"
        mark("end")
        sandbox.close()
        pool.settle()
"""


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """The wanted rows."""
    if not wanted(only, "T5"):
        return
    what = "moves of a process into a cgroup from create to first result, each hierarchy counted (strace)"
    if shutil.which("strace") is None:
        yield row("T5", what, "moves", "lower", 0, None, note="strace is not installed")
        return
    watch, count = LoadWatch(), 5 if quick else 20
    lines = _trace([sys.executable, "-c", _OURS.format(count=count)])
    inside, counted, begun, everything = "", 0, 0, 0
    for line in lines:
        thread = line.split(maxsplit=1)[0]
        if _MARK in line and "ENOENT" in line:
            inside = thread if "begin" in line else ""
            begun += bool(inside)
        elif _MOVE.match(line):
            everything += 1
            counted += thread == inside  # slots that are made ahead are another thread's
    assert begun == count and everything > 0, "strace saw the starts, and the moves of slots that were made ahead"
    peer = {}
    if runc := shutil.which("runc", path="/usr/sbin:/usr/bin:/usr/local/bin"):
        with peers.folder() as folder:
            place = peers.bundle(Path(folder) / "runc", peers.CODE, runc)
            seen = _trace([runc, "run", "--bundle", str(place), "bench-moves"])
        peer = {
            "peer": "runc",
            "peer_value": float(sum(bool(_MOVE.match(line)) for line in seen)),
            "peer_unit": "moves",
        }
    own = f"{counted} in {count} starts; {everything - counted} while slots were made ahead"
    yield row("T5", what, "moves", "lower", 0, counted / count, own, watch.stop(), **peer)


def _trace(command: list[str]) -> list[str]:
    """What a command and all its processes open, by strace."""
    with tempfile.NamedTemporaryFile("r") as log:
        options = ["-f", "-qq", "-e", "trace=open,openat,openat2", "-o", log.name]
        subprocess.run(["strace", *options, *command], stdin=subprocess.DEVNULL, capture_output=True, check=True)
        return log.read().splitlines()
