"""What every part needs: quantiles, wanted ids, memory and CPU time of sandboxes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from statepool.sandbox import Pool, Template

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


def quantile(values: Iterable[float], share: float) -> float:
    """The value below which this share of the others lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def summary(seconds: Sequence[float]) -> str:
    """Least, median and 99th percentile in milliseconds."""
    parts = (min(seconds), statistics.median(seconds), quantile(seconds, 0.99))
    return "min/p50/p99 " + "/".join(f"{1e3 * part:.2f}" for part in parts) + f" ms, n={len(seconds)}"


def pss(pid: int) -> int:
    """Bytes of a process, shared pages divided among those who share them, and its page tables."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in (rollup + status).splitlines() if ":" in line)
    return 1024 * (int(fields["Pss"].split()[0]) + int(fields["VmPTE"].split()[0]))


def cpu(pool: Pool) -> float:
    """Seconds of CPU that all slots of a pool have used."""
    slots = {slot for shelf in pool._shelves.values() for slot, _ in shelf.parked} | pool._busy
    return sum(slot.cgroup.usage().cpu_seconds for slot in slots)


def rest(pool: Pool, template: str) -> None:
    """Wait until everything is clean and the parked kernel waits, as on a server between two requests."""
    pool.settle()
    for slot, _ in pool._shelves[template].parked:
        if slot.tenant is not None:
            slot.tenant[2].process()
    time.sleep(0.02)
