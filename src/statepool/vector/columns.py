"""Typed columns beside the vectors: one array each, text as codes into a list of words."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from statepool.core.errors import InvalidRequest

from .errors import FilterError
from .settings import ColumnType

__all__ = ["Columns", "Values"]

Values = Mapping[str, Sequence[Any] | np.ndarray]
"""Per column, one value per row."""

_KINDS: dict[ColumnType, Any] = {"str": np.int32, "i64": np.int64, "f64": np.float64}


class Columns:
    """Values of rows by their place. Rows may be written while others are looked at.

    Args:
        types: Per column ``str``, ``i64`` or ``f64``.
    """

    def __init__(self, types: Mapping[str, ColumnType]) -> None:
        self.types = dict(types)
        self._arrays: dict[str, np.ndarray] = {name: np.empty(0, _KINDS[kind]) for name, kind in types.items()}
        self._words: dict[str, dict[str, int]] = {name: {} for name, kind in types.items() if kind == "str"}
        self._lock = threading.Lock()

    def check(self, values: Values | None, count: int) -> dict[str, np.ndarray]:
        """The values as arrays ``[count]`` of their column's type: int64, float64 or objects.

        Raises:
            InvalidRequest: a column that is missing, unknown, of another length or of another type.
        """
        given = {} if values is None else dict(values)
        for name in given:
            if name not in self.types:
                known = ", ".join(self.types) or "none"
                raise InvalidRequest(f"columns: the index has no column '{name}' (it has {known})", param="columns")
        found = {}
        for name, kind in self.types.items():
            if name not in given:
                raise InvalidRequest(f"columns: '{name}' is missing; give one value per row", param="columns")
            array = np.asarray(given[name], dtype=object if kind == "str" else None)
            if array.shape != (count,):
                raise InvalidRequest(f"columns: '{name}' must hold {count} values, one per row", param="columns")
            found[name] = self._typed(name, kind, array)
        return found

    def _typed(self, name: str, kind: ColumnType, array: np.ndarray) -> np.ndarray:
        if kind == "str":
            if not all(isinstance(one, str) for one in array):
                raise InvalidRequest(f"columns: '{name}' holds values that are no text; pass strings", param="columns")
            return array
        if len(array) and array.dtype.kind not in ("iu" if kind == "i64" else "iuf"):
            wanted = "integers" if kind == "i64" else "numbers"
            raise InvalidRequest(f"columns: '{name}' holds {array.dtype} values; pass {wanted}", param="columns")
        if array.dtype.kind == "u" and len(array) and int(array.max()) >= 2**63:
            raise InvalidRequest(f"columns: '{name}' holds {array.max()}, above 2^63 - 1", param="columns")
        typed = array.astype(_KINDS[kind])
        if not np.isfinite(typed).all():
            raise InvalidRequest(f"columns: '{name}' holds NaN or infinity; pass finite numbers", param="columns")
        return typed

    def put(self, places: np.ndarray, values: Mapping[str, np.ndarray]) -> None:
        """Write checked values of rows; nobody looks at these rows yet."""
        if not len(places):
            return
        with self._lock:
            for name, given in values.items():
                self._arrays[name] = _grown(self._arrays[name], int(places.max()) + 1)
                if name in self._words:
                    words = self._words[name]
                    given = np.array([words.setdefault(one, len(words)) for one in given], np.int32)
                self._arrays[name][places] = given

    def take(self, places: np.ndarray) -> dict[str, np.ndarray]:
        """Values of rows, as ``check`` answers them."""
        found = {}
        for name, array in self._arrays.items():
            values = array[places]
            if name in self._words:
                words = np.array([*self._words[name], ""], dtype=object)
                values = words[values]
            found[name] = values
        return found

    def array(self, name: str) -> np.ndarray:
        """A column ``[n]``; text as codes. n may grow, an array does not.

        Raises:
            FilterError: there is none of that name.
        """
        if name not in self.types:
            known = ", ".join(self.types) or "none"
            raise FilterError(f"filter: the index has no column '{name}' (it has {known})", param="filter")
        return self._arrays[name]

    def code(self, name: str, word: str) -> int:
        """Of a word in a column of text; -1 if no row has it."""
        return self._words[name].get(word, -1)

    def __len__(self) -> int:
        return min(map(len, self._arrays.values()), default=0)

    def sections(self, count: int) -> dict[str, np.ndarray]:
        """Arrays to keep in a file: the first ``count`` rows."""
        found = {f"column {name}": array[:count] for name, array in self._arrays.items()}
        for name, words in self._words.items():
            found[f"words {name}"] = np.frombuffer(json.dumps(list(words)).encode(), np.uint8)
        return found

    @classmethod
    def of(cls, types: Mapping[str, ColumnType], sections: Mapping[str, np.ndarray], count: int) -> Columns:
        """From the arrays of a file.

        Raises:
            KeyError, ValueError: they do not fit together.
        """
        columns = cls(types)
        for name, kind in columns.types.items():
            array = sections[f"column {name}"]
            if array.dtype != _KINDS[kind] or array.shape != (count,):
                raise ValueError(f"column {name} has not the shape of the index")
            columns._arrays[name] = array
            if kind == "str":
                words = json.loads(sections[f"words {name}"].tobytes())
                columns._words[name] = {word: code for code, word in enumerate(words)}
                if len(array) and not 0 <= array.min() <= array.max() < len(words):
                    raise ValueError(f"column {name} has a code without a word")
        return columns


def _grown(array: np.ndarray, count: int) -> np.ndarray:
    """Room for ``count``; readers keep the array they have."""
    if count <= len(array):
        return array
    larger = np.zeros(max(count, 2 * len(array), 1024), array.dtype)
    larger[: len(array)] = array
    return larger
