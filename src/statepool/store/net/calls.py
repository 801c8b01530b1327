"""Calls from inside an event loop: a mirror's to its primary, a primary's to its witness."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import msgspec

from statepool.core.errors import Corruption, StatepoolError, StoreFormat, Unavailable
from statepool.store.net.framing import REPLIES, REQUESTS, Reply, Request, Splitter, address, pack, raised


class Caller:
    """One call at a time, over a connection that is made when needed and dropped when anything is odd."""

    def __init__(self, url: str) -> None:
        address(url)
        self.url = url
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._number = 0

    async def call(self, method: str, arguments: list[Any], seconds: float, kind: Any = Any) -> Any:
        """The result, as a ``kind``.

        Raises:
            Unavailable: no answer in time.
            StatepoolError: what the other side refused with.
        """
        try:
            async with asyncio.timeout(seconds):
                return msgspec.convert(await self._exchange(method, arguments), kind)
        except (OSError, TimeoutError, EOFError, msgspec.ValidationError) as error:
            self.close()
            raise Unavailable(f"{self.url}: {error or 'no answer in time'}") from error
        except asyncio.CancelledError:
            self.close()
            raise

    async def _exchange(self, method: str, arguments: list[Any]) -> Any:
        if self._streams is None:
            where = address(self.url)
            opening = asyncio.open_unix_connection(where) if isinstance(where, str) else asyncio.open_connection(*where)
            self._streams, self._splitter = await opening, Splitter()
        reader, writer = self._streams
        self._number += 1
        writer.write(pack(REQUESTS.encode(Request(self._number, method, arguments))))
        while True:
            data = await reader.read(1 << 20)
            if not data:
                raise EOFError("the connection was closed")
            for reply in self._replies(data):
                if reply.error is not None:
                    raise raised(reply.error)
                if reply.number == self._number:
                    return reply.result

    def _replies(self, data: bytes) -> list[Reply]:
        try:
            return [REPLIES.decode(body) for body in self._splitter.feed(data)]
        except (Corruption, StoreFormat) as error:  # nothing behind it can be understood
            raise EOFError(error.message) from error

    def close(self) -> None:
        """End the connection."""
        if self._streams is not None:
            with contextlib.suppress(OSError, StatepoolError):
                self._streams[1].close()
            self._streams = None
