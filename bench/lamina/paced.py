"""A link of a given rate between two local sockets: ``python -m bench.lamina.paced LISTEN TARGET BYTES_PER_SECOND``."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time

_CHUNK = 32 << 10


def relay(source: socket.socket, target: socket.socket, rate: float) -> None:
    """Pass bytes on as fast as the link would have them, each direction by itself."""
    free = 0.0
    while data := source.recv(_CHUNK):
        free = max(free, time.perf_counter()) + len(data) / rate
        pause = free - time.perf_counter()
        if pause > 0:
            time.sleep(pause)
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)


def main(listen: str, target: str, rate: float) -> None:
    """Relay every connection, until the process that started this one is gone."""
    parent = os.getppid()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(listen)
    listener.listen()
    listener.settimeout(0.5)
    print("ready", flush=True)
    while os.getppid() == parent:
        try:
            here, _ = listener.accept()
        except TimeoutError:
            continue
        there = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        there.connect(target)
        here.settimeout(None)
        for pair in ((here, there), (there, here)):
            threading.Thread(target=relay, args=(*pair, rate), daemon=True).start()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
