"""A search index over vectors: one graph, several engines, one query on as many cores as pay."""

from .answer import Result, Stats
from .errors import DimensionError, FilterError, IndexCorruptError, ReadOnlyError
from .file import Report, verify
from .index import Index
from .kv import KVIndex
from .live import LiveIndex
from .opening import open  # noqa: A004 - the name users know from files
from .remote import RemoteIndex
from .settings import Settings
from .shards import ShardedIndex, ShardedResult, build_shards
from .tool import RetrievalTool
from .view import Snapshot

__all__ = [
    "DimensionError",
    "FilterError",
    "Index",
    "IndexCorruptError",
    "KVIndex",
    "LiveIndex",
    "ReadOnlyError",
    "RemoteIndex",
    "Report",
    "Result",
    "RetrievalTool",
    "Settings",
    "ShardedIndex",
    "ShardedResult",
    "Snapshot",
    "Stats",
    "build_shards",
    "open",
    "verify",
]
