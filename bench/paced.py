"""A link of a given rate in front of a server: ``python -m bench.paced LISTEN TARGET BYTES_PER_SECOND``.

Addresses are those of ``statepool.core.sockets``, ``unix:PATH`` or ``tcp://HOST:PORT``.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
import time

from statepool.core import sockets

_PIECE_S = 0.0004
"""Seconds of what arrives together. More would hold up the end of a message for what follows it, less costs a core."""
_HELD = 64 << 10
"""Bytes of buffer on each side: a link has no memory to speak of."""


def relay(source: socket.socket, target: socket.socket, rate: float) -> None:
    """Pass bytes on as fast as the link would have them, each direction by itself."""
    free, poll, piece = 0.0, select.poll(), min(max(int(rate * _PIECE_S), 2 << 10), 64 << 10)
    poll.register(source, select.POLLIN)
    while True:
        waited = bool(poll.poll(0))
        data = source.recv(piece)
        if not data:
            break
        if not waited:  # the link was idle; else it went on at once, whenever this process woke up
            free = max(free, time.perf_counter())
        free += len(data) / rate
        pause = free - time.perf_counter()
        if pause > 0:
            time.sleep(pause)
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)


def main(listen: str, target: str, rate: float) -> None:
    """Relay every connection, until the process that started this one is gone."""
    parent = os.getppid()
    listener = sockets.listen(listen)
    listener.settimeout(0.5)
    print("ready", sockets.address_of(listener, listen), flush=True)
    while os.getppid() == parent:
        try:
            here, _ = listener.accept()
        except TimeoutError:
            continue
        there = sockets.connect(target, 5.0)
        for each in (here, there):
            each.settimeout(None)
            for side in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                each.setsockopt(socket.SOL_SOCKET, side, _HELD)
        for pair in ((here, there), (there, here)):
            threading.Thread(target=relay, args=(*pair, rate), daemon=True).start()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
