"""Changes as the log keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from statepool.core.errors import Corruption
from statepool.core.wire import Codec

from .log import Record

__all__ = ["Change", "decode", "encode"]

Kind = Literal["add", "update", "delete"]

_KINDS: tuple[Kind, ...] = ("add", "update", "delete")


@dataclass(slots=True)
class Change:
    """Rows that came, were replaced or went."""

    ids: Any
    """int64 ``[n]``."""
    rows: Any = None
    """float32 ``[n, dim]``."""
    columns: Any = None
    """Per column its values: an array, or a list of text."""
    texts: list[str] | None = None
    """Of new rows, where ids are text."""


_codec: Codec[Change] = Codec(Change)


def encode(kind: Kind, change: Change) -> tuple[int, bytes]:
    """Number and body of a record."""
    columns = {
        name: values.tolist() if values.dtype == object else values for name, values in (change.columns or {}).items()
    }
    return _KINDS.index(kind) + 1, _codec.encode(Change(change.ids, change.rows, columns, change.texts))


def decode(record: Record) -> tuple[Kind, Change]:
    """What a record says.

    Raises:
        Corruption: nothing that ``encode`` wrote.
    """
    if not 1 <= record.kind <= len(_KINDS):
        raise Corruption(f"log: operation {record.lsn} is of the unknown kind {record.kind}")
    change = _codec.decode(record.body)
    change.columns = {
        name: np.array(values, dtype=object) if isinstance(values, list) else values
        for name, values in change.columns.items()
    }
    return _KINDS[record.kind - 1], change
