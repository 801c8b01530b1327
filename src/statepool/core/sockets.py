"""Sockets between processes: addresses, and messages of four bytes of length, a body, and blocks as they are.

Addresses are ``unix:/path`` or ``tcp://host:port``.
"""

from __future__ import annotations

import fcntl
import select
import socket
import sys
import termios
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from statepool.core.errors import Corruption, InvalidConfig

__all__ = [
    "address_of",
    "check_address",
    "connect",
    "fill",
    "listen",
    "listen_at",
    "receive",
    "receive_into",
    "send",
    "send_parts",
    "tune",
    "wait_answer",
]

_BUFFER = 4 << 20
_MOST_PARTS = 512
_LONGEST = 64 << 20
"""A message without what follows it; more is no message of ours."""


def _parse(address: str) -> tuple[int, Any]:
    kind, _, rest = address.partition(":")
    if kind == "unix" and rest:
        return socket.AF_UNIX, rest
    host, _, port = rest.removeprefix("//").rpartition(":")
    if kind == "tcp" and host and port.isdigit():
        return socket.AF_INET6 if ":" in host else socket.AF_INET, (host.strip("[]"), int(port))
    raise InvalidConfig(f"address {address!r} must be unix:/path or tcp://host:port", param="address")


def check_address(address: str) -> None:
    """Raise InvalidConfig unless ``address`` is one."""
    _parse(address)


def connect(address: str, timeout: float) -> socket.socket:
    """A connection on which no wait takes longer than ``timeout`` seconds.

    Raises:
        InvalidConfig: not an address. OSError: nobody there.
    """
    family, where = _parse(address)
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        tune(connection)
        connection.connect(where)
    except OSError:
        connection.close()
        raise
    return connection


def tune(connection: socket.socket) -> None:
    """Small words at once, and room for blocks on their way while those before them are checked."""
    if connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for side in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            connection.setsockopt(socket.SOL_SOCKET, side, _BUFFER)


def listen(address: str) -> socket.socket:
    """A socket that listens at ``address``.

    Raises:
        InvalidConfig: not an address, or it cannot be listened on.
    """
    family, where = _parse(address)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_UNIX and _abandoned(where):
            Path(where).unlink()
        if family != socket.AF_UNIX:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tune(listener)
        listener.bind(where)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise InvalidConfig(f"cannot listen at {address}: {error.strerror}", param="listen") from None
    return listener


def listen_at(host: str, port: int, choose: str, param: str) -> socket.socket:
    """A socket for an HTTP server, which takes it over; ``choose`` says what to change where it cannot be had.

    Raises:
        InvalidConfig: about ``param``: the address cannot be listened on.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except (OSError, OverflowError) as error:  # a port above 65535 is an overflow
        listener.close()
        why = f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}; choose {choose}"
        raise InvalidConfig(why, param=param) from error
    return listener


def address_of(listener: socket.socket, asked: str) -> str:
    """Where a socket listens that ``listen`` made for ``asked``: with the port it was given, if that was 0."""
    if listener.family == socket.AF_UNIX:
        return asked
    host, port = listener.getsockname()[:2]
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def _abandoned(path: str) -> bool:
    """Whether a socket lies there that nobody listens on any more."""
    if not Path(path).exists():
        return False
    try:
        connect(f"unix:{path}", 1).close()
    except ConnectionRefusedError:
        return True
    return False


def send(connection: socket.socket, body: bytes, blocks: Sequence[Any] = ()) -> None:
    """Send a message and the bytes that follow it."""
    send_parts(
        connection,
        [memoryview(len(body).to_bytes(4, "little") + body), *(memoryview(block).cast("B") for block in blocks)],
    )


def send_parts(connection: socket.socket, parts: list[memoryview], stall: Callable[[], object] | None = None) -> None:
    """Send all of ``parts``, which is empty then.

    ``stall`` is called when a non-blocking connection takes no more for the moment, and returns when it may.

    Raises:
        OSError: the connection broke.
    """
    while parts:
        try:
            sent = connection.sendmsg(parts[:_MOST_PARTS])
        except BlockingIOError:
            if stall is None:
                raise
            stall()
            continue
        while parts and sent >= parts[0].nbytes:
            sent -= parts.pop(0).nbytes
        if sent:
            parts[0] = parts[0][sent:]


def wait_answer(connection: socket.socket, timeout: float) -> None:
    """Wait for the first bytes of an answer for as long as what was asked is still leaving, and ``timeout`` after that.

    Raises:
        TimeoutError: nothing came and nothing left for ``timeout`` seconds.
    """
    poll, left = select.poll(), _unsent(connection)
    poll.register(connection, select.POLLIN)
    while not poll.poll(timeout * 1000):
        left, before = _unsent(connection), left
        if left >= before:
            raise TimeoutError(f"nothing came for {timeout} s")


def _unsent(connection: socket.socket) -> int:
    """Bytes that this side has sent and the other has not confirmed."""
    return int.from_bytes(fcntl.ioctl(connection, termios.TIOCOUTQ, b"\0\0\0\0"), sys.byteorder)


def receive(connection: socket.socket, most: int = _LONGEST) -> bytes | None:
    """The next message, of ``most`` bytes at most; None if the other side has closed.

    Raises:
        Corruption: no message of ours. OSError: the connection broke, or nothing came in time.
    """
    head = bytearray(4)
    if not fill(connection, memoryview(head), at_start=True):
        return None
    size = int.from_bytes(head, "little")
    if size > most:
        raise Corruption(f"a message of {size} bytes is none of ours")
    body = bytearray(size)
    receive_into(connection, memoryview(body))
    return bytes(body)


def receive_into(connection: socket.socket, out: memoryview) -> None:
    """Fill ``out`` from the connection.

    Raises:
        OSError: it broke, or nothing came in time.
    """
    fill(connection, out)


def fill(
    connection: socket.socket, out: memoryview, *, at_start: bool = False, stall: Callable[[], object] | None = None
) -> bool:
    """Fill ``out`` from the connection; False if the other side has closed ``at_start``, before the first byte.

    ``stall`` is called when a non-blocking connection has nothing for the moment, and returns when it may.

    Raises:
        OSError: the connection broke, or nothing came in time.
    """
    got = 0
    while got < out.nbytes:
        try:
            count = connection.recv_into(out[got:])
        except BlockingIOError:
            if stall is None:
                raise
            stall()
            continue
        if count == 0:
            if at_start and got == 0:
                return False
            raise ConnectionResetError("the other side closed in the middle of a message")
        got += count
    return True
