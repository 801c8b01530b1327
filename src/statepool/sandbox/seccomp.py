"""The seccomp profile: which system calls a tenant may make, as a BPF program.

Calls above the last number that was reviewed are answered with ENOSYS, so a new kernel opens nothing by itself;
reviewed ones
are allowed but for the list below. Where an argument decides, the program looks at it. Unknown architectures, and the
x32 calls of x86-64, end the process.
"""

from __future__ import annotations

import errno
import platform
import socket
import struct
from dataclasses import dataclass, field
from functools import lru_cache

__all__ = ["program"]

_LAST_REVIEWED = 451
"""cachestat(2) of Linux 6.5. ENOSYS makes a C library fall back."""
_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
"""AF_VSOCK is not covered by network namespaces: it would reach the host of a virtual machine."""
_NAMESPACES = 0x7E020080
"""All CLONE_NEW* flags."""
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C

_DENIED = [
    "acct",
    "add_key",
    "adjtimex",
    "bpf",
    "clock_adjtime",
    "clock_settime",
    "create_module",
    "delete_module",
    "fanotify_init",
    "fanotify_mark",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "get_kernel_syms",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "ioperm",
    "iopl",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "migrate_pages",
    "mknod",
    "mknodat",
    "modify_ldt",
    "mount",
    "mount_setattr",
    "move_mount",
    "move_pages",
    "name_to_handle_at",
    "nfsservctl",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pidfd_getfd",
    "pivot_root",
    "process_madvise",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "query_module",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "request_key",
    "setdomainname",
    "sethostname",
    "setns",
    "settimeofday",
    "swapoff",
    "swapon",
    "sysfs",
    "syslog",
    "umount2",
    "unshare",
    "uselib",
    "userfaultfd",
    "ustat",
    "vhangup",
    "_sysctl",
]
_TRACING = frozenset({"ptrace", "process_vm_readv", "process_vm_writev"})
_FIFO_MODES = (0o010000, 0o100000, 0o140000, 0)
"""What mknod may make: FIFO, file, socket."""

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_LOAD, _JUMP, _JEQ, _JGE, _JSET, _AND, _RETURN = 0x20, 0x05, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NR, _ARCH, _ARGUMENT = 0, 4, 16


@dataclass
class _Assembler:
    """Instructions with named jump targets; a target lies ahead of its jump, as BPF wants."""

    code: list[tuple[int, int, str | int, str | int]] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    def add(self, op: int, value: int, true: str | int = 0, false: str | int = 0) -> None:
        self.code.append((op, value, true, false))

    def label(self, name: str) -> None:
        self.labels[name] = len(self.code)

    def bytes(self) -> bytes:
        made = []
        for at, (op, value, true, false) in enumerate(self.code):
            if op == _JUMP:
                value, true = self.labels[str(true)] - at - 1, 0
            targets = [self.labels[name] - at - 1 if isinstance(name, str) else name for name in (true, false)]
            made.append(struct.pack("<HBBI", op, *targets, value))
        return b"".join(made)


@lru_cache(maxsize=8)
def program(debug: bool = False) -> bytes:
    """The BPF program; with ``debug`` a tenant may trace its own processes.

    Raises:
        KeyError: no profile for this architecture.
    """
    from statepool.native import _sandbox  # type: ignore[attr-defined]

    numbers: dict[str, int] = _sandbox.syscalls()
    denied = sorted(numbers[name] for name in _DENIED if name in numbers and not (debug and name in _TRACING))
    code = _Assembler()
    code.add(_LOAD, _ARCH)
    code.add(_JEQ, _ARCHITECTURES[platform.machine()], 1, 0)
    code.add(_RETURN, _KILL)
    code.add(_LOAD, _NR)
    code.add(_JGE, 0x40000000, 0, 1)  # x32
    code.add(_RETURN, _KILL)
    code.add(_JGE, _LAST_REVIEWED + 1, 0, 1)
    code.add(_RETURN, _ERRNO | errno.ENOSYS)
    looked_at = {numbers[name]: name for name in ("socket", "socketpair", "clone", "clone3", "ioctl", "personality")}
    looked_at |= {numbers[name]: name for name in ("mknod", "mknodat") if name in numbers}
    denied = [number for number in denied if number not in looked_at]
    targets = {number: looked_at.get(number, "denied") for number in [*denied, *looked_at]}
    _search(code, sorted(targets), targets)
    code.label("allow")
    code.add(_RETURN, _ALLOW)
    for name in ("socket", "socketpair"):
        code.label(name)
        code.add(_LOAD, _ARGUMENT)
        for family in _FAMILIES:
            code.add(_JEQ, family, "allow_tail", 0)
        code.add(_RETURN, _ERRNO | errno.EAFNOSUPPORT)
    code.label("clone")
    code.add(_LOAD, _ARGUMENT)
    code.add(_JSET, _NAMESPACES, "denied", "allow_tail")
    code.label("clone3")  # its flags lie behind a pointer; without it the C library uses clone
    code.add(_RETURN, _ERRNO | errno.ENOSYS)
    code.label("ioctl")
    code.add(_LOAD, _ARGUMENT + 8)
    code.add(_JEQ, _TIOCSTI, "denied", 0)
    code.add(_JEQ, _TIOCLINUX, "denied", "allow_tail")
    code.label("personality")
    code.add(_LOAD, _ARGUMENT)
    code.add(_JEQ, 0, "allow_tail", 0)
    code.add(_JEQ, 0xFFFFFFFF, "allow_tail", "denied")
    for name, argument in (("mknod", 8), ("mknodat", 16)):
        code.label(name)
        code.add(_LOAD, _ARGUMENT + argument)
        code.add(_AND, 0o170000)
        for mode in _FIFO_MODES:
            code.add(_JEQ, mode, "allow_tail", 0)
        code.add(_JUMP, 0, "denied")
    code.label("denied")
    code.add(_RETURN, _ERRNO | errno.EPERM)
    code.label("allow_tail")
    code.add(_RETURN, _ALLOW)
    return code.bytes()


def _search(code: _Assembler, numbers: list[int], targets: dict[int, str]) -> None:
    """Binary search for the loaded number, ended by jumps: about seven comparisons for any call."""
    if len(numbers) <= 3:
        for number in numbers:
            code.add(_JEQ, number, 0, 1)
            code.add(_JUMP, 0, targets[number])
        code.add(_JUMP, 0, "allow")
        return
    middle = len(numbers) // 2
    upper = f"search{id(numbers)}_{numbers[middle]}"
    code.add(_JGE, numbers[middle], 0, 1)
    code.add(_JUMP, 0, upper)
    _search(code, numbers[:middle], targets)
    code.label(upper)
    _search(code, numbers[middle:], targets)
