"""The witness as a process: its vote on disk, its lease on the clock, its answers on a socket."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec

from statepool.core.errors import InvalidRequest, StatepoolError, StoreCorrupt
from statepool.store.net.daemon import listen_at
from statepool.store.net.framing import REPLIES, REQUESTS, Reply, Splitter, address, described, pack
from statepool.store.net.node import write_durably
from statepool.store.net.roles import Answer, Renewal, Vote, Witness


class Voting:
    """One witness. ``start``, then ``stop``."""

    def __init__(self, folder: Path, listen: str, lease: float) -> None:
        address(listen)
        self._path, self._listen, self._lease = folder / "vote", listen, lease
        self._server: asyncio.AbstractServer | None = None
        self._connections: set[asyncio.Transport] = set()

    async def start(self) -> None:
        """Read the vote and listen.

        Raises:
            StoreCorrupt: the vote cannot be read.
            InvalidRequest: the address cannot be taken.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.role = Witness(self._read(), self._lease, time.monotonic())
        self._server = await listen_at(self._listen, lambda: _Connection(self, self._connections))

    def _read(self) -> Vote:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Vote)
        except FileNotFoundError:
            return Vote()
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StoreCorrupt(f"{self._path}: {error}; a witness must not forget its vote") from error

    def answer(self, method: str, arguments: list[Any]) -> Answer:
        """The answer to a call; the vote is on disk before it is given.

        Raises:
            InvalidRequest: there is no such call, or its arguments do not fit.
        """
        before, now = self.role.vote, time.monotonic()
        try:
            if method == "renew":
                answer = self.role.renew(msgspec.convert(arguments[0], Renewal), now)
            elif method == "promote":
                answer = self.role.promote(msgspec.convert(arguments[0], str), now)
            else:
                raise InvalidRequest(f"method: a witness has no '{method}'")
        except (IndexError, msgspec.ValidationError) as error:
            raise InvalidRequest(f"arguments: {error}") from error
        if self.role.vote != before:
            write_durably(self._path, msgspec.json.encode(self.role.vote))
        return answer

    async def stop(self) -> None:
        """Close all connections."""
        if self._server is not None:
            self._server.close()
        for transport in list(self._connections):
            transport.close()


class _Connection(asyncio.Protocol):
    def __init__(self, voting: Voting, connections: set[asyncio.Transport]) -> None:
        self._voting, self._connections, self._splitter = voting, connections, Splitter()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._connections.add(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._splitter.feed(data):
                request = REQUESTS.decode(body)
                try:
                    reply = Reply(request.number, self._voting.answer(request.method, request.arguments))
                except StatepoolError as error:
                    reply = Reply(request.number, None, described(error))
                self._transport.write(pack(REPLIES.encode(reply)))
        except (StatepoolError, OSError):  # not our protocol, or a vote that cannot be kept: no answer
            self._transport.close()
