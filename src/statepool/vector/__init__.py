"""A search index over vectors: one graph, several engines, one query on as many cores as pay."""

from .errors import DimensionError, IndexCorruptError
from .index import Index, Result, Stats

__all__ = ["DimensionError", "Index", "IndexCorruptError", "Result", "Stats"]
