"""T1, T2, T3, T18, T19: from nothing to the first result, and what it costs, beside those who start a process."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.machine import LoadWatch
from bench.row import Row
from bench.sandbox import peers
from bench.sandbox.measure import NUMPY, CpuMeter, rest, summary, wanted
from statepool.sandbox import Pool, Sandbox
from statepool.sandbox.trial import quantile

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "python -m bench sandbox --only {}"


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """The wanted rows."""
    if wanted(only, "T1", "T1b", "T1c", "T1d", "T3", "T3b"):
        yield from (row for row in _starts(quick) if not only or row.id in only)
    if wanted(only, "T2"):
        yield _over_http(quick)
    if wanted(only, "T18"):
        yield _commands(quick)
    if wanted(only, "T19"):
        yield _unprivileged(quick)


def _evidence(sandbox: Sandbox) -> tuple[str, ...]:
    """What the tester reads from outside while the sandbox runs: that this is one, and a new one."""
    slot = sandbox.lease.slot
    pids = slot.cgroup.members() - slot.own
    status = Path(f"/proc/{max(pids)}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    assert fields["Seccomp"] == "2" and fields["NoNewPrivs"] == "1", fields
    spaces = tuple(str(Path(f"/proc/{max(pids)}/ns/{kind}").readlink()) for kind in ("pid", "net", "mnt"))
    assert not set(spaces) & {str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in ("pid", "net", "mnt")}
    return (fields["Uid"].split()[0],)


def _starts(quick: bool) -> list[Row]:
    count = 20 if quick else 200
    watch = LoadWatch()
    with peers.folder() as folder, peers.kernels() as kernels, Pool([NUMPY], low=1, high=2) as pool:
        others = peers.available(Path(folder)) | kernels
        times: dict[str, list[float]] = {name: [] for name in [*others, "ours", "forked"]}
        users, rng = set(), random.Random(1)
        with Sandbox("np", pool=pool) as first:
            first.run_code("import numpy")
        for number in range(count):
            names = [name for name in times if name in ("ours", "forked") or number % 10 == 0]
            rng.shuffle(names)
            for name in names:
                if name in others:
                    times[name].append(peers.timed(others[name]))
                    continue
                rest(pool, "np")
                began = time.perf_counter()
                # Other limits than the template's: the kernel that waits does not fit, so one is forked now.
                sandbox = Sandbox("np", pool=pool) if name == "ours" else _forked(pool)
                assert sandbox.run_code("import numpy\n1 + 1").text == "2"
                times[name].append(time.perf_counter() - began)
                users.add(_evidence(sandbox))
                sandbox.close()
        used = {name: peers.cpu(run, 3 if quick else 10) for name, run in others.items() if name not in kernels}
        rest(pool, "np")
        cycles = 30 if quick else 200
        meter = CpuMeter(pool)
        before, own = meter.read(), time.process_time()
        for _ in range(cycles):
            with Sandbox("np", pool=pool) as sandbox:
                sandbox.run_code("1 + 1")
            pool.settle()
        rest(pool, "np")
        cycle = (meter.read() - before + time.process_time() - own) / cycles
    assert len(users) == 2 * count, "every start is a user of its own"
    load = watch.stop()
    best = min(
        ((quantile(times[name], 0.99), name) for name in others if name not in ("python", "ipykernel")), default=None
    )
    peer = {"peer": best[1], "peer_value": 1e3 * best[0], "peer_unit": "ms p99"} if best else {}
    told = "; ".join(f"{name} {summary(times[name])}" for name in others)
    cpus = {name: seconds for name, seconds in used.items() if seconds is not None}
    shown = ", ".join(f"{name} {1e3 * seconds:.0f} ms" for name, seconds in cpus.items())
    command = COMMAND.format("T1,T1b,T1c,T1d,T3,T3b")
    ours, forked = times["ours"], times["forked"]
    common = {"command": command, "load": load}
    return [
        Row(
            "T1",
            "create to first result, numpy, in process: median",
            "ms",
            "lower",
            2.0,
            1e3 * statistics.median(ours),
            summary(ours),
            note=told,
            **peer,
            **common,
        ),
        Row(
            "T1b", "the same: 99th percentile", "ms", "lower", 6.0, 1e3 * quantile(ours, 0.99), summary(ours), **common
        ),
        Row(
            "T1c",
            "99th percentile of the best isolating peer over ours",
            "x",
            "higher",
            7.0,
            best[0] / quantile(ours, 0.99) if best else None,
            summary(ours),
            **peer,
            **common,
        ),
        Row(
            "T1d",
            "the same as T1 with no kernel that waits: forked on demand",
            "ms",
            "lower",
            6.0,
            1e3 * statistics.median(forked),
            summary(forked),
            **common,
        ),
        Row(
            "T3",
            "CPU time of create, cell and reset, manager included",
            "ms",
            "lower",
            2.5,
            1e3 * cycle,
            f"{cycles} cycles",
            "python",
            1e3 * cpus["python"] if "python" in cpus else None,
            "ms",
            note=f"{shown}; counted by cgroup" if shown else "no cgroup of version 1 to count peers by",
            **common,
        ),
        Row(
            "T3b",
            "CPU time of runc for the same over ours",
            "x",
            "higher",
            45.0,
            cpus["runc"] / cycle if "runc" in cpus else None,
            f"{1e3 * cycle:.2f} ms",
            "runc",
            1e3 * cpus["runc"] if "runc" in cpus else None,
            "ms",
            **common,
        ),
    ]


def _forked(pool: Pool) -> Sandbox:
    """A sandbox whose kernel is forked when it is asked for: the one that waits in the slot is killed first."""
    slot = pool.acquire("np")
    pool.restart(slot, slot.zygote.template.limits)
    pool._busy.discard(slot)
    from statepool.sandbox import policy

    pool._shelves["np"].parked.append((slot, policy.Parked("np", None, time.monotonic(), 0)))
    return Sandbox("np", pool=pool)


def _over_http(quick: bool) -> Row:
    row = Row(
        "T2",
        "create to first result through E2B's SDK, localhost: median",
        "ms",
        "lower",
        8.0,
        command=COMMAND.format("T2"),
    )
    try:
        from e2b_code_interpreter import Sandbox as Remote
    except ImportError:
        row.note = "e2b-code-interpreter is not installed"
        return row
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    server = subprocess.Popen(
        [sys.executable, "-m", "statepool.cli", "sandbox", "serve", "--port", url.rpartition(":")[2]], cwd=ROOT
    )
    os.environ.update(E2B_API_URL=url, E2B_SANDBOX_URL=url, E2B_API_KEY="e2b_" + "0" * 40)
    watch, times = LoadWatch(), []
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(url + "/health", timeout=2).close()
                break
            except OSError:
                time.sleep(0.05)
        for number in range(25 if quick else 205):
            began = time.perf_counter()
            sandbox = Remote.create()
            assert sandbox.run_code("1 + 1").text == "2"
            if number >= 5:
                times.append(time.perf_counter() - began)
            sandbox.kill()
            time.sleep(0.02)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
    row.value, row.own, row.load = 1e3 * statistics.median(times), summary(times), watch.stop()
    return row


def _commands(quick: bool) -> Row:
    count, watch = 30 if quick else 300, LoadWatch()
    plain, inside = [], []
    with Pool(low=0) as pool, Sandbox(pool=pool) as sandbox:
        for _ in range(count):
            began = time.perf_counter()
            subprocess.run(["/bin/true"], stdin=subprocess.DEVNULL, capture_output=True)
            plain.append(time.perf_counter() - began)
            began = time.perf_counter()
            command = sandbox.commands.start(["/bin/true"])
            command.close_stdin()
            command.wait()
            inside.append(time.perf_counter() - began)
    more = statistics.median(inside) - statistics.median(plain)
    return Row(
        "T18",
        "a command in a sandbox, over the same started by subprocess outside: median",
        "ms more",
        "lower",
        0.7,
        1e3 * more,
        summary(inside),
        "subprocess",
        1e3 * statistics.median(plain),
        "ms",
        command=COMMAND.format("T18"),
        load=watch.stop(),
    )


_SCRIPT = """
import json, time
from statepool.sandbox import Pool, Sandbox
times = []
with Pool(low=1, high=2) as pool:
    Sandbox(pool=pool).close()
    for _ in range({count}):
        pool.settle()
        time.sleep(0.03)
        began = time.perf_counter()
        sandbox = Sandbox(pool=pool)
        assert sandbox.run_code("1 + 1").text == "2"
        times.append(time.perf_counter() - began)
        sandbox.close()
    print(json.dumps([pool.driver, times]))
"""


def _unprivileged(quick: bool) -> Row:
    row = Row(
        "T19", "create to first result as an ordinary user: median", "ms", "lower", 6.0, command=COMMAND.format("T19")
    )
    python = shutil.which("python3", path="/usr/bin")
    if os.geteuid() != 0 or python is None:
        row.note = "needs root to become nobody, and a /usr/bin/python3"
        return row
    site = next(path for path in sys.path if path.endswith("site-packages"))
    watch = LoadWatch()
    done = subprocess.run(
        [
            "setpriv",
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
            python,
            "-c",
            _SCRIPT.format(count=20 if quick else 200),
        ],
        env={"PYTHONPATH": f"{ROOT / 'src'}:{site}", "PYTHONDONTWRITEBYTECODE": "1", "PATH": "/usr/bin:/bin"},
        cwd="/",
        capture_output=True,
        text=True,
    )
    if done.returncode:
        row.note = done.stderr.strip().splitlines()[-1]
        return row
    driver, times = json.loads(done.stdout)
    row.value, row.own, row.load, row.note = (
        1e3 * statistics.median(times),
        summary(times),
        watch.stop(),
        f"driver {driver}",
    )
    return row
