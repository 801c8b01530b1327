"""What a client and the server of an index say to each other: JSON, in which every float32 keeps its bits.

A float32 is written as the shortest decimal of the same float64, and read back as that; so vectors and distances are
over the wire what they are in memory.
"""

from __future__ import annotations

from typing import Any

import msgspec

from statepool.core import errors
from statepool.core.errors import Overloaded, StatepoolError

from .answer import Stats
from .errors import DimensionError, FilterError, IndexCorruptError, ReadOnlyError
from .log import Durability

__all__ = ["Answers", "Change", "Found", "Named", "Rows", "Search", "described", "raised"]

_KINDS: dict[str, type[StatepoolError]] = {
    kind.code: kind
    for kind in (
        *(DimensionError, FilterError, ReadOnlyError),
        *(errors.InvalidRequest, errors.NotFound, errors.PayloadTooLarge, errors.Unauthorized, errors.Unavailable),
        *(errors.OutcomeUnknown, errors.StoreFull, errors.StoreReadOnly),
    )
}


class Search(msgspec.Struct, forbid_unknown_fields=True):
    """``POST /search``: arguments as those of ``Index.search``, or of ``Index.exact``."""

    queries: list[list[float]]
    """float32 ``[m, dim]``."""
    k: int = 10
    ef: int | None = None
    filter: dict[str, Any] | None = None
    exact: bool = False


class Found(msgspec.Struct):
    """What one query found; see ``Result``."""

    ids: list[int | str]
    distances: list[float]
    truncated: bool
    stats: Stats


class Answers(msgspec.Struct):
    """Of ``POST /search``: one for each query."""

    results: list[Found]


class Rows(msgspec.Struct, forbid_unknown_fields=True):
    """``POST /add`` and ``POST /update``."""

    ids: list[int | str]
    vectors: list[list[float]]
    columns: dict[str, list[str | int | float]] | None = None
    durability: Durability | None = None


class Named(msgspec.Struct, forbid_unknown_fields=True):
    """``POST /get``."""

    ids: list[int | str]


class Change(Named, forbid_unknown_fields=True):
    """``POST /delete``."""

    durability: Durability | None = None


def described(error: StatepoolError) -> dict[str, Any]:
    """The body of a refusal."""
    about: dict[str, Any] = {"message": error.message, "code": error.code, "param": error.param}
    if isinstance(error, IndexCorruptError):
        about |= {"section": error.section, "offset": error.offset}
    return {"error": about}


def raised(status: int, body: bytes) -> StatepoolError:
    """The error that a server described, as the class that it raised."""
    try:
        about = msgspec.json.decode(body)["error"]
        message, code, param = about["message"], about["code"], about["param"]
        if code == IndexCorruptError.code:
            return IndexCorruptError(message, about["section"], about["offset"])
    except (msgspec.DecodeError, LookupError, TypeError):
        return errors.Unavailable(f"the server's answer is not one of an index: status {status}, {body[:200]!r}")
    if code == Overloaded.code:
        return Overloaded(message)
    return _KINDS.get(code, StatepoolError)(message, param=param)
