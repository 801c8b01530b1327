"""A relay in front of a server, for tests that change, delay or stop what passes."""

import socket
import threading
from contextlib import contextmanager, suppress

from statepool.core.sockets import connect


@contextmanager
def relayed(address, ways):
    """The address of a relay to ``address``; ``ways()`` gives each connection's two functions, from bytes to bytes:
    for what goes to the server, and for what it answers."""
    listener = socket.create_server(("127.0.0.1", 0))

    def relay(source, target, change):
        with suppress(OSError), source:  # either side may leave in the middle
            while data := source.recv(65536):
                target.sendall(change(data))
            target.shutdown(socket.SHUT_RDWR)

    def serve():
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = connect(address, 10)
            server.settimeout(None)
            for pair in zip((client, server), (server, client), ways(), strict=True):
                threading.Thread(target=relay, args=pair, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()
