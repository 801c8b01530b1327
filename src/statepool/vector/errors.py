"""What can go wrong with an index."""

from __future__ import annotations

from statepool.core.errors import Corruption, InvalidRequest


class DimensionError(InvalidRequest):
    """A vector has another number of values than the index."""

    code = "wrong_dimension"


class ReadOnlyError(InvalidRequest):
    """The index was opened for reading only."""

    code = "read_only"


class IndexCorruptError(Corruption):
    """The file of an index is damaged or is none.

    ``section`` names the part, ``offset`` the byte in the file.
    """

    code = "index_corrupt"

    def __init__(self, message: str, section: str, offset: int) -> None:
        super().__init__(message)
        self.section, self.offset = section, offset


class FilterError(InvalidRequest):
    """A filter names an unknown column, compares it with a value of another type, or is none."""

    code = "wrong_filter"
