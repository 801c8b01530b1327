"""Text ids: the numbers that index, log and filters know rows by, and the way back to the text.

The number of a text is 63 bits of its BLAKE2b hash, so it is the same in every process and nothing has to be allotted.
Two texts of one number are an error when the second comes: among a million texts the chance is one in 20 million.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Self

import numpy as np

from statepool.core.errors import InvalidRequest

__all__ = ["Ids", "Names", "are_texts"]

Ids = Sequence[int] | Sequence[str] | np.ndarray
"""One per row: integers from 0 to 2^63 - 1, or texts."""


def are_texts(ids: Any) -> bool:
    """Whether ids are meant as texts."""
    found = np.asarray(ids, dtype=None if isinstance(ids, np.ndarray) else object)
    return found.size > 0 and isinstance(found.reshape(-1)[0], str)


class Names:
    """Texts by their number. Any number of threads may look and learn."""

    def __init__(self) -> None:
        self._texts: dict[int, str] = {}

    def key(self, text: Any) -> int:
        """The number of a text; -1 for what is none, or has the number of another that is known."""
        if not isinstance(text, str):
            return -1
        key = _number(text)
        return key if self._texts.get(key, text) == text else -1

    def keys(self, ids: Any, count: int) -> np.ndarray:
        """int64 ``[count]``.

        Raises:
            InvalidRequest: no texts, not one for each of ``count`` rows, one twice, or one with the number of another.
        """
        found = np.asarray(ids, dtype=object)
        if found.shape != (count,) or not all(isinstance(one, str) for one in found):
            raise InvalidRequest(f"ids: must be {count} texts, one per row; this index has text ids", param="ids")
        if len(set(found.tolist())) != count:
            raise InvalidRequest("ids: an id occurs twice; every row needs its own", param="ids")
        keys = np.array([_number(one) for one in found], np.int64)
        for text, key in zip(found, keys.tolist(), strict=True):
            self._check(text, self._texts.get(key, text))
        return keys

    def learn(self, ids: Any, keys: np.ndarray) -> None:
        """Remember texts by their ``keys``.

        Raises:
            InvalidRequest: another text has the same number.
        """
        for text, key in zip(ids, keys.tolist(), strict=True):
            self._check(text, self._texts.setdefault(key, str(text)))

    def _check(self, text: str, known: str) -> None:
        if text != known:
            raise InvalidRequest(f"ids: {text!r} and {known!r} have one hash; rename one of them", param="ids")

    def texts(self, keys: np.ndarray) -> np.ndarray:
        """Of numbers that were learnt, as objects."""
        found = np.empty(len(keys), dtype=object)
        found[:] = [self._texts[key] for key in keys.tolist()]
        return found

    def sections(self, keys: np.ndarray) -> dict[str, np.ndarray]:
        """What a file keeps of them."""
        return {"texts": np.frombuffer(json.dumps(self.texts(keys).tolist()).encode(), np.uint8)}

    @classmethod
    def of(cls, sections: Mapping[str, np.ndarray]) -> Self:
        """From the arrays of a file.

        Raises:
            KeyError, ValueError: they do not fit together.
        """
        names, texts = cls(), json.loads(sections["texts"].tobytes())
        keys = sections["ids"]
        if len(texts) != len(keys) or [_number(one) for one in texts] != keys.tolist():
            raise ValueError("the texts of ids are not those of the rows")
        names.learn(texts, keys)
        return names


def _number(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "little") >> 1
