"""Durable shared structures: what returns has survived, and any process of the machine can read it.

``open(path)`` gives a :class:`Store`; its dictionaries, queues, stacks and logs behave like Python's own containers.
After AsymNVM (arXiv 1809.09395): every operation is one record in an operation log, made durable in groups; the
structures live in a shared heap whose changes an undo journal protects.

Example:
    >>> import statepool.store, tempfile
    >>> with statepool.store.open(tempfile.mkdtemp()) as store:
    ...     users = store.dict("users")
    ...     users[b"ada"] = b"1815"
    ...     users[b"ada"]
    b'1815'
"""

from __future__ import annotations

from statepool.core.errors import (
    Conflict,
    Fenced,
    MirrorLost,
    OutcomeUnknown,
    SnapshotExpired,
    StoreCorrupt,
    StoreError,
    StoreFormat,
    StoreFull,
    StoreLocked,
    StoreReadOnly,
)
from statepool.store.coordination import Counter, Lock
from statepool.store.dicts import Dict, Snapshot, SortedDict, VersionedDict
from statepool.store.sequences import DeadLetter, Item, Log, Queue, Stack
from statepool.store.store import Store, open  # noqa: A004 - as `shelve.open` and `dbm.open` are called
from statepool.store.transaction import Transaction

__all__ = [
    "Conflict",
    "Counter",
    "DeadLetter",
    "Dict",
    "Fenced",
    "Item",
    "Lock",
    "Log",
    "MirrorLost",
    "OutcomeUnknown",
    "Queue",
    "Snapshot",
    "SnapshotExpired",
    "SortedDict",
    "Stack",
    "Store",
    "StoreCorrupt",
    "StoreError",
    "StoreFormat",
    "StoreFull",
    "StoreLocked",
    "StoreReadOnly",
    "Transaction",
    "VersionedDict",
    "open",
]
