"""What isolation this host and this user can give, found by trying, and which driver that makes possible."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from statepool.core.errors import InvalidRequest
from statepool.sandbox.cgroup import roots
from statepool.sandbox.errors import IsolationUnavailable

__all__ = ["Capability", "pick", "probe"]

DRIVERS = ("ns", "userns", "runsc", "vm")
"""Strongest first is not the order: ``ns`` and ``userns`` share the host's kernel, ``runsc`` and ``vm`` do not."""

_TRY = """
import os, sys
from statepool.native import _sandbox
NS = 0x00020000 | 0x04000000 | 0x08000000 | 0x40000000 | 0x20000000
if sys.argv[1] == "userns":
    if os.geteuid() == 0:
        os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534); _sandbox.prctl(4, 1)
    user = os.geteuid(), os.getegid()
    _sandbox.unshare(0x10000000)
    open("/proc/self/setgroups", "w").write("deny")
    open("/proc/self/uid_map", "w").write(f"1000 {user[0]} 1")
    open("/proc/self/gid_map", "w").write(f"1000 {user[1]} 1")
_sandbox.unshare(NS)
pid = os.fork()
if pid:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
_sandbox.mount("none", "/", "", 16384 | (1 << 18))
_sandbox.mount("t", "/tmp", "tmpfs")
for name in ("low", "up", "work", "all"):
    os.mkdir("/tmp/" + name)
extra = ",userxattr" if sys.argv[1] == "userns" else ""
_sandbox.mount("o", "/tmp/all", "overlay", 0, "lowerdir=/tmp/low,upperdir=/tmp/up,workdir=/tmp/work" + extra)
_sandbox.mount("proc", "/tmp/all", "proc")
"""


@dataclass(frozen=True, slots=True)
class Capability:
    """One thing that was tried: whether it works here, and what was found."""

    name: str
    works: bool
    found: str


@lru_cache(maxsize=1)
def probe() -> tuple[Capability, ...]:
    """Everything that decides what sandboxes are possible here. Takes a fraction of a second, once."""
    groups = roots()
    limits = f"limits on {', '.join(groups)}" if groups else "none can be made: limits per process only"
    return (
        _driver("ns", "namespaces, overlayfs and a user per sandbox, as root"),
        _driver("userns", "the same in a user namespace, for any user"),
        Capability("cgroups", bool(groups), limits),
        _userfaultfd(),
        _program("runsc", "gVisor", ["runsc", "--version"]),
        _program("criu", "checkpoints of whole process trees", ["criu", "check"]),
        _chromium(),
        _virtual_machine(),
    )


def pick(driver: str) -> str:
    """The driver to use for ``auto``, or ``driver`` itself if it works here.

    Raises:
        InvalidRequest: no such driver.
        IsolationUnavailable: it does not work here; nothing weaker is taken instead.
    """
    if driver not in (*DRIVERS, "auto"):
        raise InvalidRequest(f"driver: {driver!r} is unknown; take one of auto, {', '.join(DRIVERS)}", param="driver")
    if driver in ("runsc", "vm"):
        raise IsolationUnavailable(
            f"driver: {driver} runs whole programs, see statepool.sandbox.drivers; it has no pool", param="driver"
        )
    if driver == "userns" and os.geteuid() == 0:
        raise IsolationUnavailable(
            "driver: userns is what ordinary users have; root takes ns, which isolates more", param="driver"
        )
    wanted = [driver] if driver != "auto" else ["ns", "userns"]
    tried = {name: _driver(name, "") for name in wanted}
    for name, found in tried.items():
        if found.works:
            return name
    reasons = "; ".join(f"{name}: {found.found}" for name, found in tried.items())
    raise IsolationUnavailable(f"driver: this host gives no {driver} sandbox ({reasons})", param="driver")


@lru_cache(maxsize=4)
def _driver(name: str, text: str) -> Capability:
    if sys.platform != "linux":
        return Capability(name, False, "sandboxes need Linux")
    try:
        from statepool.native import _sandbox  # type: ignore[attr-defined]  # noqa: F401
    except ImportError:
        return Capability(name, False, "the native module is not built; run make native")
    if name == "ns" and os.geteuid() != 0:
        return Capability(name, False, "needs root")
    command, env = [sys.executable, "-c", _TRY, name], os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return Capability(name, done.returncode == 0, text if done.returncode == 0 else reason)


def _userfaultfd() -> Capability:
    path = Path("/dev/userfaultfd")
    works = os.access(path, os.R_OK | os.W_OK)
    return Capability(
        "userfaultfd", works, "memory that is fetched when touched" if works else f"{path} cannot be opened"
    )


def _program(name: str, text: str, command: list[str]) -> Capability:
    if shutil.which(command[0]) is None:
        return Capability(name, False, f"{command[0]} is not installed")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Capability(name, False, str(error))
    last = (done.stdout + done.stderr).strip().splitlines()[-1:] or [""]
    return Capability(name, done.returncode == 0, text if done.returncode == 0 else last[0])


def _chromium() -> Capability:
    for name in ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return Capability("browser", True, path)
    return Capability("browser", False, "no Chromium; scripts/browser.sh installs one")


def _virtual_machine() -> Capability:
    monitors = [name for name in ("cloud-hypervisor", "firecracker") if shutil.which(name)]
    if not monitors:
        return Capability("vm", False, "neither cloud-hypervisor nor firecracker is installed")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return Capability("vm", False, f"{monitors[0]} is there, /dev/kvm cannot be opened")
    return Capability(
        "vm", False, f"{monitors[0]} is there; no guest was booted yet, and opening /dev/kvm proves nothing"
    )
