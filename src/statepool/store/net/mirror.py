"""A mirror: the same log, byte for byte, durable before the primary hears of it; and how it becomes a primary."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import threading
import time
from pathlib import Path

import msgspec

from statepool.core.errors import (
    Fenced,
    InvalidRequest,
    NotFound,
    StatepoolError,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreLocked,
    Unavailable,
)
from statepool.store.net.calls import Caller
from statepool.store.net.feed import Copy, Pull, Pulled
from statepool.store.net.files import (
    SECTOR,
    LogReader,
    Piece,
    Superblock,
    first_segment,
    is_whole,
    parse_frame,
    parse_segment,
    read_superblock,
    segment_path,
    write_superblock,
)
from statepool.store.net.node import Node, read_node, sync_folder, write_node
from statepool.store.net.roles import TERM_SHIFT, Answer, Mirror, Position

_WAIT = 0.5
_PIECE = 4 << 20


class Copying:
    """A mirror's folder: what is in it, and how it grows. Blocking; closing waits for what another thread does."""

    def __init__(self, folder: Path, *, part: bool = False) -> None:
        self.folder, self._busy, self._lock = folder, threading.Lock(), -1
        self._closed = False
        if part:  # of a folder that is locked
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise StoreLocked(f"path: another process has {folder} open") from error
        finish_copy(folder)

    def position(self) -> Position:
        """The last whole frame in the folder."""
        block = read_superblock(self.folder)
        if block is None:
            return Position()
        reader = LogReader(self.folder)
        try:
            reader.seek(first_segment(self.folder, block.first_segment).before)
            with contextlib.suppress(StoreCorrupt):  # a frame that was being written when we were killed
                while reader.next(1 << 63) is not None:
                    pass
            return reader.position
        finally:
            reader.close()

    def append(self, role: Mirror, pieces: list[Piece]) -> None:
        """Write frames where the primary has them; durable when it returns.

        Raises:
            StoreCorrupt: one is damaged or is not the next.
        """
        with self._busy:
            if self._closed:
                raise StoreLocked("mirror: its folder was let go")
            self._append(role, pieces)

    def _append(self, role: Mirror, pieces: list[Piece]) -> None:
        opened: dict[int, int] = {}
        position = role.position
        try:
            for piece in pieces:
                if piece.start and not piece.data:
                    os.close(self._segment(piece))
                    continue
                frame = parse_frame(piece.data)
                if frame is None or not is_whole(frame, piece.data):
                    raise StoreCorrupt("mirror: a frame came damaged")
                if not role.follows(frame.epoch, frame.first_lsn, frame.prev_crc):
                    raise StoreCorrupt(f"mirror: after operation {role.position.lsn} came {frame.first_lsn}")
                if piece.segment not in opened:
                    opened[piece.segment] = self._segment(piece)
                _write_all(opened[piece.segment], piece.data, piece.offset)
                role.position = frame.position
            for handle in opened.values():
                os.fdatasync(handle)
        except BaseException:
            role.position = position
            raise
        finally:
            for handle in opened.values():
                os.close(handle)

    def _segment(self, piece: Piece) -> int:
        path = segment_path(self.folder, piece.segment)
        if piece.start and parse_segment(piece.start) is None:
            raise StoreCorrupt("mirror: a segment's header came damaged")
        if piece.start:  # the header comes with the first frame, under a name that does not count
            path.parent.mkdir(exist_ok=True)
            with path.with_name("unfinished").open("wb") as file:
                file.write(piece.start)
                for at in range(SECTOR, piece.segment_bytes, _PIECE):
                    file.write(bytes(min(_PIECE, piece.segment_bytes - at)))
                file.flush()
                os.fsync(file.fileno())
            path.with_name("unfinished").replace(path)
            sync_folder(path.parent)
        return os.open(path, os.O_RDWR)

    def take_checkpoint(self, block: Superblock) -> None:
        """A checkpoint's file is complete: from here on the log before it is not needed."""
        present = read_superblock(self.folder)
        assert present is not None
        present.checkpoint_id, present.checkpoint_lsn = block.checkpoint_id, block.checkpoint_lsn
        present.first_segment, present.epoch = block.first_segment, max(present.epoch, block.epoch)
        write_superblock(self.folder, present)
        for path in (self.folder / "ckpt").iterdir():
            if path.name != f"{block.checkpoint_id:016x}":
                path.unlink()
        for path in (self.folder / "log").iterdir():
            if len(path.name) == 16 and int(path.name, 16) < block.first_segment:
                path.unlink()
        sync_folder(self.folder / "log")

    def close(self) -> None:
        """Let the folder go."""
        with self._busy:
            self._closed = True
            os.close(self._lock)


