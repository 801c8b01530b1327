"""A pool node: memory and disk that one machine lends to all engines.

Engines of the same machine write to and read from its memory themselves, under leases; others send and receive bytes. A
thread serves each connection, and what a connection holds ends with it.
"""

from __future__ import annotations

import logging
import mmap
import os
import queue
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from statepool.core import sockets
from statepool.core.errors import Corruption, InvalidConfig
from statepool.core.sockets import receive, receive_into, send
from statepool.kv.eviction import EVICTIONS, Eviction
from statepool.kv.pool import protocol
from statepool.kv.pool.disk import DiskTier
from statepool.kv.pool.heat import Heat
from statepool.kv.pool.mooncake import Mover
from statepool.kv.pool.protocol import reply_codec, request_codec
from statepool.kv.pool.slots import Lease, SlotTable

__all__ = ["Node", "NodeConfig"]

log = logging.getLogger("statepool.pool")

_CACHE_LINE = 64
_SWEEP_SECONDS = 0.5
_AHEAD_SHARE = 128
"""One of so many slots may be with clients that have not said yet what they fill it with."""
_SELF = 0
"""The owner of what the node does for itself."""


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """Settings of one node.

    Args:
        listen: address, ``unix:/path`` or ``tcp://host:port``.
        block_bytes: size of a block; clients with others are refused.
        memory_bytes: memory to lend.
        disk_path: file for blocks on disk; None keeps none.
        disk_bytes: most bytes of that file.
        lease_s: seconds after which an engine that does not answer loses what it holds.
        eviction: which block goes first: ``lru``, ``lfu``, ``length`` or ``likely``.
        name: of the node; by default its address.
        transfer: ``tcp`` or ``rdma``: other machines read and write its memory through Mooncake's transfer engine;
            ``""``: through sockets.
    """

    listen: str
    block_bytes: int
    memory_bytes: int = 1 << 30
    disk_path: Path | None = None
    disk_bytes: int = 4 << 30
    lease_s: float = 10.0
    eviction: str = "lru"
    name: str = ""
    transfer: str = ""

    def __post_init__(self) -> None:
        for field in ("block_bytes", "memory_bytes", "disk_bytes"):
            if getattr(self, field) < 1:
                raise InvalidConfig(f"{field} must be at least 1, got {getattr(self, field)}", param=field)
        if self.transfer and not self.listen.startswith("tcp://"):
            raise InvalidConfig(f"transfer {self.transfer!r} needs a tcp:// address to listen at", param="transfer")
        if not self.lease_s > 0:
            raise InvalidConfig(f"lease_s must be above 0, got {self.lease_s}", param="lease_s")
        if self.eviction not in EVICTIONS:
            known = ", ".join(EVICTIONS)
            raise InvalidConfig(f"eviction must be one of {known}, got {self.eviction!r}", param="eviction")
        if self.memory_bytes < self.block_bytes:
            raise InvalidConfig(
                f"memory_bytes {self.memory_bytes} holds no block; one takes {self.block_bytes}", param="memory_bytes"
            )


