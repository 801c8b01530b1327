"""The texts of all groups, wherever they are written: engines append what they make and fetch what others made.

Tokens travel, never trees (Seer's distributed grouped draft server, section 3.4.2): a log per response that is only
appended to. That makes a fetch incremental, a lost or doubled message harmless, and the server's death a pause in
sharing: engines go on with what they have, and a new server asks for what it misses.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import zmq

from statepool.cluster import Program
from statepool.cluster.blocking import BlockingLauncher
from statepool.core.wire import Codec
from statepool.serve.channel import ChannelKeys, join
from statepool.serve.kept import KeptProcesses

__all__ = ["DraftClient", "DraftServer", "TokenLogs"]

_TTL = 600.0
_WAIT_MS = 500
_SERVER_KEYS = "STATEPOOL_DRAFT_SERVER_KEYS"
"""Environment variable by which a server is told what its peers must have."""


class Append(msgspec.Struct, frozen=True, tag=True):
    """Tokens ``start`` and on of a response."""

    group: str
    text: int
    start: int
    tokens: list[int]


class Fetch(msgspec.Struct, frozen=True, tag=True):
    """Asks for what is new; ``known`` is how much of each text of each group the asker has."""

    known: dict[str, dict[int, int]]


class News(msgspec.Struct, frozen=True, tag=True):
    """What an asker lacked, and the texts that the server itself lacks: (group, text, from which token)."""

    texts: list[Append]
    missing: list[tuple[str, int, int]]


_request: Codec[list[Append] | Fetch] = Codec(list[Append] | Fetch)
_reply: Codec[News] = Codec(News)


@dataclass(slots=True)
class _Group:
    texts: dict[int, list[int]] = field(default_factory=dict)
    touched: float = 0.0


class TokenLogs:
    """What the server keeps: a log per response, by group. No clock and no socket.

    Args:
        ttl: seconds without a word about a group after which it is forgotten.
    """

    def __init__(self, ttl: float = _TTL) -> None:
        self._ttl = ttl
        self._groups: dict[str, _Group] = {}

    def append(self, group: str, text: int, start: int, tokens: list[int], now: float) -> int | None:
        """Add tokens. Known ones are skipped; behind a gap nothing is added, and the answer is where it begins."""
        entry = self._touch(group, now)
        log = entry.texts.setdefault(text, [])
        if start > len(log):
            return len(log)
        log += tokens[len(log) - start :]
        return None

    def news(self, group: str, known: dict[int, int], now: float) -> list[Append]:
        """Texts of a group beyond what is known."""
        entry = self._touch(group, now)
        found = []
        for text, log in entry.texts.items():
            have = known.get(text, 0)
            if have < len(log):
                found.append(Append(group, text, have, log[have:]))
        return found

    def behind(self, group: str, known: dict[int, int]) -> list[tuple[str, int, int]]:
        """Texts of which an asker knows more than is here."""
        entry = self._groups.get(group)
        texts = entry.texts if entry else {}
        return [
            (group, text, len(texts.get(text, []))) for text, have in known.items() if have > len(texts.get(text, []))
        ]

    def expire(self, now: float) -> int:
        """Forget groups that nobody has named for long; how many."""
        old = [name for name, entry in self._groups.items() if now - entry.touched > self._ttl]
        for name in old:
            del self._groups[name]
        return len(old)

    def __len__(self) -> int:
        return len(self._groups)

    def _touch(self, group: str, now: float) -> _Group:
        entry = self._groups.setdefault(group, _Group())
        entry.touched = now
        return entry


def serve(
    address: str,
    ttl: float,
    alive: Callable[[], bool],
    announce: Callable[[str], None],
    keys: ChannelKeys | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Answer until ``alive()`` is false; ``announce`` is told where, ``keys`` are what a peer must have."""
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.LINGER, 0)
    if keys is not None:
        keys.guard(socket)
    socket.bind(address)
    announce(socket.getsockopt_string(zmq.LAST_ENDPOINT))
    logs = TokenLogs(ttl)
    missing: dict[bytes, list[tuple[str, int, int]]] = {}
    try:
        while alive():
            if not socket.poll(_WAIT_MS):
                logs.expire(clock())
                continue
            peer, data = socket.recv_multipart()
            message, now = _request.decode(data), clock()
            if isinstance(message, Fetch):
                texts = [each for group, known in message.known.items() for each in logs.news(group, known, now)]
                lacking = [each for group, known in message.known.items() for each in logs.behind(group, known)]
                socket.send_multipart([peer, _reply.encode(News(texts, lacking + missing.pop(peer, [])))])
                continue
            for each in message:
                gap = logs.append(each.group, each.text, each.start, each.tokens, now)
                if gap is not None:
                    missing.setdefault(peer, []).append((each.group, each.text, gap))
    finally:
        socket.close()
        context.term()