def _write_all(handle: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(handle, view, offset)
        view, offset = view[done:], offset + done


def finish_copy(folder: Path) -> None:
    """A copy that was complete when its process died takes its place; an incomplete one goes."""
    incoming = folder / "incoming"
    if (incoming / "complete").exists():
        for name in ("meta", "log", "ckpt"):
            if not (incoming / name).exists():
                continue
            with contextlib.suppress(FileNotFoundError):
                (folder / name).unlink() if name == "meta" else shutil.rmtree(folder / name)
            (incoming / name).rename(folder / name)
        sync_folder(folder)
    shutil.rmtree(incoming, ignore_errors=True)


class Following:
    """A mirror's process. ``start``, ``wait`` for it to fail, ``stop``."""

    def __init__(self, folder: Path, of: str) -> None:
        self._folder, self._of = folder, of
        self._caller, self._second = Caller(of), Caller(of)
        self._running: asyncio.Task[None] | None = None
        self._fetching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take the folder and begin to follow.

        Raises:
            InvalidRequest: the folder is a store of its own, or the address is malformed.
            StoreLocked: another process has it.
        """
        self._copying = await asyncio.to_thread(Copying, self._folder)
        node = read_node(self._folder)
        if (node is None and (self._folder / "meta").exists()) or (
            node and not node.mirror and node.fenced <= node.term
        ):
            self._copying.close()
            raise InvalidRequest(f"path: {self._folder} is a store of its own; a mirror would replace it")
        self._node = node or Node()
        self._node.mirror = True
        await asyncio.to_thread(write_node, self._folder, self._node)
        block = read_superblock(self._folder)
        self._checkpoint = -1 if block is None else block.checkpoint_id  # -1: there is no store here yet
        self.role = Mirror(self._node.name, self._node.term, await asyncio.to_thread(self._copying.position))
        self._running = asyncio.create_task(self._follow())

    async def wait(self) -> None:
        """Return, or raise what went wrong, when it follows no more."""
        assert self._running is not None
        await self._running

    async def _follow(self) -> None:
        while True:
            try:
                await self._pull()
            except (Unavailable, Fenced, NotFound, StoreCorrupt):
                self._caller.close()
                await asyncio.sleep(0.1)
            except OSError as error:
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                raise (StoreFull if full else StoreError)(f"mirror: {self._folder}: {error.strerror}") from error

    async def _pull(self) -> None:
        role = self.role
        ask = Pull(role.node, role.term, role.position, _WAIT)
        answer: Pulled = await self._caller.call("pull", [ask], _WAIT + 5.0, kind=Pulled)
        await self._accept(answer.term)
        if answer.copy or self._checkpoint < 0:
            if role.position.epoch >> TERM_SHIFT == answer.term and answer.durable < role.position.lsn:
                raise StoreCorrupt("mirror: the primary has less than this mirror; the mirror's copy is not replaced")
            await self._copy()
            return
        if answer.pieces:
            await asyncio.to_thread(self._copying.append, role, answer.pieces)
        busy = self._fetching is not None and not self._fetching.done()
        if answer.checkpoint > self._checkpoint and not busy:
            self._fetching = asyncio.create_task(self._renew_checkpoint())

    async def _accept(self, term: int) -> None:
        if not self.role.accepts(term):
            raise Fenced(f"mirror: the primary's term {term} is over; term {self.role.term} has begun")
        if self._node.term != self.role.term:
            self._node.term = self.role.term
            await asyncio.to_thread(write_node, self._folder, self._node)

    async def _copy(self) -> None:
        """The whole store, beside what is here, which it then replaces."""
        begin: Copy = await self._caller.call("copy", [], 10.0, kind=Copy)
        await self._accept(begin.term)
        incoming, block = self._folder / "incoming", begin.superblock
        shutil.rmtree(incoming, ignore_errors=True)
        (incoming / "log").mkdir(parents=True)
        (incoming / "ckpt").mkdir()
        await self._fetch(self._caller, incoming, block)
        block.heap_nonce, block.clean, block.replica = 0, 0, secrets.randbits(31) | 1
        await asyncio.to_thread(write_superblock, incoming, block)
        with_log = Copying(incoming, part=True)
        role = Mirror(self.role.node, self.role.term, begin.position)
        while not (incoming / "complete").exists():
            ask = Pull(role.node, role.term, role.position, 0.0, copying=True)
            answer: Pulled = await self._caller.call("pull", [ask], 10.0, kind=Pulled)
            await self._accept(answer.term)
            if answer.copy:
                return  # recycled meanwhile: begin again
            await asyncio.to_thread(with_log.append, role, answer.pieces)
            if not answer.pieces:
                await asyncio.to_thread(_complete, incoming)
        await asyncio.to_thread(finish_copy, self._folder)
        self.role.position, self._checkpoint = role.position, block.checkpoint_id

    async def _fetch(self, caller: Caller, folder: Path, block: Superblock) -> None:
        """A checkpoint's file, if there is one."""
        if block.checkpoint_id == 0:
            return
        path, at = folder / "ckpt" / f"{block.checkpoint_id:016x}", 0
        unfinished = path.with_name("unfinished")
        with unfinished.open("wb") as file:
            while data := await caller.call(
                "piece", [self.role.node, block.checkpoint_id, at, _PIECE], 30.0, kind=bytes
            ):
                await asyncio.to_thread(file.write, data)
                at += len(data)
            await asyncio.to_thread(_sync, file)
        unfinished.replace(path)
        await asyncio.to_thread(sync_folder, path.parent)

    async def _renew_checkpoint(self) -> None:
        """The primary made a newer checkpoint: with it, the older part of the log can go here too."""
        try:
            begin: Copy = await self._second.call("copy", [], 10.0, kind=Copy)
            (self._folder / "ckpt").mkdir(exist_ok=True)
            await self._fetch(self._second, self._folder, begin.superblock)
            while self.role.position.lsn < begin.superblock.checkpoint_lsn:  # noqa: ASYNC110 - the log comes first
                await asyncio.sleep(0.05)
            await asyncio.to_thread(self._copying.take_checkpoint, begin.superblock)
            self._checkpoint = begin.superblock.checkpoint_id
        except StatepoolError:
            self._second.close()  # the next answer to a pull names a checkpoint again

    async def stop(self) -> None:
        """Let the folder go."""
        for task in (self._running, self._fetching):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, StatepoolError):
                    await task
        self._caller.close()
        self._second.close()
        self._copying.close()


