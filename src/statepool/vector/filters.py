"""Which rows a search may find: an expression over columns, as a plain dictionary.

A dictionary, because agents write filters as JSON arguments of a tool and programs put values in without quoting.

    {"lang": "de"}                              equal
    {"lang": ["de", "fr"]}                      one of
    {"ts": {"ge": 5, "lt": 9}}                  a range: eq, ne, lt, le, gt, ge, all of those given
    {"lang": "de", "ts": {"ge": 5}}             all of them
    {"or": [{...}, {...}]}, {"and": [...]}, {"not": {...}}
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .columns import Columns
from .errors import FilterError
from .settings import WORDS

__all__ = ["GRAMMAR", "mask"]

GRAMMAR = (
    "Only rows that pass: {column: value}, {column: [values]}, {column: {eq|ne|lt|le|gt|ge: value}};"
    " several columns must all pass; {and: [filters]}, {or: [filters]}, {not: filter}."
)
"""What a model is told about filters."""

_ORDERS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}


def mask(columns: Columns, expression: Any, count: int) -> np.ndarray:
    """Of each of the first ``count`` rows whether it passes, bool ``[count]``.

    Raises:
        FilterError: an unknown column, a value of another type, or no expression at all.
    """
    if not isinstance(expression, Mapping) or not expression:
        raise FilterError(f"filter: {expression!r} is no filter; write for example {{'column': value}}", param="filter")
    found = np.ones(count, bool)
    for name, wanted in expression.items():
        found &= _joined(columns, name, wanted, count) if name in WORDS else _column(columns, name, wanted, count)
    return found


def _joined(columns: Columns, word: str, parts: Any, count: int) -> np.ndarray:
    if word == "not":
        return ~mask(columns, parts, count)
    if not isinstance(parts, list | tuple) or not parts:
        raise FilterError(f"filter: '{word}' needs a list of filters", param="filter")
    masks = [mask(columns, part, count) for part in parts]
    joined: np.ndarray = np.logical_and.reduce(masks) if word == "and" else np.logical_or.reduce(masks)
    return joined


def _column(columns: Columns, name: str, wanted: Any, count: int) -> np.ndarray:
    array = columns.array(name)[:count]
    if isinstance(wanted, list | tuple | set | frozenset):
        return np.isin(array, [_value(columns, name, one) for one in wanted])
    if not isinstance(wanted, Mapping):
        same: np.ndarray = array == _value(columns, name, wanted)
        return same
    if not wanted:
        raise FilterError(f"filter: '{name}' has an empty range; give one of {', '.join(_ORDERS)}", param="filter")
    found = np.ones(len(array), bool)
    for order, bound in wanted.items():
        if order not in _ORDERS:
            raise FilterError(f"filter: '{name}': '{order}' is none of {', '.join(_ORDERS)}", param="filter")
        if columns.types[name] == "str" and order not in ("eq", "ne"):
            raise FilterError(f"filter: '{name}' is text and has no order; use eq, ne or a list", param="filter")
        found &= _ORDERS[order](array, _value(columns, name, bound))
    return found


def _value(columns: Columns, name: str, value: Any) -> Any:
    kind = columns.types[name]
    if kind == "str":
        if isinstance(value, str):
            return columns.code(name, value)
        raise FilterError(f"filter: '{name}' is text; {value!r} is not", param="filter")
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise FilterError(f"filter: '{name}' is {kind}; {value!r} is no number", param="filter")
    if isinstance(value, int | np.integer):
        if not -(2**63) <= int(value) < 2**63:
            raise FilterError(f"filter: '{name}': {value!r} does not fit into 64 bits", param="filter")
    elif not np.isfinite(value):
        raise FilterError(f"filter: '{name}': {value!r} is not finite", param="filter")
    return value
