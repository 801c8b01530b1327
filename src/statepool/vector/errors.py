"""What can go wrong with an index."""

from __future__ import annotations

from statepool.core.errors import Corruption, InvalidRequest


class DimensionError(InvalidRequest):
    """A vector has another number of values than the index."""

    code = "wrong_dimension"


class IndexCorruptError(Corruption):
    """The file of an index is damaged or is none."""

    code = "index_corrupt"
