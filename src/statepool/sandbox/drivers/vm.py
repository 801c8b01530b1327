"""Virtual machines: what to tell Cloud Hypervisor or Firecracker, and a probe that boots a guest.

**Untested where no guest boots.** The commands follow the monitors' documentation; no machine this project was
measured on could run a guest, so nothing here has started one. ``probe`` is the only door: it passes after a guest has
answered with a number drawn for it, and opening /dev/kvm does not count.

The plan is TrEnv-X's: the root disk is a file that every guest maps (pmem with DAX, read-only, so that the host's page
cache holds one copy and the guest's none), changes go to a small disk of the guest's own, and a snapshot's memory is
mapped privately instead of read.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from statepool.core.errors import InvalidRequest
from statepool.sandbox.errors import IsolationUnavailable

__all__ = ["Guest", "cloud_hypervisor", "cloud_hypervisor_restore", "firecracker", "firecracker_restore", "probe"]

_PLAIN = re.compile(r"[\w./-]+")
_BOOT = "console=ttyS0 reboot=k panic=1 nomodule"


@dataclass(frozen=True, slots=True)
class Guest:
    """One guest: its kernel, its shared root, its own disk, its size.

    Args:
        kernel: image of the kernel.
        root: EROFS or ext4 image that all guests of a template share, read-only.
        disk: image for the guest's own changes.
        socket: where the monitor is asked.
        memory_mib: memory.
        vcpus: processors.
        init: first program in the guest.
    """

    kernel: Path
    root: Path
    disk: Path
    socket: Path
    memory_mib: int = 512
    vcpus: int = 1
    init: str = "/sbin/overlay-init"

    def __post_init__(self) -> None:
        for name in ("kernel", "root", "disk", "socket"):
            if not _PLAIN.fullmatch(str(getattr(self, name))):
                raise InvalidRequest(
                    f"{name}: {str(getattr(self, name))!r} holds a character that separates options", param=name
                )
        if self.memory_mib < 64 or self.vcpus < 1 or not _PLAIN.fullmatch(self.init):
            raise InvalidRequest(
                "memory_mib, vcpus, init: at least 64, at least 1, and a plain path", param="memory_mib"
            )


def cloud_hypervisor(guest: Guest, extra: str = "") -> list[str]:
    """Command that boots a guest whose root is a pmem device with DAX."""
    boot = f"{_BOOT} root=/dev/pmem0 ro rootflags=dax=always init={guest.init} overlay_root=vda {extra}".strip()
    return [
        "cloud-hypervisor",
        *("--api-socket", f"path={guest.socket}"),
        *("--kernel", str(guest.kernel)),
        *("--cmdline", boot),
        *("--cpus", f"boot={guest.vcpus}"),
        *("--memory", f"size={guest.memory_mib}M,shared=off"),
        *("--pmem", f"file={guest.root},discard_writes=on"),
        *("--disk", f"path={guest.disk}"),
        *("--serial", "tty", "--console", "off", "--seccomp", "true"),
    ]


def cloud_hypervisor_restore(snapshot: Path, socket: Path) -> list[str]:
    """Command that goes on from a snapshot's folder."""
    return ["cloud-hypervisor", "--api-socket", f"path={socket}", "--restore", f"source_url=file://{snapshot}"]


def firecracker(guest: Guest, extra: str = "") -> dict[str, Any]:
    """Configuration file of Firecracker, which has no DAX: the root is a shared read-only disk, cached on the host."""
    drives = [
        {"drive_id": "root", "path_on_host": str(guest.root), "is_root_device": True, "is_read_only": True},
        {"drive_id": "own", "path_on_host": str(guest.disk), "is_root_device": False, "is_read_only": False},
    ]
    boot = f"{_BOOT} init={guest.init} overlay_root=vdb {extra}".strip()
    return {
        "boot-source": {"kernel_image_path": str(guest.kernel), "boot_args": boot},
        "drives": drives,
        "machine-config": {"vcpu_count": guest.vcpus, "mem_size_mib": guest.memory_mib, "smt": False},
    }


def firecracker_restore(state: Path, memory: Path) -> dict[str, Any]:
    """Body of ``PUT /snapshot/load``: Firecracker maps the memory file privately by itself."""
    backend = {"backend_type": "File", "backend_path": str(memory)}
    return {"snapshot_path": str(state), "mem_backend": backend, "resume_vm": True}


def probe(guest: Guest, monitor: str = "cloud-hypervisor", timeout: float = 30.0) -> None:
    """Boot a guest whose init prints ``statepool_nonce`` of its command line, and see that it does.

    Raises:
        IsolationUnavailable: no guest boots here; the message has the monitor's last words.
    """
    path = shutil.which(monitor)
    if path is None:
        raise IsolationUnavailable(f"vm: {monitor} is not installed", param="driver")
    nonce = secrets.token_hex(16)
    argument = f"statepool_nonce={nonce}"
    if monitor == "firecracker":
        config = guest.socket.with_suffix(".json")
        config.write_text(json.dumps(firecracker(guest, argument)))
        command = [path, "--no-api", "--config-file", str(config)]
    else:
        command = [path, *cloud_hypervisor(guest, argument)[1:]]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL)
        output = done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        output = (error.stdout or b"") + (error.stderr or b"")
    # The command line is echoed by some monitors; init prints the number behind a word of its own.
    if f"guest says {nonce}".encode() not in output:
        last = output.decode(errors="replace").strip().splitlines()[-1:] or ["nothing was printed"]
        raise IsolationUnavailable(f"vm: no guest answered: {last[0]}", param="driver")
