"""T11, T12, T13: going back, branching, and a search that does both, beside copying files and starting over."""

from __future__ import annotations

import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.machine import LoadWatch
from bench.row import Row
from bench.sandbox.measure import NUMPY, pss, summary, wanted
from statepool.sandbox import Pool, Sandbox

COMMAND = "python -m bench sandbox --only {}"


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """The wanted rows."""
    if wanted(only, "T11", "T11b"):
        yield from _moments(quick)
    if wanted(only, "T12", "T12b"):
        yield from _forks(quick)
    if wanted(only, "T13", "T13b"):
        yield from _search(quick)


def _moments(quick: bool) -> list[Row]:
    count, watch = 10 if quick else 40, LoadWatch()
    kept, back = [], []
    dirty = "for i in range(1000): open(f'{i}', 'a').write('x')"
    with Pool([NUMPY], low=0) as pool, Sandbox("np", pool=pool, memory="2GiB") as sandbox:
        sandbox.run_code("import numpy as np\na = np.ones(50 << 17)")
        for number in range(count):
            sandbox.run_code(f"{dirty}\na[{number}] = 2")
            began = time.perf_counter()
            moment = sandbox.snapshot()
            kept.append(time.perf_counter() - began)
            sandbox.run_code(dirty)
            began = time.perf_counter()
            sandbox.rollback(moment)
            assert sandbox.run_code(f"a[{number}]").text == "np.float64(2.0)"
            back.append(time.perf_counter() - began)
            moment.close()
    load, command = watch.stop(), COMMAND.format("T11,T11b")
    state = "50 MB of state and 1,000 changed files"
    return [
        Row(
            "T11",
            f"keep a moment of {state}: median",
            "ms",
            "lower",
            2.0,
            1e3 * statistics.median(kept),
            summary(kept),
            command=command,
            load=load,
        ),
        Row(
            "T11b",
            f"go back to {state}, first answer included: median",
            "ms",
            "lower",
            2.5,
            1e3 * statistics.median(back),
            summary(back),
            command=command,
            load=load,
        ),
    ]


def _forks(quick: bool) -> list[Row]:
    count, watch, times = 64, LoadWatch(), []
    with Pool([NUMPY], low=0) as pool, Sandbox("np", pool=pool, memory="4GiB") as sandbox:
        sandbox.run_code("import numpy as np\nx = np.arange(1000)")
        alone = len(sandbox.lease.slot.cgroup.members()) + 1  # and the process that holds a moment, while it ends
        for _ in range(2 if quick else 6):
            began = time.perf_counter()
            kids = sandbox.fork(count)
            times.append(time.perf_counter() - began)
            assert {kid.run_code("int(x.sum())").text for kid in kids} == {"499500"}
            groups = sandbox.lease.slot.cgroup.processes()
            pids = groups.get("memory") or groups["unified"]
            each = sum(pss(pid) for pid in pids) / len(pids)
            for kid in kids:
                kid.close()
            while len(sandbox.lease.slot.cgroup.members()) > alone:  # their end is no part of the next forks
                time.sleep(0.01)
    load, command = watch.stop(), COMMAND.format("T12,T12b")
    return [
        Row(
            "T12",
            "64 forks of a running sandbox, all ready",
            "ms",
            "lower",
            150,
            1e3 * statistics.median(times),
            summary(times),
            command=command,
            load=load,
        ),
        Row("T12b", "memory of each, after a cell", "MB", "lower", 1.5, each / 1e6, command=command, load=load),
    ]


def _cell(rng: random.Random, step: int) -> str:
    return rng.choice(
        [
            f"state[{step}] = {rng.random()}",
            f"import os\nos.makedirs('d{step % 5}', exist_ok=True)\nopen('d{step % 5}/f', 'a').write('{step}')",
            f"state.pop({rng.randrange(step + 1)}, None)\nopen('last', 'w').write(repr(sorted(state)))",
        ]
    )


_LOOK = (
    "import os\nrepr((sorted(state.items()), sorted((d, f, open(os.path.join(d, f)).read()) "
    "for d, _, fs in os.walk('/home/user') for f in fs)))"
)


def _search(quick: bool) -> list[Row]:
    """A tree of moments: go back to a random one, do something, keep that; then some are replayed from scratch."""
    nodes, checks, watch = (40, 10) if quick else (1000, 100), 0, LoadWatch()
    total, compare = nodes
    rng = random.Random(5)
    with Pool(low=1, most=8) as pool, Sandbox(pool=pool, memory="4GiB") as sandbox:
        sandbox.run_code("state = {}")
        tree = [([], sandbox.snapshot())]
        seconds = 0.0
        for step in range(total):
            past, moment = rng.choice([node for node in tree[-200:] if len(node[0]) < 40])
            cell = _cell(rng, step)
            began = time.perf_counter()
            sandbox.rollback(moment)
            assert sandbox.run_code(cell).error is None
            tree.append(([*past, cell], sandbox.snapshot()))
            seconds += time.perf_counter() - began
            if len(tree) > 200:
                tree.pop(rng.randrange(100))[1].close()
        for past, moment in rng.sample(tree, min(compare, len(tree))):
            sandbox.rollback(moment)
            there = sandbox.run_code(_LOOK).text
            with Sandbox(pool=pool) as fresh:
                for cell in ["state = {}", *past]:
                    assert fresh.run_code(cell).error is None
                checks += fresh.run_code(_LOOK).text == there
        for _, moment in tree:
            moment.close()
    theirs = _copies(10 if quick else 30)
    load, command = watch.stop(), COMMAND.format("T13,T13b")
    return [
        Row(
            "T13",
            f"a search of {total} moments: copying files and a new interpreter per step, over ours",
            "x",
            "higher",
            50,
            theirs / (seconds / total),
            f"{1e3 * seconds / total:.2f} ms a step",
            "copytree and python",
            1e3 * theirs,
            "ms a step",
            command=command,
            load=load,
        ),
        Row(
            "T13b",
            f"moments equal to a replay from scratch, of {min(compare, len(tree))} drawn",
            "share",
            "higher",
            1.0,
            checks / min(compare, len(tree)),
            command=command,
            load=load,
        ),
    ]


def _copies(count: int) -> float:
    """Seconds of a step that copies the folder and starts an interpreter that replays ten cells."""
    rng, times = random.Random(5), []
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder) / "0"
        here.mkdir()
        for step in range(count):
            began = time.perf_counter()
            fresh = Path(folder) / str(step + 1)
            shutil.copytree(here, fresh)
            code = "state = {}\n" + "\n".join(_cell(rng, step) for _ in range(10))
            subprocess.run([sys.executable, "-c", code], cwd=fresh, check=True)
            times.append(time.perf_counter() - began)
            here = fresh
    return statistics.median(times)
