"""A node of the KV pool in a process of its own and a client of it; beside them a bare socket and a bare copy."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

import numpy as np
from turns import free_port, serve

from statepool.kv.pool import Pool


class Blocks:
    """Blocks of one size, moved by the pool, by a socket, or by a copy."""

    def load(self, kind: str, block: int, count: int, connections: int = 1) -> dict[str, Any]:
        """``kind``: ``unix`` (memory of the same machine), ``tcp``, ``socket`` (a bare one) or ``copy``."""
        self._kind = kind
        draw = np.random.default_rng(1)
        self._rows = [draw.integers(0, 256, block, np.uint8) for _ in range(count)]
        self._out = [np.zeros(block, np.uint8) for _ in range(count)]
        if kind in ("unix", "tcp"):
            address = f"unix:{tempfile.mkdtemp()}/node" if kind == "unix" else f"tcp://127.0.0.1:{free_port()}"
            command = [
                sys.executable,
                "-m",
                "statepool.kv.pool.commands",
                "serve",
                "--with-parent",
                "--listen",
                address,
            ]
            sizes = ["--block-bytes", str(block), "--memory-bytes", str(4 * block * count)]
            node = subprocess.Popen([*command, *sizes], stdout=subprocess.PIPE)
            assert node.stdout is not None
            node.stdout.readline()
            self._pool = Pool([address], block, timeout=10, connections=connections)
            self._keys = [os.urandom(16) for _ in self._rows]
            self._pool.save(self._keys, self._rows)
            self.run("load", 1)
        if kind == "socket":
            self._socket = _bare_server(block * count)
        return {}

    def run(self, what: str, repeats: int, batch: int | None = None, seed: int = 0) -> dict[str, Any]:
        """Move all blocks ``repeats`` times, ``batch`` at once or all: ``load`` from the other side, ``save`` to it."""
        batch = batch or len(self._rows)
        pieces = [slice(at, at + batch) for at in range(0, len(self._rows), batch)]
        seconds = 0.0
        if what == "load" and self._kind in ("unix", "tcp"):
            self._pool.save(self._keys, self._rows)  # those that saves of other blocks have pushed out
        for _ in range(repeats):
            keys = [os.urandom(16) for _ in self._rows] if what == "save" else []
            started = time.perf_counter()
            if self._kind == "copy":
                for target, source in zip(self._out, self._rows, strict=True):
                    np.copyto(target, source)
            elif self._kind == "socket":
                self._socket.sendall(b"x")
                for target in self._out:
                    view = memoryview(target)
                    while view:
                        view = view[self._socket.recv_into(view) :]
            elif what == "save":
                assert sum(self._pool.save(keys[p], self._rows[p]) for p in pieces) == len(keys)
            else:
                assert sum(self._pool.load(self._keys[p], self._out[p]) for p in pieces) == len(self._keys)
            seconds += time.perf_counter() - started
        if self._kind in ("unix", "tcp") and what == "load":
            assert all(np.array_equal(a, b) for a, b in zip(self._out, self._rows, strict=True))
        return {"seconds": seconds, "tokens": repeats * sum(row.size for row in self._rows)}


def _bare_server(size: int) -> socket.socket:
    """A connection to a process that sends ``size`` bytes for each byte it gets.

    Bytes drawn at random, as the pool's are: zeros that nobody wrote are one page of the kernel's, read from the cache.
    """
    script = (
        "import os, socket, sys; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)\n"
        "c, _ = s.accept(); c.setsockopt(6, 1, 1); data = os.urandom(int(sys.argv[1]))\n"
        "while c.recv(1): c.sendall(data)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(size)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    connection = socket.create_connection(("127.0.0.1", int(child.stdout.readline())))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=child.wait, daemon=True).start()
    return connection


if __name__ == "__main__":
    serve(Blocks())
