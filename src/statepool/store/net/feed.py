"""The log of a primary, for its mirror.

A mirror pulls: each call names the last frame that is durable there, so a call is an acknowledgement too, and one that
is lost, late or doubled does no harm. The answer holds the frames that follow, byte for byte.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from statepool.core.errors import Fenced, NotFound, StoreCorrupt
from statepool.store.net.files import LogReader, Piece, Superblock, first_segment, read_superblock
from statepool.store.net.roles import Position, Primary

_AT_ONCE = 8 << 20
"""Bytes of frames in one answer, about."""


class Pull(msgspec.Struct, array_like=True):
    """What a mirror says: who it is, its term, what it has, and how long it would wait for more."""

    node: str
    term: int
    position: Position
    wait: float
    copying: bool = False
    """It makes a copy beside what it has; this is how far the copy is, and acknowledges nothing."""


class Pulled(msgspec.Struct, array_like=True):
    """What follows. ``copy``: nothing can, for the mirror's last frame is not in the log; it must copy the store."""

    term: int
    durable: int
    copy: bool = False
    checkpoint: int = 0
    pieces: list[Piece] = msgspec.field(default_factory=list)


class Copy(msgspec.Struct, array_like=True):
    """What a copy of the store begins with: its superblock, and where its log begins."""

    term: int
    superblock: Superblock
    position: Position


class Feed:
    """Answers mirrors. ``advance`` is called when one has acknowledged."""

    def __init__(self, folder: Path, native: Any, role: Primary, advance: Callable[[], None]) -> None:
        self._folder, self._native, self._role, self._advance = folder, native, role, advance
        self._sleeping: set[asyncio.Event] = set()
        self._readers: dict[str, LogReader] = {}
        self._files: dict[str, tuple[str, BinaryIO]] = {}

    def wake(self) -> None:
        """There may be more."""
        for event in self._sleeping:
            event.set()

    async def pull(self, session: Any, arguments: Any) -> Pulled:
        """Take an acknowledgement, answer with what follows, or with nothing after the time the mirror would wait.

        Raises:
            Fenced: the mirror knows of a higher term, so this primary's reign is over.
        """
        ask, role = msgspec.convert(arguments, Pull), self._role
        role.heard(ask.term)
        if role.fenced:
            raise Fenced(f"primary: term {role.fenced} has begun; follow the new one")
        reader = self._readers.setdefault(f"{ask.node} {ask.copying}", LogReader(self._folder))
        there = reader.position == ask.position != Position()
        if not there and not await asyncio.to_thread(reader.seek, ask.position):
            return Pulled(role.term, self._native.durable_lsn, copy=True)
        if not ask.copying:
            role.pulled(ask.node, ask.position, time.monotonic())
            self._advance()
        await self._more_than(ask.position.lsn, min(ask.wait, role.patience / 2))
        try:
            pieces = await asyncio.to_thread(self._read, reader)
        except StoreCorrupt:
            return Pulled(role.term, self._native.durable_lsn, copy=True)
        return Pulled(role.term, self._native.durable_lsn, False, self._checkpoint(), pieces)

    async def _more_than(self, lsn: int, wait: float) -> None:
        if self._native.durable_lsn > lsn:
            return
        event = asyncio.Event()
        self._sleeping.add(event)
        try:
            async with asyncio.timeout(wait):
                while self._native.durable_lsn <= lsn:
                    event.clear()
                    await event.wait()
        except TimeoutError:
            return
        finally:
            self._sleeping.discard(event)

    def _read(self, reader: LogReader) -> list[Piece]:
        """Only what is durable here: a mirror must not have what its primary could still lose."""
        durable, pieces, size = self._native.durable_lsn, [], 0
        while size < _AT_ONCE and (piece := reader.next(durable)) is not None:
            pieces.append(piece)
            size += len(piece.data)
        if not pieces and reader.position.lsn < durable:
            raise StoreCorrupt("log: what follows was recycled")
        return pieces

    def _checkpoint(self) -> int:
        block = read_superblock(self._folder)
        return 0 if block is None else block.checkpoint_id

    async def copy(self, session: Any) -> Copy:
        """What a copy begins with."""
        return await asyncio.to_thread(self._copy)

    def _copy(self) -> Copy:
        block = read_superblock(self._folder)
        if block is None:
            raise StoreCorrupt("meta: neither of its two slots is valid")
        return Copy(self._role.term, block, first_segment(self._folder, block.first_segment).before)

    async def piece(self, session: Any, node: str, checkpoint: int, offset: int, size: int) -> bytes:
        """Bytes of a checkpoint's file; none at its end.

        Raises:
            NotFound: there is no such checkpoint any more.
        """
        return await asyncio.to_thread(self._piece, node, checkpoint, offset, min(size, _AT_ONCE))

    def _piece(self, node: str, checkpoint: int, offset: int, size: int) -> bytes:
        name = f"{checkpoint:016x}"
        if node not in self._files or self._files[node][0] != name:
            try:
                opened = (self._folder / "ckpt" / name).open("rb")  # stays readable when its name goes
            except FileNotFoundError as error:
                raise NotFound(f"checkpoint: {name} is gone; copy the present one") from error
            if node in self._files:
                self._files[node][1].close()
            self._files[node] = (name, opened)
        file = self._files[node][1]
        file.seek(offset)
        return file.read(size)

    def close(self) -> None:
        """Let all files go."""
        for reader in self._readers.values():
            reader.close()
        for _, file in self._files.values():
            file.close()
