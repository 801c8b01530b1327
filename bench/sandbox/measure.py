"""What every part needs: quantiles, wanted ids, memory and CPU time of sandboxes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from bench.row import Row
from statepool.sandbox import Pool, Sandbox, Template
from statepool.sandbox.slots import Slot
from statepool.sandbox.trial import quantile

DATA = Template(
    "data",
    preload=("numpy", "pandas"),
    warm="import numpy as np, pandas as pd\nnp.ones((3, 3)) @ np.ones((3, 3))\n"
    "pd.DataFrame({'a': [1, 2]}).groupby('a').sum().to_string()",
)
NUMPY = Template("np", preload=("numpy",), warm="import numpy as np\nnp.ones((3, 3)) @ np.ones((3, 3))")


def wanted(only: Sequence[str], *ids: str) -> bool:
    """Whether one of these rows is asked for."""
    return not only or any(name in only for name in ids)


def row(
    name: str,
    what: str,
    unit: str,
    better: Literal["higher", "lower"],
    target: float,
    value: float | None,
    own: str = "",
    load: dict[str, Any] | None = None,
    **more: Any,
) -> Row:
    """A row of this room; its command is the one that measures it alone."""
    command = f"python -m bench sandbox --only {name}"
    return Row(name, what, unit, better, target, value, own, command=command, load=load or {}, **more)


def summary(seconds: Sequence[float]) -> str:
    """Least, median and 99th percentile in milliseconds."""
    parts = (min(seconds), statistics.median(seconds), quantile(seconds, 0.99))
    return "min/p50/p99 " + "/".join(f"{1e3 * part:.2f}" for part in parts) + f" ms, n={len(seconds)}"


def pss(pid: int, *, without_files_in_memory: bool = False) -> int:
    """Bytes of a process, shared pages divided among those who share them, and its page tables."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in (rollup + status).splitlines() if ":" in line)
    files = int(fields["Pss_Shmem"].split()[0]) if without_files_in_memory else 0
    return 1024 * (int(fields["Pss"].split()[0]) - files + int(fields["VmPTE"].split()[0]))


def resident(pid: int) -> int:
    """Bytes of a process without its mapped files, whoever shares them, and its page tables."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return 1024 * sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem", "VmPTE"))


def held(sandboxes: Sequence[Sandbox], *, without_files_in_memory: bool = False) -> float:
    """Bytes of all processes of these sandboxes, PID 1 included."""
    total = 0
    for sandbox in sandboxes:
        groups = sandbox.lease.slot.cgroup.processes()
        pids = groups.get("memory") or groups["unified"]
        total += sum(pss(pid, without_files_in_memory=without_files_in_memory) for pid in pids)
    return total


class CpuMeter:
    """Seconds of CPU that the slots of a pool have used, those that have ended included."""

    def __init__(self, pool: Pool) -> None:
        self._pool, self._ended, self._destroy = pool, 0.0, pool._destroy
        pool._destroy = self._keep  # type: ignore[method-assign]

    def _keep(self, slot: Slot) -> None:
        self._ended += slot.cgroup.usage().cpu_seconds
        self._destroy(slot)

    def read(self) -> float:
        """Until now."""
        slots = {slot for shelf in self._pool._shelves.values() for slot, _ in shelf.parked} | self._pool._busy
        return self._ended + sum(slot.cgroup.usage().cpu_seconds for slot in slots)


def rest(pool: Pool, template: str) -> None:
    """Wait until everything is clean and the parked kernel waits, as on a server between two requests."""
    pool.settle()
    for slot, _ in pool._shelves[template].parked:
        if slot.tenant is not None:
            slot.tenant[2].process()
    time.sleep(0.02)
