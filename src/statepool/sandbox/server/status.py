"""What a server holds at this moment: slots, sandboxes with their ancestors, memory of their own and shared."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from statepool.sandbox.server.registry import Record, Registry

__all__ = ["status"]

_SHARED = frozenset({"Shared_Clean", "Shared_Dirty"})
_OWN = frozenset({"Private_Clean", "Private_Dirty"})


def status(registry: Registry) -> dict[str, Any]:
    """Plain values.

    ``shared_bytes`` of a sandbox is memory its processes have mapped together with others: pages of its template, of
    the one it was forked from, and of the interpreter. Forks live in one slot, so they have one count between them;
    0 where this host gives no cgroups.
    """
    pool, records = registry.pool, registry.records()
    memory = {name: _memory(group) for name, group in {_slot(each).name: _slot(each) for each in records}.items()}
    return {
        "driver": pool.driver,
        "slots": {"busy": pool.busy(), "most": pool.most, "waiting": pool.waiting()},
        "counters": dict(pool.counters),
        "snapshots": registry.snapshots(),
        "sandboxes": [_one(each) for each in records],
        "memory": {name: {"own_bytes": own, "shared_bytes": shared} for name, (own, shared) in memory.items()},
    }


def _slot(record: Record) -> Any:
    return record.sandbox.lease.slot


def _one(record: Record) -> dict[str, Any]:
    usage = record.sandbox.metrics()
    return {
        "id": record.id,
        "template": record.template,
        "state": record.state,
        "parent": record.parent,
        "slot": _slot(record).name,
        "seconds": round(time.time() - record.sandbox.started, 1),
        "memory_bytes": usage.memory_bytes,
        "processes": usage.processes,
        "cpu_seconds": round(usage.cpu_seconds, 3),
    }


def _memory(slot: Any) -> tuple[int, int]:
    """Bytes that the processes of a slot have alone, and that they have mapped with others."""
    own = shared = 0
    groups = slot.cgroup.processes()
    for pid in groups.get("memory", groups.get("unified", set())):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):  # it may end meanwhile
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
                name, _, rest = line.partition(":")
                if name in _SHARED:
                    shared += int(rest.split()[0]) << 10
                elif name in _OWN:
                    own += int(rest.split()[0]) << 10
    return own, shared
