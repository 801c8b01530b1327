"""The cgroups of one slot: limits, counters, freeze and kill, on version 1, version 2 or both (hybrid).

A slot's first process is moved in once (5-17 ms for a grace period of the kernel); everything it forks is born inside.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

__all__ = ["Cgroup", "Usage", "roots"]

_ROOT = Path("/sys/fs/cgroup")
_WANTED = ("memory", "pids", "cpu", "freezer")
_PERIOD_US = 100_000
PREFIX = "statepool-"
"""Names of all groups begin with this."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a slot has used: bytes now and at most, processes now, seconds of CPU."""

    memory_bytes: int
    memory_peak_bytes: int
    processes: int
    cpu_seconds: float
    oom_kills: int

    def since(self, before: Usage) -> Usage:
        """With what only ever grows counted from ``before`` on."""
        spent, kills = self.cpu_seconds - before.cpu_seconds, self.oom_kills - before.oom_kills
        return replace(self, cpu_seconds=spent, oom_kills=kills)


def roots() -> dict[str, Path]:
    """Folder by controller in which groups can be made here; ``unified`` is version 2. Empty without the rights."""
    found: dict[str, Path] = {}
    if (_ROOT / "cgroup.controllers").exists():
        found["unified"] = _ROOT
    else:
        for name in (*_WANTED, "cpuacct", "unified"):
            if (_ROOT / name).is_dir():
                found[name] = _ROOT / name
    return {name: path for name, path in found.items() if os.access(path, os.W_OK)}


class Cgroup:
    """One group in every hierarchy, all of the same name."""

    def __init__(self, name: str, parents: dict[str, Path] | None = None) -> None:
        self.name = PREFIX + name
        self.paths = {kind: parent / self.name for kind, parent in (roots() if parents is None else parents).items()}
        self._limits: tuple[int, int, float] | None = None

    def create(self) -> None:
        """Make the folders. On version 2 the controllers are switched on in the parent first."""
        for kind, path in self.paths.items():
            if kind == "unified" and "memory" not in self.paths:
                for controller in ("memory", "pids", "cpu"):
                    _write(path.parent / "cgroup.subtree_control", f"+{controller}")
            path.mkdir(exist_ok=True)

    def limit(self, memory_bytes: int, processes: int, cpus: float) -> None:
        """Set the limits; the highest use seen so far is forgotten."""
        if path := self.paths.get("memory"):
            _write(path / "memory.max_usage_in_bytes", "0")
        if self._limits == (memory_bytes, processes, cpus):
            return
        self._limits = (memory_bytes, processes, cpus)
        quota = int(cpus * _PERIOD_US)
        if path := self.paths.get("memory"):
            for name in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"):
                _write(path / name, str(memory_bytes))
            _write(path / "memory.swappiness", "0")
        elif path := self.paths.get("unified"):
            _write(path / "memory.max", str(memory_bytes))
            _write(path / "memory.swap.max", "0")
            _write(path / "pids.max", str(processes))
            _write(path / "cpu.max", f"{quota} {_PERIOD_US}")
        if path := self.paths.get("pids"):
            _write(path / "pids.max", str(processes))
        if path := self.paths.get("cpu"):
            _write(path / "cpu.cfs_period_us", str(_PERIOD_US))
            _write(path / "cpu.cfs_quota_us", str(quota))

    def usage(self, *, growing: bool = False) -> Usage:
        """What its processes have used; with ``growing`` only what never falls, and 0 for the rest."""
        unified = self.paths.get("unified", Path("/nonexistent"))
        memory, names = unified, ("memory.events", "memory.current", "memory.peak")
        if path := self.paths.get("memory"):
            memory, names = path, ("memory.oom_control", "memory.usage_in_bytes", "memory.max_usage_in_bytes")
        kills = _field(memory / names[0], "oom_kill")
        if path := self.paths.get("cpuacct"):
            seconds = _number(path / "cpuacct.usage") / 1e9
        else:
            seconds = _field(unified / "cpu.stat", "usage_usec") / 1e6
        if growing:
            return Usage(0, 0, 0, seconds, kills)
        processes = _number(self.paths.get("pids", unified) / "pids.current")
        return Usage(_number(memory / names[1]), _number(memory / names[2]), processes, seconds, kills)

    def processes(self) -> dict[str, set[int]]:
        """Process ids by hierarchy."""
        found = {}
        for kind, path in self.paths.items():
            with contextlib.suppress(OSError):
                found[kind] = {int(line) for line in (path / "cgroup.procs").read_text().split()}
        return found

    def members(self) -> set[int]:
        """Ids of its processes, by one hierarchy: a fork is born in all of them at once."""
        kind = next((kind for kind in ("pids", "memory", "unified") if kind in self.paths), None)
        return set() if kind is None else {int(line) for line in _text(self.paths[kind] / "cgroup.procs").split()}

    def freeze(self, frozen: bool, timeout: float = 2.0) -> bool:
        """Stop all processes, or let them go on; answers whether it took effect in time."""
        if path := self.paths.get("freezer"):
            _write(path / "freezer.state", "FROZEN" if frozen else "THAWED")
            return _wait(lambda: _text(path / "freezer.state") == ("FROZEN" if frozen else "THAWED"), timeout)
        if path := self.paths.get("unified"):
            _write(path / "cgroup.freeze", str(int(frozen)))
            return _wait(lambda: _field(path / "cgroup.events", "frozen") == int(frozen), timeout)
        return False

    def kill(self) -> None:
        """SIGKILL to everything inside, new children included."""
        if path := self.paths.get("unified"):
            _write(path / "cgroup.kill", "1")
        if "freezer" in self.paths:
            self.freeze(False)  # a frozen process of version 1 dies only when it is thawed
        for pids in self.processes().values():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)

    def remove(self, timeout: float = 2.0) -> bool:
        """Remove the folders once their processes are gone; answers whether all could be."""
        return all(_wait(lambda path=path: _rmdir(path), timeout) for path in self.paths.values())


def _write(path: Path, text: str) -> None:
    """Write a control file that this kernel may lack or refuse: limits are read back where they matter."""
    with contextlib.suppress(OSError):
        path.write_text(text)


def _text(path: Path) -> str:
    try:
        with path.open("rb", 0) as file:  # as text and with a buffer it takes a third more
            return file.read().decode().strip()
    except OSError:
        return ""


def _number(path: Path) -> int:
    text = _text(path)
    return int(text) if text.isdigit() else 0


def _field(path: Path, name: str) -> int:
    for line in _text(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def _rmdir(path: Path) -> bool:
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _wait(done: object, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not done():  # type: ignore[operator]
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True
