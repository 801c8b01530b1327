"""The machine a run happened on, and who else was using it."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_TICK = os.sysconf("SC_CLK_TCK")
_BUSY = 0.25
"""Cores used by strangers above which a row is flagged."""


def describe() -> dict[str, Any]:
    """Name of the processor, cores, instruction sets that matter, memory."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = fields.get("flags", "").split()
    known = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
    return {
        "processor": f"{fields.get('model name', platform.processor())}, family {fields.get('cpu family', '?')} "
        f"model {fields.get('model', '?')}",
        "cores": os.cpu_count(),
        "instructions": [flag for flag in known if flag in flags],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def stamp() -> str:
    """Today's date and the revision of the checkout."""
    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return f"{time.strftime('%Y-%m-%d')} {revision.stdout.strip()}".strip()


_favouring = False


def favour(process: int) -> None:
    """Inside ``favoured``: let the session of ``process`` go before all others."""
    if _favouring:
        _set_nice(process, -20)


@contextmanager
def favoured(wanted: bool) -> Iterator[None]:
    """If ``wanted``, let this session and every engine it starts go before all others, for a while.

    It makes a duel fair on a machine with strangers, and starves the strangers: never by default.
    """
    global _favouring
    _favouring = wanted
    favour(os.getpid())
    try:
        yield
    finally:
        if wanted:
            _set_nice(os.getpid(), 0)
        _favouring = False


def _set_nice(process: int, nice: int) -> None:
    with suppress(OSError):
        Path(f"/proc/{process}/autogroup").write_text(str(nice))


def tree(root: int) -> list[int]:
    """``root`` and all its descendants that are alive."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [root]
    for process in found:
        found += children.get(process, [])
    return found


def rss(root: int) -> int:
    """Resident bytes of the process tree under ``root``."""
    total = 0
    for process in tree(root):
        try:
            status = Path(f"/proc/{process}/status").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))
    return total


def _busy_seconds() -> float:
    fields = [int(text) for text in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return (sum(fields[:3]) + sum(fields[5:8])) / _TICK


def _own_seconds() -> float:
    total = 0
    for process in tree(os.getpid()):
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        # Own time of live processes, plus that of children already waited for.
        total += sum(int(text) for text in fields[11:15])
    return total / _TICK


class LoadWatch:
    """How busy the machine was between ``start`` and ``stop``, and how much of that was not ours."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin a new interval."""
        self._at, self._busy, self._own = time.perf_counter(), _busy_seconds(), _own_seconds()

    def stop(self) -> dict[str, Any]:
        """One-minute load average, cores burnt by other processes, and whether that is too many."""
        wall = time.perf_counter() - self._at
        others = max(0.0, (_busy_seconds() - self._busy) - (_own_seconds() - self._own)) / wall
        return {"average_1m": round(os.getloadavg()[0], 2), "others": round(others, 2), "noisy": others > _BUSY}