def _sync(file: object) -> None:
    file.flush()  # type: ignore[attr-defined]
    os.fsync(file.fileno())  # type: ignore[attr-defined]


def _complete(incoming: Path) -> None:
    for folder in (incoming / "log", incoming / "ckpt"):
        sync_folder(folder)
    (incoming / "complete").touch()
    sync_folder(incoming)


async def promote(folder: Path, *, witness: str | None, old: str | None = None, wait: float = 30.0) -> int:
    """Make a mirror's folder a primary's; returns the term that begins. Without a witness, whoever calls this vouches
    that the old primary is gone.

    Raises:
        InvalidRequest: the folder is no mirror's, or has no complete copy.
        Fenced: the witness does not let this mirror take over.
        Unavailable: no witness answers.
        StoreLocked: the mirror's process still runs.
    """
    followed = None if old is None else Caller(old)
    if read_node(folder) is None:  # before a lock is made there
        raise InvalidRequest(f"path: {folder} is no mirror's folder")
    copying = await asyncio.to_thread(Copying, folder)
    try:
        node = read_node(folder)
        if node is None or not node.mirror or read_superblock(folder) is None:
            raise InvalidRequest(f"path: {folder} is no mirror's complete copy")
        term = node.term + 1 if witness is None else await _ask(witness, node.name, time.monotonic() + wait)
        if term <= node.term:
            raise Fenced(f"promote: the witness grants term {term}, and this mirror has followed term {node.term}")
        write_node(folder, msgspec.structs.replace(node, mirror=False, term=term))
    finally:
        copying.close()
    if followed is not None:
        with contextlib.suppress(StatepoolError):
            await followed.call("fence", [term], 2.0)
    return term


async def _ask(witness: str, node: str, until: float) -> int:
    caller = Caller(witness)
    try:
        while True:
            answer: Answer = await caller.call("promote", [node], 5.0, kind=Answer)
            if answer.granted:
                return answer.vote.term
            if time.monotonic() > until or "lease" not in answer.reason:
                raise Fenced(f"promote: the witness says no: {answer.reason}")
            await asyncio.sleep(0.1)
    finally:
        caller.close()