class Node:
    """The memory, its books, and the threads that serve them. ``start`` it, then ``close`` it.

    Raises:
        InvalidConfig: the address or the disk file cannot be used.
    """

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self.slot_bytes = -(-config.block_bytes // _CACHE_LINE) * _CACHE_LINE
        slots = config.memory_bytes // self.slot_bytes
        self.descriptor = os.memfd_create("statepool-kv", os.MFD_CLOEXEC)
        os.ftruncate(self.descriptor, slots * self.slot_bytes)
        self._memory = memoryview(mmap.mmap(self.descriptor, slots * self.slot_bytes))
        self._mover = None if not config.transfer else Mover(_host(config.listen), config.transfer)
        if self._mover is not None:
            self._mover.register(_address(self._memory), len(self._memory))
        self._table = SlotTable(slots, _order(config), config.lease_s, slots // _AHEAD_SHARE)
        self._lock = threading.Lock()
        self._disk = None
        self._disk_lock = threading.Lock()
        if config.disk_path is not None:
            self._disk = DiskTier(config.disk_path, config.disk_bytes, config.block_bytes, _order(config))
        self._fresh: queue.SimpleQueue[list[bytes] | None] = queue.SimpleQueue()
        self._heat = Heat()
        self._hits = self._misses = self._dropped = 0
        self._owners = _SELF
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._listener = sockets.listen(config.listen)

    @property
    def address(self) -> str:
        """Where it listens, with the port it has been given."""
        return sockets.address_of(self._listener, self.config.listen)

    def start(self) -> None:
        """Serve in threads of its own."""
        for work in (self._accept, self._sweep, *([self._write_behind] if self._disk is not None else [])):
            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            self._threads.append(thread)

    def close(self) -> None:
        """Stop serving, write what is not on disk yet, and give the memory back."""
        self._stopping.set()
        self._fresh.put(None)
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        if self._disk is not None:
            self._disk.close()
        if self.config.listen.startswith("unix:"):
            Path(self.config.listen.removeprefix("unix:")).unlink(missing_ok=True)
        if self._mover is not None:
            self._mover.release(_address(self._memory))
        os.close(self.descriptor)

    def stats(self) -> protocol.Stored:
        """Figures of now."""
        with self._lock:
            return protocol.Stored(
                blocks=len(self._table),
                slots=self._table.slots,
                slot_bytes=self.slot_bytes,
                on_disk=0 if self._disk is None else len(self._disk),
                evicted=self._table.evicted,
                expired=self._table.expired,
                dropped=self._dropped,
                disk_bad=0 if self._disk is None else self._disk.bad,
                hits=self._hits,
                misses=self._misses,
                held=self._table.held,
            )

    # -- threads -----------------------------------------------------------------------------------

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            sockets.tune(connection)
            self._connections.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with self._lock:
            self._owners += 1
            owner = self._owners
        try:
            while (body := receive(connection)) is not None:
                self._answer(connection, owner, request_codec.decode(body))
        except (OSError, Corruption) as error:
            if not self._stopping.is_set():
                log.info("a client left: %s", error)
        finally:
            with self._lock:
                self._table.leave(owner)
            self._connections.discard(connection)
            connection.close()

    def _sweep(self) -> None:
        while not self._stopping.wait(_SWEEP_SECONDS):
            with self._lock:
                late = self._table.expire(time.monotonic())
            if late:
                log.warning("%d leases ended at their deadline: their engines do not answer", late)

    def _write_behind(self) -> None:
        """Copy new blocks to disk while they stay where they are."""
        while (keys := self._fresh.get()) is not None:
            for key in keys:
                self._save(key)

    # -- what clients ask --------------------------------------------------------------------------

    def _answer(self, connection: socket.socket, owner: int, request: protocol.Request) -> None:
        def tell(reply: protocol.Reply, blocks: Sequence[memoryview] = ()) -> None:
            send(connection, reply_codec.encode(reply), blocks)

        match request:
            case protocol.Hello(block_bytes=size):
                if size not in (0, self.config.block_bytes):
                    own = self.config.block_bytes
                    tell(protocol.Refused(f"the pool's blocks have {own} bytes, this model's {size}"))
                    return
                tell(self._welcome())
            case protocol.Match(keys=keys):
                with self._lock:
                    found = self._match(keys)
                tell(protocol.Count(found))
            case protocol.Get(keys=keys):
                lease, hot = self._lend(owner, keys)
                indices = list(range(len(lease.keys)))
                tell(protocol.Granted(lease.id, indices, [*lease.slots], [*lease.checksums], hot))
            case protocol.Begin(keys=keys):
                with self._lock:
                    lease = self._table.begin(owner, keys, time.monotonic())
                places = {key: i for i, key in enumerate(keys)}
                tell(protocol.Granted(lease.id, [places[key] for key in lease.keys], [*lease.slots], []))
            case protocol.Finish(lease=number, checksums=checksums):
                with self._lock:
                    stored = self._table.finish(number, checksums, time.monotonic())
                tell(self._placed(owner, stored))
            case protocol.Put(lease=number, keys=keys, checksums=checksums):
                with self._lock:
                    put = self._table.put(number, keys, checksums, time.monotonic())
                tell(self._placed(owner, put))
            case protocol.Release(lease=number):
                with self._lock:
                    self._table.release(number)
            case protocol.Read(keys=keys):
                lease, hot = self._lend(owner, keys)
                try:
                    tell(protocol.Blocks([*lease.checksums], hot), [self._bytes(slot) for slot in lease.slots])
                finally:
                    with self._lock:
                        self._table.release(lease.id)
            case protocol.Write(keys=keys, checksums=checksums):
                tell(protocol.Count(self._take(connection, owner, keys, checksums)))
            case protocol.Drop(keys=keys, checksums=checksums):
                with self._lock:
                    dropped = sum(self._table.drop(k, c) for k, c in zip(keys, checksums, strict=True))
                    self._dropped += dropped
                if self._disk is not None:
                    with self._disk_lock:
                        for key in keys:
                            self._disk.drop(key)
                tell(protocol.Count(dropped))
            case protocol.Stats():
                tell(self.stats())

    def _welcome(self) -> protocol.Welcome:
        known = (self._name(), os.getpid(), self.descriptor, self._table.slots, self.slot_bytes)
        reach = ("", "", 0)
        if self._mover is not None:
            reach = (self.config.transfer, self._mover.session, _address(self._memory))
        return protocol.Welcome(*known, *reach, self.config.lease_s)

    def _name(self) -> str:
        return self.config.name or self.config.listen

    def _bytes(self, slot: int) -> memoryview:
        at = slot * self.slot_bytes
        return self._memory[at : at + self.config.block_bytes]

    def _match(self, keys: Sequence[bytes]) -> int:
        def here(key: bytes) -> bool:
            return key in self._table or (self._disk is not None and key in self._disk)

        return next((i for i, key in enumerate(keys) if not here(key)), len(keys))

    def _lend(self, owner: int, keys: Sequence[bytes]) -> tuple[Lease, bool]:
        """Hold leading blocks for a reader, those on disk brought back first; and whether they are read very often."""
        self._from_disk(keys)
        now = time.monotonic()
        with self._lock:
            lease = self._table.read(owner, keys, now)
            self._hits += len(lease.keys)
            self._misses += len(keys) - len(lease.keys)
            return lease, bool(lease.keys) and self._heat.read(keys[0], now)

    def _placed(self, owner: int, stored: Sequence[bytes] | None) -> protocol.Placed:
        """What a writer is told, with slots for what it brings next."""
        self._stored(stored or ())
        with self._lock:
            ahead = self._table.ahead(owner, time.monotonic(), stored or ())
        return protocol.Placed(-1 if stored is None else len(stored), ahead.id, [*ahead.slots])

    def _stored(self, keys: Sequence[bytes]) -> None:
        if keys and self._disk is not None:
            self._fresh.put(list(keys))

    def _take(self, connection: socket.socket, owner: int, keys: Sequence[bytes], checksums: Sequence[int]) -> int:
        """Receive the blocks of a Write: those wanted into their slots, the others nowhere."""
        if len(checksums) != len(keys):
            raise Corruption(f"a write of {len(keys)} blocks has {len(checksums)} checksums")
        with self._lock:
            lease = self._table.begin(owner, keys, time.monotonic())
        slots = dict(zip(lease.keys, lease.slots, strict=True))
        waste = memoryview(bytearray(self.config.block_bytes))
        wanted = []
        for key, checksum in zip(keys, checksums, strict=True):
            slot = slots.pop(key, None)
            receive_into(connection, waste if slot is None else self._bytes(slot))
            if slot is not None:
                wanted.append(checksum)
        with self._lock:
            stored = self._table.finish(lease.id, wanted, time.monotonic())
        self._stored(stored)
        return len(stored)

    # -- disk --------------------------------------------------------------------------------------

    def _save(self, key: bytes) -> None:
        assert self._disk is not None
        with self._lock:
            lease = self._table.read(_SELF, [key], time.monotonic()) if key in self._table else None
        if lease is None:
            return
        try:
            with self._disk_lock:
                self._disk.save(key, self._bytes(lease.slots[0]), lease.checksums[0], time.monotonic())
        except OSError as error:
            log.error("a block could not be written to %s: %s", self.config.disk_path, error)
        finally:
            with self._lock:
                self._table.release(lease.id)

    def _from_disk(self, keys: Sequence[bytes]) -> None:
        """Bring the leading blocks that are on disk only back to memory."""
        if self._disk is None:
            return
        with self._lock:
            wanted = [key for key in keys[: self._match(keys)] if key not in self._table]
        for key in wanted:
            with self._lock:
                lease = self._table.begin(_SELF, [key], time.monotonic())
            if not lease.keys:
                return  # another brings it, or there is no room
            with self._disk_lock:
                loaded = self._disk.load(key, self._bytes(lease.slots[0]), time.monotonic())
            with self._lock:
                if loaded is None:
                    self._table.release(lease.id)
                    return
                self._table.finish(lease.id, [loaded], time.monotonic())


def _host(address: str) -> str:
    return address.removeprefix("tcp://").rpartition(":")[0]


def _address(memory: memoryview) -> int:
    return int(np.frombuffer(memory, np.uint8).ctypes.data)


def _order(config: NodeConfig) -> Eviction[bytes]:
    order: Eviction[bytes] = EVICTIONS[config.eviction]()  # type: ignore[assignment]
    return order
