"""T15, T16, T17: data that many sandboxes read, pages over a socket, and one browser for many agents."""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np

from bench.machine import LoadWatch
from bench.row import Row
from bench.sandbox.measure import NUMPY, held, pss, summary, wanted
from statepool.sandbox import Pool, Sandbox, caps
from statepool.sandbox.memory import Dataset, Remote

COMMAND = "python -m bench sandbox --only {}"


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """The wanted rows."""
    if wanted(only, "T15", "T15b", "T15c"):
        yield from _remote(quick)
    if wanted(only, "T16", "T16b"):
        yield from _dataset(quick)
    if wanted(only, "T17", "T17b"):
        yield from _browser(quick)


_SERVER = """
import socket, sys
import numpy as np
from statepool.sandbox.memory import Dataset
from statepool.sandbox.pages import PageServer
server = socket.create_server(("127.0.0.1", 0))
pages = PageServer(server)
pages.publish("big", Dataset({"big": np.random.default_rng(1).integers(0, 1 << 60, 1 << 23)}))
print(server.getsockname()[1], flush=True)
sys.stdin.read()
"""
_SEQUENTIAL = "import time\nb = time.perf_counter()\ns = int(big[::512].sum())\ntime.perf_counter() - b"
_FIRST = "import time\nb = time.perf_counter()\nv = int(big[{}])\ntime.perf_counter() - b"
_EAGER = "import time, numpy as np\nb = time.perf_counter()\nc = big.copy()\ntime.perf_counter() - b"


def _remote(quick: bool) -> list[Row]:
    what = "64 MB from a page server in another process over TCP"
    if not any(item.name == "userfaultfd" and item.works for item in caps.probe()):
        return [Row("T15", f"{what}: first use", "ms", "lower", 1.0, note="this host has no userfaultfd")]
    watch, first, sequential, recorded, eager = LoadWatch(), [], [], [], []
    server = subprocess.Popen([sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        address = ("127.0.0.1", int(server.stdout.readline()))
        rng = random.Random(2)
        with Pool([NUMPY], low=0) as pool:
            for _ in range(3 if quick else 12):
                with Sandbox("np", pool=pool) as sandbox:
                    remote = Remote.open(sandbox, address, "big")
                    first.append(float(sandbox.run_code(_FIRST.format(rng.randrange(1 << 23))).text))
                    sequential.append(float(sandbox.run_code(_SEQUENTIAL).text))
                    order = remote.order
                    eager.append(float(sandbox.run_code(_EAGER).text))
                with Sandbox("np", pool=pool) as sandbox:
                    began = time.perf_counter()
                    remote = Remote.open(sandbox, address, "big", first=order)
                    while not remote.complete:
                        time.sleep(0.0005)
                    recorded.append(time.perf_counter() - began)
    finally:
        server.communicate()
    load, command, copy = watch.stop(), COMMAND.format("T15,T15b,T15c"), statistics.median(eager)
    return [
        Row(
            "T15",
            f"{what}: first use",
            "ms",
            "lower",
            1.0,
            1e3 * statistics.median(first),
            summary(first),
            command=command,
            load=load,
        ),
        Row(
            "T15b",
            f"{what}: read in order, over a copy of local memory",
            "x",
            "lower",
            1.3,
            statistics.median(sequential) / copy,
            summary(sequential),
            "copy of local memory",
            1e3 * copy,
            "ms",
            command=command,
            load=load,
        ),
        Row(
            "T15c",
            f"{what}: fetched ahead by a recorded working set, all of it, over the same copy",
            "x",
            "lower",
            1.1,
            statistics.median(recorded) / copy,
            summary(recorded),
            "copy of local memory",
            1e3 * copy,
            "ms",
            command=command,
            load=load,
        ),
    ]


def _dataset(quick: bool) -> list[Row]:
    count, size = (5, 64 << 20) if quick else (50, 1 << 30)
    watch, times = LoadWatch(), []
    dataset = Dataset({"big": np.ones(size, np.uint8)})
    with Pool([NUMPY], low=0, most=count + 8) as pool:
        sandboxes = [Sandbox("np", pool=pool) for _ in range(count)]
        for sandbox in sandboxes:
            sandbox.run_code("1")
        before = held(sandboxes, without_files_in_memory=True)
        for sandbox in sandboxes:
            began = time.perf_counter()
            dataset.attach(sandbox)
            times.append(time.perf_counter() - began)
            assert sandbox.run_code("int(big[::1 << 20].sum())").text == str(size >> 20)
        total = size + held(sandboxes, without_files_in_memory=True) - before  # what they map of it is in its size
        for sandbox in sandboxes:
            sandbox.close()
    dataset.close()
    load, command = watch.stop(), COMMAND.format("T16,T16b")
    return [
        Row(
            "T16",
            f"{size >> 20} MiB of arrays attached to one more sandbox, the message included: median",
            "ms",
            "lower",
            0.005,
            1e3 * statistics.median(times),
            summary(times),
            command=command,
            load=load,
        ),
        Row(
            "T16b",
            f"memory of {count} sandboxes that share them, over one copy, each having read a 256th",
            "x",
            "lower",
            1.02,
            total / size,
            f"{total / 1e6:.0f} MB",
            command=command,
            load=load,
        ),
    ]


def _browser(quick: bool) -> list[Row]:
    what = "one more agent with a page in a shared Chromium"
    try:
        from statepool.sandbox.browser import Browser

        browser = Browser()
    except Exception as error:
        return [Row("T17", f"{what}: memory", "MB", "lower", 18.0, note=str(error))]
    count, watch, times = (3 if quick else 8), LoadWatch(), []
    page = "data:text/html,<title>x</title><h1>page</h1>"
    with browser:
        leases = [browser.lease()]
        leases[0].goto(leases[0].page(), page)
        time.sleep(1)
        before = sum(pss(pid) for pid in browser.processes())
        for _ in range(count):
            began = time.perf_counter()
            leases.append(browser.lease())
            leases[-1].goto(leases[-1].page(), page)
            times.append(time.perf_counter() - began)
        time.sleep(1)
        after = sum(pss(pid) for pid in browser.processes())
    alone = []
    for _ in range(2):
        with Browser() as single, single.lease() as lease:
            lease.goto(lease.page(), page)
            time.sleep(1)
            alone.append(sum(pss(pid) for pid in single.processes()))
    each, own = (after - before) / count, statistics.mean(alone)
    load, command = watch.stop(), COMMAND.format("T17,T17b")
    return [
        Row(
            "T17",
            f"{what}: memory",
            "MB",
            "lower",
            18.0,
            each / 1e6,
            f"{each / 1e6:.1f} MB, mean of {count}",
            "a Chromium of its own",
            own / 1e6,
            "MB",
            command=command,
            load=load,
            note=f"saved {1 - each / own:.0%}",
        ),
        Row(
            "T17b",
            f"{what}: time",
            "ms",
            "lower",
            80.0,
            1e3 * statistics.median(times),
            summary(times),
            command=command,
            load=load,
        ),
    ]
