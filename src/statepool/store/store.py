"""A store: a folder, opened by one process at a time for writing."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from statepool.core.errors import InvalidRequest, NotFound, StoreReadOnly
from statepool.store.codec import CodecName, codec
from statepool.store.coordination import Counter, Lock
from statepool.store.dicts import Dict, SortedDict, VersionedDict, make_dict
from statepool.store.native import Kind, Level, core, level_number
from statepool.store.sequences import Log, Queue, Stack
from statepool.store.transaction import Pending, Transaction

_log = logging.getLogger("statepool.store")
_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_VERSIONED = {"b+tree": Kind.MV_SORTED_DICT, "bst": Kind.MV_BST}
_SORTED = {"b+tree": Kind.SORTED_DICT, "skip list": Kind.SKIP_LIST, "bst": Kind.BST}


def open(  # noqa: A001 - `statepool.store.open(path)`, as `shelve.open` and `dbm.open` are called
    path: str | os.PathLike[str],
    *,
    mode: Literal["write", "read"] = "write",
    durability: Level = "power",
    create: bool = True,
    capacity: int | str = "1GiB",
    segment_size: int | str = "64MiB",
    checkpoint_every: int | str = "256MiB",
    shared: bool = True,
    timeout: float = 10.0,
    max_age: float = 0.0,
    cache: int | str = "16MiB",
    epoch: int = 0,
) -> Store:
    """Open the store in a folder, or make one there, or connect to the daemon that serves one.

    Args:
        path: the folder; or ``tcp://host:port`` or ``unix:///path`` of a daemon (``statepool store serve``). Several
            addresses with commas between them are those of a primary and of the mirrors that may take over.
        mode: ``write`` takes the folder for this process; ``read`` sees the memory of the process that has it, with no
            lock and no message.
        durability: what writes have survived when they return: ``process`` (the process may be killed), ``power`` (the
            machine may lose power) or ``mirror`` (it may be lost: a mirror has them too; of daemons only). Writes may
            differ one by one.
        create: make the store if there is none.
        capacity: bytes of heap at most, fixed when the store is made; pages are taken when first used.
        segment_size: bytes of one file of the log, fixed when the store is made.
        checkpoint_every: bytes of log after which a checkpoint is written, so that opening stays fast.
        shared: keep the heap in shared memory, where other processes read it and a restarted one finds it again.
        timeout: seconds until a call to a daemon that does not answer gives up.
        max_age: of daemons: ``d[key]``, ``d.get(key)`` and ``key in d`` may be answered from this process's memory,
            with what the store held at most so many seconds ago. Own writes are seen at once; transactions, locks,
            counters and ``compare_and_set`` always ask.
        cache: of daemons: bytes at most of what was read, for ``max_age`` and for each snapshot.
        epoch: the least number of this opening in the log; for daemons, whose terms start at high ones.

    Raises:
        Unavailable: no daemon answers at the address.
        StoreLocked: another process has it open.
        StoreCorrupt: stored bytes contradict their checksums; nothing was changed.
        StoreFormat: a newer statepool wrote it.
        NotFound: there is no store and ``create`` is false, or with ``mode="read"`` no process has it open.
        InvalidRequest: an argument is out of range.
    """
    if mode not in ("write", "read"):
        raise InvalidRequest(f"mode: '{mode}' is neither write nor read", param="mode")
    if "://" in os.fspath(path):
        return _connect(os.fspath(path), mode, durability, timeout, max_age, _bytes("cache", cache, 0))
    if max_age:
        raise InvalidRequest("max_age: a store of this machine is read in place; leave it out", param="max_age")
    if durability == "mirror":
        raise InvalidRequest("durability: a mirror follows a daemon; see `statepool store serve`", param="durability")
    if mode == "read":
        return Store(_ReadOnly(os.fspath(path)), Path(path), durability)
    _check_role(Path(path))
    native = core.Store(
        os.fspath(path),
        capacity=_bytes("capacity", capacity, 1 << 20),
        segment_size=_bytes("segment_size", segment_size, 64 << 10),
        level=level_number(durability),
        create=create,
        shared=shared,
        checkpoint_bytes=_bytes("checkpoint_every", checkpoint_every, 1 << 16),
        epoch=epoch,
    )
    _report(native.facts(), path)
    return Store(native, Path(path), durability)


def _report(facts: Mapping[str, int], path: str | os.PathLike[str]) -> None:
    if facts["attached"] and facts["durable_lsn"] and not facts["log_hinted"]:
        _log.warning("%s: the killed owner's note of the log's end was wrong; the whole log was read instead", path)


def _connect(urls: str, mode: str, durability: str, timeout: float, max_age: float, room: int) -> Store:
    from statepool.store.net.remote import RemoteNative

    if mode != "write":
        raise InvalidRequest("mode: a store is read in place only on its own machine; leave it out", param="mode")
    if not 0.0 <= max_age < float("inf"):
        raise InvalidRequest(f"max_age: {max_age} is no number of seconds", param="max_age")
    places = [url.strip() for url in urls.split(",")]
    native = RemoteNative(places, level_number(durability), timeout, max_age=max_age, room=room)
    return Store(native, urls, durability)


def _check_role(path: Path) -> None:
    if not (path / "node").exists():
        return
    from statepool.store.net.node import read_node

    node = read_node(path)
    if node is not None and node.mirror:
        raise InvalidRequest(f"path: {path} is the mirror of another store; `statepool store promote` ends that")


class _ReadOnly(core.Reader):  # type: ignore[misc]  # the core is not annotated
    """A reader with the methods of an owner: those that write say that they cannot."""

    def structure(self, name: str, kind: int, create: bool) -> int:
        return int(super().structure(name, kind))

    def _refuse(self, *arguments: Any, **named: Any) -> Any:
        raise StoreReadOnly("store: it was opened with mode='read'; only the process that owns it writes")

    def transaction(self, level: int, client: int, sequence: int) -> Pending:
        return Pending(self, level, client, sequence)

    put = erase = update = commit = drop = pin = flush = wait = checkpoint = last_of = _refuse

    def facts(self) -> Mapping[str, int]:
        return {"applied_lsn": self.applied_lsn, "durable_lsn": self.durable_lsn, "read_retries": self.retries}


def _bytes(field: str, size: int | str, least: int) -> int:
    match = re.fullmatch(r"\s*(\d+)\s*([kmgt]ib|b)?\s*", str(size), re.IGNORECASE)
    if match is None:
        raise InvalidRequest(f"{field}: '{size}' is no size; write a number of bytes or e.g. 512MiB", param=field)
    value = int(match[1]) * _UNITS[(match[2] or "").upper()]
    if value < least:
        raise InvalidRequest(f"{field}: {value} bytes is too small, the least is {least}", param=field)
    return value


class Store:
    """Durable structures by name. Made by :func:`open`; close it, or use it as a context manager.

    Structures are made when first asked for. Asking for one by another kind raises ``InvalidRequest``.
    """

    def __init__(self, native: Any, path: Path | str, durability: str) -> None:
        self.native, self.path, self.durability = native, path, durability

    # ---- structures -----------------------------------------------------------------------------------------------

    def _structure(self, name: str, kind: Kind) -> int:
        identity: int = self.native.structure(name, int(kind), True)
        return identity

    def dict(self, name: str, *, keys: CodecName = "bytes", values: CodecName = "bytes") -> Dict:
        """A dictionary without order: a hash table."""
        face: Dict = make_dict(Dict, self, self._structure(name, Kind.DICT), name, codec(keys), codec(values))
        return face

    def sorted_dict(
        self,
        name: str,
        *,
        keys: CodecName = "bytes",
        values: CodecName = "bytes",
        structure: str = "b+tree",
    ) -> SortedDict:
        """A dictionary in the order of its keys: a B+tree, or a ``skip list`` or ``bst`` on request."""
        if structure not in _SORTED:
            raise InvalidRequest(f"structure: '{structure}' is none of {', '.join(_SORTED)}", param="structure")
        identity = self._structure(name, _SORTED[structure])
        face: SortedDict = make_dict(SortedDict, self, identity, name, codec(keys), codec(values))
        return face

    def versioned_dict(
        self,
        name: str,
        *,
        keys: CodecName = "bytes",
        values: CodecName = "bytes",
        structure: str = "b+tree",
    ) -> VersionedDict:
        """A sorted dictionary with snapshots: a multi-version B+tree, or a ``bst`` on request."""
        if structure not in _VERSIONED:
            raise InvalidRequest(f"structure: '{structure}' is none of {', '.join(_VERSIONED)}", param="structure")
        identity = self._structure(name, _VERSIONED[structure])
        face: VersionedDict = make_dict(VersionedDict, self, identity, name, codec(keys), codec(values))
        return face

    def queue(self, name: str, *, values: CodecName = "bytes") -> Queue:
        """A queue with leases and acknowledgements."""
        return Queue(self, self._structure(name, Kind.QUEUE), name, codec(values))

    def stack(self, name: str, *, values: CodecName = "bytes") -> Stack:
        """A stack."""
        return Stack(self, self._structure(name, Kind.STACK), name, codec(values))

    def log(self, name: str, *, values: CodecName = "bytes") -> Log:
        """A sequence that is only appended to."""
        return Log(self.sorted_dict(name, values=values), self._cells("log"))

    def counter(self, name: str) -> Counter:
        """An integer."""
        return Counter(self._cells("counter"), name)

    def lock(self, name: str, *, lease: float = 10.0) -> Lock:
        """A lock that ends by itself ``lease`` seconds after its holder died."""
        if lease <= 0:
            raise InvalidRequest(f"lease: {lease} seconds; a lock needs more than 0", param="lease")
        return Lock(self._cells("lock"), name, lease)

    def _cells(self, purpose: str) -> Dict:
        return self.dict(f"statepool.{purpose}", keys="str", values="msgpack")

    def structures(self) -> Mapping[str, str]:
        """Names of all structures and their kinds."""
        return {name: Kind(kind).name.lower() for name, _, kind in self.native.structures()}

    def drop(self, name: str) -> None:
        """Delete a structure and all in it.

        Raises:
            NotFound: there is none by that name.
        """
        for present, identity, _ in self.native.structures():
            if present == name:
                self.native.drop(identity)
                return
        raise NotFound(f"name: there is no structure '{name}'", param="name")

    # ---- all of it --------------------------------------------------------------------------------------------------

    def transaction(self, *, durability: Level | None = None, op_id: tuple[int, int] | None = None) -> Transaction:
        """Several operations, all or nothing: see :class:`Transaction`.

        ``op_id`` = (client, sequence) makes it happen once only: with the same pair again, nothing is done.
        """
        return Transaction(self, durability, op_id)

    def committed(self, op_id: tuple[int, int]) -> bool:
        """Whether the operation by this name took effect: what to ask after a crash or an ``OutcomeUnknown``."""
        return bool(self.native.last_of(op_id[0])[0] >= op_id[1])

    def sync(self) -> None:
        """Make everything written so far survive a power loss, whatever its level."""
        self.native.flush()

    def wait(self, lsn: int) -> None:
        """Return when operation number ``lsn`` survives a power loss."""
        self.native.wait(lsn)

    def checkpoint(self) -> None:
        """Write the whole heap out, so that the next opening replays nothing."""
        self.native.checkpoint()

    @property
    def applied_lsn(self) -> int:
        """Number of the last operation that readers see."""
        return int(self.native.applied_lsn)

    @property
    def durable_lsn(self) -> int:
        """Number of the last operation that survives a power loss."""
        return int(self.native.durable_lsn)

    def stat(self) -> Mapping[str, Any]:
        """Figures of the store: log, heap, commits, and how durable its writes are."""
        return {"path": str(self.path), "durability": self.durability, **self.native.facts()}

    def close(self) -> None:
        """Make everything durable and let the folder go. Closing twice is fine."""
        self.native.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[str]:
        return iter(self.structures())
