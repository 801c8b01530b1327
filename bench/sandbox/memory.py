"""T6, T7, T21: what one more sandbox costs in memory, and what a hundred of them cost that do nothing."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from bench.machine import LoadWatch
from bench.row import Row
from bench.sandbox.measure import DATA, CpuMeter, held, pss, row, wanted
from statepool.sandbox import Pool, Sandbox

COMMAND = "python -m bench sandbox --only {}"
_CELL = "import numpy as np, pandas as pd\nint(np.arange(10).sum()), pd.__name__"
_ALONE = "import numpy as np, pandas as pd\nprint(int(np.arange(10).sum()), pd.__name__, flush=True)\ninput()"


_HEAD = "import json, numpy as np, pandas as pd"
_PLOT = """import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
plt.plot(range(9))
plt.savefig("/tmp/plot.png")
plt.close()"""
_KINDS = (
    "d{n} = pd.DataFrame({{'k': np.arange(2000) % 7, 'v': np.arange(2000.0)}})\ng{n} = d{n}.groupby('k').v.sum()",
    "j{n} = json.loads(json.dumps([{{'id': i, 'name': str(i)}} for i in range(2000)]))",
    "m{n} = np.random.default_rng({n}).random((200, 200))\np{n} = m{n} @ m{n}",
    _PLOT,
)


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """The wanted rows."""
    if importlib.util.find_spec("pandas") is None:
        if wanted(only, "T6", "T6b", "T7", "T21"):
            yield Row(
                "T6",
                "memory of one more sandbox with numpy and pandas",
                "MB",
                "lower",
                1.5,
                note="pandas is not installed",
            )
        return
    if wanted(only, "T6", "T6b"):
        yield from _marginal(quick)
    if wanted(only, "T7"):
        yield _worked(quick)
    if wanted(only, "T21"):
        yield _idle(quick)


def _alone(code: str = _ALONE) -> float:
    """Bytes of an interpreter of its own with the same packages, of three that share what the kernel shares."""
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(3)
    ]
    try:
        for process in processes:
            process.stdout.readline()
        return sum(pss(process.pid) for process in processes) / len(processes)
    finally:
        for process in processes:
            process.communicate(b"\n")


def _marginal(quick: bool) -> list[Row]:
    count = 10 if quick else 50
    watch = LoadWatch()
    alone = _alone()
    few = count // 5
    with Pool([DATA], low=0, most=2 * count + 8) as pool:
        sandboxes: list[Sandbox] = []
        totals = []
        for size in (few, count):
            while len(sandboxes) < size:
                sandboxes.append(Sandbox("data", pool=pool))
                assert sandboxes[-1].run_code(_CELL).text == "(45, 'pandas')"
            time.sleep(2)  # idle for a second, a kernel gives back what it did not change
            zygote = sandboxes[0].lease.slot.zygote
            totals.append(held(sandboxes) + pss(zygote.pid))
        each = (totals[1] - totals[0]) / (count - few)
        for sandbox in sandboxes:
            sandbox.close()
    load, command = watch.stop(), COMMAND.format("T6,T6b")
    own = (
        f"{each / 1e6:.2f} MB: what kernels, PID 1s and the template grow by from {few} to {count} sandboxes, "
        "proportional set size and page tables, two seconds after a cell"
    )
    return [
        Row(
            "T6",
            "memory of one more sandbox with numpy and pandas",
            "MB",
            "lower",
            1.5,
            each / 1e6,
            own,
            "own interpreter",
            alone / 1e6,
            "MB",
            command=command,
            load=load,
        ),
        Row(
            "T6b",
            "saved against an interpreter of its own",
            "share",
            "higher",
            0.9,
            1 - each / alone,
            own,
            "own interpreter",
            alone / 1e6,
            "MB",
            command=command,
            load=load,
        ),
    ]


def _worked(quick: bool) -> Row:
    what = "memory of one more sandbox after 20 cells (groupby, json, matrices, plots), over an interpreter of its own"
    kinds = _KINDS if importlib.util.find_spec("matplotlib") else _KINDS[:-1]
    cells = [kinds[n % len(kinds)].format(n=n) for n in range(20)]
    few, count = (2, 6) if quick else (4, 20)
    template = replace(DATA, name="work", warm="\n".join([DATA.warm, "import json", *_PLOT.splitlines()[:3]]))
    watch, totals = LoadWatch(), []
    alone = _alone("\n".join([_HEAD, *cells, "print(1, flush=True)", "input()"]))
    with Pool([template], low=0, most=count + 8) as pool:
        sandboxes: list[Sandbox] = []
        for size in (few, count):
            while len(sandboxes) < size:
                sandboxes.append(Sandbox("work", pool=pool))
                for cell in (_HEAD, *cells):
                    done = sandboxes[-1].run_code(cell)
                    assert done.error is None, done.error.traceback
            totals.append(held(sandboxes) + pss(sandboxes[0].lease.slot.zygote.pid))
        for sandbox in sandboxes:
            sandbox.close()
    each = (totals[1] - totals[0]) / (count - few)
    own = f"{each / 1e6:.1f} MB, what all processes grow by from {few} to {count} sandboxes"
    peer = {"peer": "own interpreter", "peer_value": alone / 1e6, "peer_unit": "MB"}
    note = "" if len(kinds) == len(_KINDS) else "matplotlib is not installed: no plots"
    return row("T7", what, "x", "lower", 0.35, each / alone, own, watch.stop(), note=note, **peer)


def _idle(quick: bool) -> Row:
    count, seconds = (10, 5.0) if quick else (100, 60.0)
    watch = LoadWatch()
    with Pool([DATA], low=0, most=2 * count + 8) as pool:
        sandboxes = [Sandbox("data", pool=pool) for _ in range(count)]
        for sandbox in sandboxes:
            sandbox.run_code("x = 1")
            sandbox.pause()
        meter = CpuMeter(pool)
        before, began = meter.read(), time.perf_counter()
        time.sleep(seconds)
        share = (meter.read() - before) / (time.perf_counter() - began)
        each = held(sandboxes) / count
        for sandbox in sandboxes:
            sandbox.close()
    return Row(
        "T21",
        f"CPU of {count} paused sandboxes over {seconds:g} s",
        "share of a core",
        "lower",
        0.001,
        share,
        f"{each / 1e6:.2f} MB each",
        command=COMMAND.format("T21"),
        load=watch.stop(),
    )
