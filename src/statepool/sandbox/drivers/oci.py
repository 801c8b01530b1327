"""One program under an OCI runtime: ``runsc`` (gVisor: a kernel of its own in user space) or ``runc``."""

from __future__ import annotations

import json
import os
import platform
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from statepool.core.errors import InvalidRequest
from statepool.sandbox.errors import IsolationUnavailable
from statepool.sandbox.execution import CommandResult
from statepool.sandbox.seccomp import DENIED
from statepool.sandbox.template import HOME, Template, skeleton

__all__ = ["OciRuntime", "bundle"]

RUNTIMES = ("runsc", "runc")
_WHERE = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_USER = 1000
_MASKED = ("kallsyms", "kcore", "keys", "sysrq-trigger", "timer_list")
_NAMESPACES = ("pid", "network", "ipc", "uts", "mount")


class OciRuntime:
    """Runs programs in bundles of one template.

    Raises:
        InvalidRequest: neither ``runsc`` nor ``runc``.
        IsolationUnavailable: it is not installed, or this user may not use it.
    """

    def __init__(self, runtime: str = "runsc", template: Template | None = None) -> None:
        if runtime not in RUNTIMES:
            raise InvalidRequest(f"runtime: {runtime!r} is unknown; take {' or '.join(RUNTIMES)}", param="runtime")
        found = shutil.which(runtime, path=_WHERE)
        if found is None:
            raise IsolationUnavailable(f"runtime: {runtime} is not installed", param="runtime")
        if os.geteuid() != 0:
            raise IsolationUnavailable(f"runtime: {runtime} needs root here", param="runtime")
        self.runtime, self.template = runtime, template or Template()
        self._command = [found, "--network=none", "--ignore-cgroups"] if runtime == "runsc" else [found]

    def run(
        self,
        argv: Sequence[str],
        *,
        files: Mapping[str, bytes] | None = None,
        stdin: bytes = b"",
        timeout: float = 60.0,
    ) -> CommandResult:
        """Run a program with these files in its home; everything is gone afterwards."""
        name = f"statepool-{secrets.token_hex(6)}"
        with tempfile.TemporaryDirectory(prefix="statepool-oci-") as folder:
            make_bundle(Path(folder), self.template, argv, files or {})
            command = [*self._command, "run", "--bundle", folder, name]
            try:
                done = subprocess.run(command, input=stdin, capture_output=True, timeout=timeout, check=False)
                code, out, err, late = done.returncode, done.stdout, done.stderr, False
            except subprocess.TimeoutExpired as error:
                subprocess.run([*self._command, "kill", name, "KILL"], capture_output=True, check=False)
                code, out, err, late = -9, error.stdout or b"", error.stderr or b"", True
            subprocess.run([*self._command, "delete", "--force", name], capture_output=True, check=False)
        return CommandResult(code, out.decode(errors="replace"), err.decode(errors="replace"), timed_out=late)


def make_bundle(folder: Path, template: Template, argv: Sequence[str], files: Mapping[str, bytes]) -> None:
    """Write ``rootfs`` and ``config.json`` into ``folder``: the same root that sandboxes of this template have."""
    root = folder / "rootfs"
    root.mkdir()
    skeleton(template, root)
    home = (root / HOME.lstrip("/")).resolve()
    for name, data in files.items():
        path = (home / name).resolve()
        if not path.is_relative_to(home):
            raise InvalidRequest(f"files: {name!r} leads out of {HOME}", param="files")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for path in (home, *home.rglob("*")):
        os.lchown(path, _USER, _USER)
    (folder / "config.json").write_text(json.dumps(bundle(template, argv)))


def bundle(template: Template, argv: Sequence[str]) -> dict[str, Any]:
    """The runtime's configuration (OCI 1.0): no capabilities, no new privileges, no network, limits, denied calls."""
    limits = template.limits
    rlimits = {"RLIMIT_NOFILE": limits.open_files, "RLIMIT_FSIZE": limits.file_bytes, "RLIMIT_CORE": 0}
    plain, tmpfs = ["nosuid", "noexec", "nodev"], ["nosuid", "mode=755", "size=65536k"]
    mounts = [
        ("/proc", "proc", "proc", []),
        ("/dev", "tmpfs", "tmpfs", tmpfs),
        ("/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance"]),
        ("/dev/shm", "tmpfs", "shm", [*plain, "mode=1777"]),  # noqa: S108
        ("/sys", "sysfs", "sysfs", [*plain, "ro"]),
        *((path, "bind", path, ["rbind", "ro", "nosuid", "nodev"]) for path in template.sources()),
    ]
    return {
        "ociVersion": "1.0.2",
        "hostname": "sandbox",
        "root": {"path": "rootfs", "readonly": False},
        "process": {
            "terminal": False,
            "user": {"uid": _USER, "gid": _USER},
            "args": list(argv),
            "env": [f"{name}={value}" for name, value in template.variables().items()],
            "cwd": HOME,
            "capabilities": {kind: [] for kind in ("bounding", "effective", "permitted")},
            "noNewPrivileges": True,
            "rlimits": [{"type": name, "hard": value, "soft": value} for name, value in rlimits.items()],
        },
        "mounts": [dict(zip(("destination", "type", "source", "options"), item, strict=True)) for item in mounts],
        "linux": {
            "namespaces": [{"type": kind} for kind in _NAMESPACES],
            "maskedPaths": [*(f"/proc/{name}" for name in _MASKED), "/sys/firmware"],
            "readonlyPaths": ["/proc/sys", "/proc/irq", "/proc/bus", "/proc/fs"],
            "resources": {
                "memory": {"limit": limits.memory_bytes},
                "pids": {"limit": limits.processes},
                "cpu": {"quota": int(limits.cpus * 100_000), "period": 100_000},
            },
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": [f"SCMP_ARCH_{platform.machine().upper()}"],
                "syscalls": [{"names": list(DENIED), "action": "SCMP_ACT_ERRNO"}],
            },
        },
    }
