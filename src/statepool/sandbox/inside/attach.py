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

if TYPE_CHECKING:
    from statepool.sandbox.inside.kernel import Kernel

__all__ = ["attach", "region", "show"]

_NEW, _API, _REGISTER = 0xAA00, 0xC018AA3F, 0xC020AA00
_VERSION, _MISSING = 0xAA, 1


def attach(kernel: Kernel, message: dict[str, Any], fds: list[int]) -> None:
    """Map what lies behind ``fds[0]`` privately, and show its arrays as names."""
    try:
        space = mmap.mmap(fds[0], message["length"], mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    finally:
        os.close(fds[0])
    show(kernel, space, message["parts"])
    kernel.channel.send({"op": "attached"})


def region(device: int, length: int) -> tuple[mmap.mmap, int, int]:
    """New memory whose missing pages are asked for: the memory, its address, the descriptor that answers the asking.

    Called before the kernel loses its rights; ``device`` is /dev/userfaultfd.
    """
    space = mmap.mmap(-1, length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(space))
    uffd = fcntl.ioctl(device, _NEW, os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.ioctl(uffd, _API, bytearray(struct.pack("QQQ", _VERSION, 0, 0)))
    fcntl.ioctl(uffd, _REGISTER, bytearray(struct.pack("QQQQ", address, length, _MISSING, 0)))
    return space, address, uffd


def show(kernel: Kernel, space: mmap.mmap, parts: list[list[Any]]) -> None:
    """Arrays of this memory as names: of numpy where that is loaded or can be, else plain views of bytes."""
    numpy = sys.modules.get("numpy")
    if numpy is None and importlib.util.find_spec("numpy"):
        numpy = importlib.import_module("numpy")
    for name, dtype, shape, offset in parts:
        if numpy is not None:
            count = int(numpy.prod(shape, dtype=numpy.int64))
            value: Any = numpy.frombuffer(space, dtype=dtype, count=count, offset=offset).reshape(shape)
        else:
            value = memoryview(space)[offset:]
        kernel.module.__dict__[sys.intern(name)] = value
