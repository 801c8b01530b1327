"""The stores under measurement, one file each. A store is imported only in the process that uses it."""

from __future__ import annotations

from importlib import import_module

from bench.store.systems.base import System

_CLASSES = {
    "floor": ("floor", "Floor"),
    "ours": ("ours", "Ours"),
    "rocksdb": ("rocksdb", "Rocks"),
    "lmdb": ("lmdb", "Lmdb"),
    "sqlite": ("sqlite", "Sqlite"),
    "redis": ("redis", "Redis"),
    "redis-pipelined": ("redis", "Pipelined"),
}


def make(name: str) -> System:
    """The store ``name``, not opened yet.

    Raises:
        ImportError: its package is not installed here.
    """
    module, kind = _CLASSES[name]
    system: System = getattr(import_module(f"bench.store.systems.{module}"), kind)()
    return system