class DraftServer:
    """The server in a process of its own; another takes its place, at the same address, when it ends.

    Args:
        launcher: who starts it.
        folder: where its socket is, on this machine.
        keys: what engines on other machines must have to reach it; None on one machine.
        ttl: seconds after which a group nobody names is forgotten.

    Raises:
        InvalidConfig: it does not start.
    """

    def __init__(
        self, launcher: BlockingLauncher, folder: Path, keys: ChannelKeys | None = None, ttl: float = _TTL
    ) -> None:
        environment = {} if keys is None else {_SERVER_KEYS: keys.server_text()}
        program = Program("statepool.rollout.draft_server", ("--ttl", str(ttl)), environment)
        address = "tcp://{host}:*" if launcher.remote else f"ipc://{folder / 'drafts'}"
        self._launcher = launcher
        self._kept = KeptProcesses("draft server", launcher.launcher, [program], [address])
        launcher.call(self._kept.start())

    @property
    def address(self) -> str:
        """Where it listens."""
        return self._kept.addresses[0]

    @property
    def pid(self) -> int:
        """Of the process that serves now."""
        return self._kept.pids[0]

    def close(self) -> None:
        """End the process."""
        self._launcher.call(self._kept.close())


class DraftClient:
    """An engine's side: never waits. Sends what was made every few steps and takes in what has come.

    Args:
        address: of the server.
        every: steps between two fetches.
    """

    def __init__(self, address: str, every: int = 8) -> None:
        self._context = zmq.Context()
        self._socket: Any = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, 64)
        join(self._socket)
        self._socket.connect(address)
        self._every = every
        self._steps = 0
        self._fresh: dict[tuple[str, int], tuple[int, list[int]]] = {}
        self.sent = self.fetched = self.dropped = 0
        """Tokens sent and received, messages that found no room."""

    def made(self, group: str, text: int, start: int, tokens: tuple[int, ...]) -> None:
        """A response here has tokens from ``start`` on."""
        entry = self._fresh.setdefault((group, text), (start, []))
        entry[1].extend(tokens)

    def step(self, known: Callable[[], dict[str, dict[int, int]]]) -> list[News]:
        """After a step of the engine: send and ask if it is time; what has come."""
        self._steps += 1
        if self._steps % self._every == 0:
            batch = [Append(group, text, start, tokens) for (group, text), (start, tokens) in self._fresh.items()]
            self._fresh.clear()
            if batch and self._send(_request.encode(batch)):
                self.sent += sum(len(each.tokens) for each in batch)
            self._send(_request.encode(Fetch(known())))
        found = []
        while self._socket.poll(0):
            news = _reply.decode(self._socket.recv())
            self.fetched += sum(len(each.tokens) for each in news.texts)
            found.append(news)
        return found

    def close(self) -> None:
        """Forget the server."""
        self._socket.close()
        self._context.term()

    def _send(self, data: bytes) -> bool:
        try:
            self._socket.send(data, zmq.NOBLOCK)
        except zmq.Again:
            self.dropped += 1
            return False
        return True


def _main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="statepool.rollout.draft_server", description="Texts that engines share.")
    parser.add_argument("--listen", required=True, metavar="ENDPOINT", help="of ZeroMQ")
    parser.add_argument("--ttl", type=float, default=_TTL, help="seconds without a word after which a group is dropped")
    parser.add_argument("--with-parent", action="store_true", help="end when the process that started it ends")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    text = os.environ.get(_SERVER_KEYS)
    serve(
        options.listen,
        options.ttl,
        lambda: not options.with_parent or os.getppid() == parent,
        lambda endpoint: print(f"draft server at {endpoint}", flush=True),  # noqa: T201 - whoever started it waits
        None if text is None else ChannelKeys.of_server(text),
    )
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
