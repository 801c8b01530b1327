"""Memory that comes from outside, in a kernel: mapped sealed data, or a region whose pages the manager fetches."""

from __future__ import annotations

import ctypes
import fcntl
import importlib.util
import mmap
import os
import struct
import sys
from typing import TYPE_CHECKING, Any

from statepool.native import _sandbox  # type: ignore[attr-defined]

if TYPE_CHECKING:
    from statepool.sandbox.inside.kernel import Kernel

__all__ = ["attach", "mapped", "region"]

_NEW, _API, _REGISTER = 0xAA00, 0xC018AA3F, 0xC020AA00
_VERSION, _MISSING = 0xAA, 1
_HUGE = 2 << 20


def mapped(fd: int, length: int, kind: int) -> tuple[mmap.mmap, int]:
    """Memory, and where in it a file begins: a multiple of 2 MiB, so that pages of this size are mapped as they are."""
    space = mmap.mmap(-1, length + _HUGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return space, _sandbox.show_file(space, fd, length, kind)


def attach(kernel: Kernel, message: dict[str, Any], fds: list[int]) -> None:
    """Map what lies behind ``fds[0]`` privately, and show its arrays as names."""
    try:
        space, begin = mapped(fds[0], message["length"], mmap.MAP_PRIVATE)
    finally:
        os.close(fds[0])
    _show(kernel, space, message["parts"], begin)
    kernel.tell({"op": "attached"})


def region(kernel: Kernel, message: dict[str, Any], fds: list[int]) -> None:
    """New memory whose missing pages are asked for; the answer has its address and what the asking is read from.

    ``fds[0]`` is the host's /dev/userfaultfd, which is why this comes before any code of the tenant's.
    """
    length = message["length"]
    space = mmap.mmap(-1, length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(space))
    uffd = -1
    try:
        uffd = fcntl.ioctl(fds[0], _NEW, os.O_CLOEXEC | os.O_NONBLOCK)
        fcntl.ioctl(uffd, _API, bytearray(struct.pack("QQQ", _VERSION, 0, 0)))
        fcntl.ioctl(uffd, _REGISTER, bytearray(struct.pack("QQQQ", address, length, _MISSING, 0)))
        kernel.tell({"op": "memory", "address": address}, [uffd])
    except OSError as error:
        kernel.tell({"op": "failed", "error": str(error)})
        return
    finally:
        for fd in (fds[0], uffd):
            if fd >= 0:
                os.close(fd)
    _show(kernel, space, message["parts"])


def _show(kernel: Kernel, space: mmap.mmap, parts: list[list[Any]], begin: int = 0) -> None:
    """Arrays of this memory as names: of numpy where that is loaded or can be, else plain views of bytes."""
    numpy = sys.modules.get("numpy")
    if numpy is None and importlib.util.find_spec("numpy"):
        numpy = importlib.import_module("numpy")
    for name, dtype, shape, offset in parts:
        if numpy is not None:
            value: Any = numpy.ndarray(shape, dtype, space, begin + offset)
        else:
            value = memoryview(space)[begin + offset :]
        kernel.module.__dict__[sys.intern(name)] = value
