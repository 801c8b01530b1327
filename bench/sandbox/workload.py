"""T8: the paper's two burst workloads, beside cold bubblewrap, CRIU and processes that are kept for each function."""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.machine import LoadWatch
from bench.row import Row
from bench.sandbox import peers
from bench.sandbox.measure import resident, row, summary, wanted
from statepool.sandbox import Pool, Sandbox, Template
from statepool.sandbox.cgroup import Cgroup, roots
from statepool.sandbox.drivers import criu
from statepool.sandbox.errors import IsolationUnavailable, SandboxError
from statepool.sandbox.trial import quantile

_SEED = 2022310806
"""The seed of the paper's artifact."""
_RANK = """import numpy as np
a, r = np.random.default_rng(1).random((300, 300)), np.ones(300)
for _ in range(50):
    r = a @ r
    r /= r.sum()"""
FUNCTIONS = {
    "dynamic-html": ("import html", "''.join(f'<li>{html.escape(str(i))}</li>' for i in range(2000))"),
    "json": ("import json", "json.loads(json.dumps([{'id': i, 'name': str(i)} for i in range(5000)]))"),
    "pagerank": ("import numpy", _RANK),
    "aes": ("import hashlib", "k = b'k'\nfor _ in range(20000): k = hashlib.sha256(k).digest()"),
    "flip": ("import numpy", "import numpy as np\nnp.arange(2_000_000).reshape(2000, 1000)[::-1, ::-1].copy()"),
    "chameleon": (
        "import string",
        "t = string.Template('<td>$a</td>')\n''.join(t.substitute(a=i) for i in range(5000))",
    ),
}
"""What each of the paper's functions is about, small enough for two cores: what it imports, what it does."""
_BURST = {"dynamic-html": 20, "json": 4, "pagerank": 3, "aes": 3, "flip": 3, "chameleon": 5}
"""Requests of a burst, a tenth of the paper's."""
_KEPT = 20
"""Processes that wait at most, for all functions: half of what all bursts together would need (the paper's bound)."""
_WARM = "import sys\n{head}\nprint(1, flush=True)\nfor _ in sys.stdin:\n    exec({body!r})\n    print(2, flush=True)"
_FROZEN = """import os, sys, time
{head}
open(sys.argv[1] + "/up", "w")
while not os.path.exists(sys.argv[1] + "/go"): time.sleep(0.001)
{body}"""
Act = Callable[[str], None]


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """The wanted rows."""
    if not wanted(only, "T8", "T8b", "T8c"):
        return
    watch, sides = LoadWatch(), {}
    bounds = {}
    with contextlib.ExitStack() as stack:
        with _alone() as act:
            for gap in (1.0, 0.25):
                bounds[gap] = quantile(_replay(_arrivals(1 if quick else 4, gap), *act)[0], 0.99)
        acts = {"ours": stack.enter_context(_ours()), **stack.enter_context(_others())}
        for gap in (1.0, 0.25):
            sides[gap] = {name: _replay(_arrivals(1 if quick else 4, gap), *act) for name, act in acts.items()}
    load, best = watch.stop(), ("bwrap", "criu")
    for name, what, gap in (("T8", "W1, bursts far apart", 1.0), ("T8b", "W2, bursts that come back soon", 0.25)):
        found = {side: times for side, (times, _) in sides[gap].items()}
        own, told = found.pop("ours"), "; ".join(f"{side} {summary(times)}" for side, times in found.items())
        rivals = [(quantile(found[side], 0.99), side) for side in best if side in found]
        peer = {"peer": min(rivals)[1], "peer_value": 1e3 * min(rivals)[0], "peer_unit": "ms p99"} if rivals else {}
        value = min(rivals)[0] / quantile(own, 0.99) if rivals else None
        alone = bounds[gap]
        note = f"{told}; functions written from the paper's descriptions, a tenth of its concurrency; "
        note += f"bound: the functions alone, in sandboxes that wait for them, P99 {1e3 * alone:.1f} ms"
        note += f", {min(rivals)[0] / alone:.1f} times below the peer" if rivals else ""
        yield row(
            name,
            f"{what}: P99 of the better cold peer over ours",
            "x",
            "higher",
            10.0,
            value,
            summary(own),
            load,
            note=note,
            limit=alone / quantile(own, 0.99),
            **peer,
        )
    held = {side: memory for side, (_, memory) in sides[0.25].items()}
    told = "; ".join(f"{side} {memory / 1e9:.2f} GB s" for side, memory in held.items())
    kept = held.get("kept")
    saved = 1 - held["ours"] / kept if kept and held["ours"] else None
    note = f"{told}; memory of cgroups over time, ours with its zygotes and all slots that wait"
    what = "W2: memory times time saved against processes kept for each function"
    yield row("T8c", what, "share", "higher", 0.7, saved, load=load, note=note)


def _arrivals(cycles: int, gap: float) -> list[tuple[float, str]]:
    """One function peaks at a time: seconds from the start, and which."""
    rng, at, found = random.Random(_SEED), 0.0, []
    for _ in range(cycles):
        for name in rng.sample(list(FUNCTIONS), len(FUNCTIONS)):
            found += [(at + rng.random() * 0.05, name) for _ in range(_BURST[name])]
            at += gap * (1.0 + rng.random())
    return sorted(found)


