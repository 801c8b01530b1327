"""Egress for a sandbox that has no network: a proxy on its own loopback, with a list of allowed hosts.

The sandbox keeps its empty network namespace. A socket that listens inside it is handed to the manager, which accepts
there and
connects outside; names are resolved by the manager, and addresses of its own networks are refused whatever the list
says.
"""

from __future__ import annotations

import contextlib
import fnmatch
import ipaddress
import logging
import re
import select
import socket
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from statepool.core.errors import InvalidRequest

if TYPE_CHECKING:
    from statepool.sandbox.sandbox import Sandbox

__all__ = ["Proxy", "allowed", "checked", "grant"]

_log = logging.getLogger(__name__)
_HOST = re.compile(r"[a-z0-9*]([a-z0-9.*-]{0,251}[a-z0-9])?")
_HEAD_BYTES = 16384
_SECONDS = 30.0
_MOST_CONNECTIONS = 64
_HOP = (b"connection:", b"proxy-connection:")
_REQUEST = re.compile(rb"([A-Z]+) (\S+) HTTP/1\.[01]")


def allowed(host: str, hosts: Sequence[str]) -> bool:
    """Whether a host is on the list; ``*.example.com`` stands for every name below, not for ``example.com`` itself."""
    return any(fnmatch.fnmatchcase(host, pattern) for pattern in hosts)


def checked(hosts: Sequence[str]) -> Sequence[str]:
    """The hosts, if each is a name or a pattern.

    Raises:
        InvalidRequest: one is not.
    """
    for host in hosts:
        if not _HOST.fullmatch(host) or ".." in host:
            raise InvalidRequest(f"network: {host!r} is no host name or pattern such as *.example.com", param="network")
    return hosts


def grant(sandbox: Sandbox, hosts: Sequence[str]) -> Proxy:
    """Let a sandbox reach these hosts: starts a proxy and tells its cells and commands by the usual variables.

    Raises:
        InvalidRequest: a host is no name.
    """
    checked(hosts)
    answer, fds = sandbox.lease.ask("listen", 0)
    url = f"http://127.0.0.1:{answer['port']}"
    names = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
    sandbox.add_variables(dict.fromkeys(names, url) | {"no_proxy": "localhost,127.0.0.1"})
    return Proxy(socket.socket(fileno=fds[0]), hosts)


class Proxy:
    """An HTTP proxy on a listening socket: CONNECT, and plain requests by absolute address."""

    def __init__(self, server: socket.socket, hosts: Sequence[str], *, private: bool = False) -> None:
        """``private`` lets it reach private addresses too; for tests, and for services that are meant to be reached."""
        self._server, self._hosts, self._private = server, tuple(hosts), private
        self._slots = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self._closed = False
        threading.Thread(target=self._accept, name="sandbox egress", daemon=True).start()

    def close(self) -> None:
        """Accept no more; connections end with the sandbox."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._server.accept()
            except OSError:
                time.sleep(0.05)  # a caller that has left already, or no descriptor free: the next may be served
                continue
            if not self._slots.acquire(blocking=False):
                client.close()
                continue
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with client:
                client.settimeout(_SECONDS)
                self._relay(client)
        except OSError as error:
            _log.debug("egress: %s", error)
        finally:
            self._slots.release()

    def _relay(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            data = client.recv(4096)
            if not data or len(head) > _HEAD_BYTES:
                return
            head += data
        found = _REQUEST.match(head)
        host, port, plain = _target(found[1], found[2]) if found else ("", 0, b"")
        known = bool(host) and allowed(host, self._hosts)
        address = self._resolve(host, port) if known else None
        if address is None:
            reason = b"no public address" if known else b"host is not allowed"
            client.sendall(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nx-reason: %s\r\n\r\n" % reason)
            return
        # The address that was checked is the one connected to: a name must not change in between.
        with socket.create_connection(address, timeout=_SECONDS) as upstream:
            if plain:
                # One request a connection: the next one on it may be for another host.
                front, _, body = head.partition(b"\r\n\r\n")
                line, *fields = front.split(b"\r\n")
                begin = line.replace(found[2], plain, 1) if found else line
                kept = [field for field in fields if not field.lower().startswith(_HOP)]
                upstream.sendall(b"\r\n".join([begin, *kept, b"connection: close", b"", body]))
            else:
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                upstream.sendall(head.partition(b"\r\n\r\n")[2])
            _pump(client, upstream)

    def _resolve(self, host: str, port: int) -> tuple[str, int] | None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError:
            return None
        for *_, address in found:
            ip = ipaddress.ip_address(str(address[0]).partition("%")[0])
            ip = getattr(ip, "ipv4_mapped", None) or ip
            if self._private or ip.is_global:
                return str(ip), port
        return None


def _target(method: bytes, text: bytes) -> tuple[str, int, bytes]:
    """Host, port, and for plain requests the path. Odd bytes give no host."""
    try:
        shown = text.decode("ascii")
        parts = urlsplit(f"//{shown}" if method == b"CONNECT" else shown)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return "", 0, b""
    if not _HOST.fullmatch(host) or "*" in host or parts.username is not None:
        return "", 0, b""
    if method == b"CONNECT":
        return host, port or 443, b""
    if parts.scheme != "http":
        return "", 0, b""
    return host, port or 80, (parts.path or "/").encode() + (f"?{parts.query}".encode() if parts.query else b"")


def _pump(one: socket.socket, other: socket.socket) -> None:
    """Carry bytes both ways until either end is silent for too long or closes."""
    poll = select.poll()  # select() ends at descriptor 1023
    for end in (one, other):
        poll.register(end, select.POLLIN)
    while True:
        ready = poll.poll(1e3 * _SECONDS)
        if not ready:
            return
        for fd, _ in ready:
            source, target = (one, other) if fd == one.fileno() else (other, one)
            data = source.recv(65536)
            if not data:
                return
            target.sendall(data)
