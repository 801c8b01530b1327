"""A search index over vectors: one graph, several engines, one query on as many cores as pay."""

from .errors import DimensionError, IndexCorruptError, ReadOnlyError
from .file import Report, verify
from .index import Index, Result, Stats, open  # noqa: A004 - the name users know from files
from .kv import KVIndex
from .live import LiveIndex
from .tool import RetrievalTool

__all__ = [
    "DimensionError",
    "Index",
    "IndexCorruptError",
    "KVIndex",
    "LiveIndex",
    "ReadOnlyError",
    "Report",
    "Result",
    "RetrievalTool",
    "Stats",
    "open",
    "verify",
]