@contextlib.contextmanager
def _ours() -> Iterator[tuple[Act, Callable[[], int], str | None]]:
    templates = [
        Template(name, preload=(f"{head.split()[1]}",), warm=f"{head}\n{body}" if "numpy" in head else head)
        for name, (head, body) in FUNCTIONS.items()
    ]
    with Pool(templates, low=1, high=max(_BURST.values()), most=64) as pool:
        for name in FUNCTIONS:
            pool.fill(name, 2)
        shared = sum(resident(shelf.zygote.pid) for shelf in pool._shelves.values() if shelf.zygote.pid)

        def act(name: str) -> None:
            with Sandbox(name, pool=pool) as sandbox:
                assert sandbox.run_code("\n".join(FUNCTIONS[name])).error is None

        def held() -> int:
            with pool._lock:
                slots = {slot for shelf in pool._shelves.values() for slot, _ in shelf.parked} | pool._busy
            return shared + sum(slot.cgroup.usage().memory_bytes for slot in slots)

        yield act, held, None


@contextlib.contextmanager
def _alone() -> Iterator[tuple[Act, Callable[[], int], str | None]]:
    """The bound: as many sandboxes as a burst asks for, started before, that only run the function."""
    with Pool(low=0, most=64) as pool, contextlib.ExitStack() as stack:
        ready: dict[str, list[Sandbox]] = {}
        for name, (head, _) in FUNCTIONS.items():
            pool.add(Template(name, preload=(head.split()[1],), warm=head))
            ready[name] = [stack.enter_context(Sandbox(name, pool=pool)) for _ in range(_BURST[name])]

        def act(name: str) -> None:
            sandbox = ready[name].pop()
            assert sandbox.run_code("\n".join(FUNCTIONS[name])).error is None
            ready[name].append(sandbox)

        yield act, lambda: 0, None


@contextlib.contextmanager
def _others() -> Iterator[dict[str, tuple[Act, Callable[[], int], str | None]]]:
    """Each in a memory cgroup of its own, which the threads that start its processes join."""
    root = roots().get("memory")
    with peers.folder() as text, contextlib.ExitStack() as stack:
        folder, found = Path(text), {}
        cold = {}
        for name, (head, body) in FUNCTIONS.items():
            cold[name] = peers.available(folder / "cold" / name, f"{head}\n{body}\nprint(2)").get("bwrap")
        if all(cold.values()):
            found["bwrap"] = lambda name: cold[name]()
        if (restored := _restored(folder)) is not None:
            found["criu"] = restored
        found["kept"] = stack.enter_context(_kept())
        made = {}
        for side, act in found.items():
            group = Cgroup(f"bench-{side}", {"memory": root} if root else {})
            group.create()
            stack.callback(group.remove)
            tasks = str(group.paths["memory"] / "tasks") if root else None
            made[side] = (act, lambda group=group: group.usage().memory_bytes, tasks)
        yield made


@contextlib.contextmanager
def _kept() -> Iterator[Act]:
    """A process for each function that is asked for while none of its own waits; the oldest end beyond ``_KEPT``."""
    waiting: list[tuple[str, subprocess.Popen[bytes]]] = []
    lock = threading.Lock()

    def act(name: str) -> None:
        with lock:
            place = next((at for at, (of, _) in enumerate(waiting) if of == name), None)
            process = None if place is None else waiting.pop(place)[1]
        if process is None:
            head, body = FUNCTIONS[name]
            command = [sys.executable, "-c", _WARM.format(head=head, body=body)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            process.stdout.readline()
        process.stdin.write(b"go\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"2\n"
        with lock:
            waiting.append((name, process))
            gone = waiting.pop(0)[1] if len(waiting) > _KEPT else None
        if gone is not None:
            gone.communicate()

    try:
        yield act
    finally:
        for _, process in waiting:
            process.communicate()


def _restored(folder: Path) -> Act | None:
    """A process image for each function, imports done; each call restores it in a process id namespace of its own."""
    try:
        criu.probe()
        for name, (head, body) in FUNCTIONS.items():
            place = folder / "images" / name
            place.mkdir(parents=True)
            command = [sys.executable, "-c", _FROZEN.format(head=head, body=body), str(place)]
            null = subprocess.DEVNULL
            process = subprocess.Popen(command, stdin=null, stdout=null, stderr=null, start_new_session=True)
            while not (place / "up").exists():
                time.sleep(0.01)
            criu.dump(process.pid, place / "images")
            process.wait()
            (place / "go").touch()
    except (IsolationUnavailable, SandboxError) as error:
        print(f"criu does not work here: {error}", file=sys.stderr)
        return None

    def act(name: str) -> None:
        images = folder / "images" / name / "images"
        command = [shutil.which("unshare"), "--pid", "--fork", "--mount", "--mount-proc", "criu", "restore"]
        log = f"restore-{threading.get_ident()}.log"
        command += ["--images-dir", str(images), "--shell-job", "--log-file", log]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
        assert done.returncode == 0, (images / log).read_text()[-500:]

    act("json")
    return act


def _replay(
    arrivals: Sequence[tuple[float, str]], act: Act, held: Callable[[], int], tasks: str | None
) -> tuple[list[float], float]:
    """Seconds from when each was due until it was done, and bytes held times seconds."""
    times: list[float] = []
    done = threading.Event()
    area = 0.0

    def watch() -> None:
        nonlocal area
        before = time.perf_counter()
        while not done.wait(0.05):
            now = time.perf_counter()
            area, before = area + held() * (now - before), now

    def join() -> None:
        if tasks is not None:
            Path(tasks).write_text(str(threading.get_native_id()))

    watcher = threading.Thread(target=watch)
    with ThreadPoolExecutor(64, initializer=join) as crowd:
        began = time.perf_counter()
        watcher.start()

        def one(due: float, name: str) -> None:
            act(name)
            times.append(time.perf_counter() - began - due)

        waiting = []
        for due, name in arrivals:
            time.sleep(max(0.0, began + due - time.perf_counter()))
            waiting.append(crowd.submit(one, due, name))
        for future in waiting:
            future.result()
    done.set()
    watcher.join()
    return times, area
