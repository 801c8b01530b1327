"""An index that a server has: the methods of an index, over HTTP, with the standard library alone."""

from __future__ import annotations

import http.client
import threading
from typing import Any, Self
from urllib.parse import urlsplit

import msgspec
import numpy as np

from statepool.core.errors import InvalidConfig, OutcomeUnknown, Unavailable

from .answer import Result
from .columns import Values
from .log import Durability
from .names import Ids
from .protocol import Answers, Change, Found, Named, Rows, Search, raised
from .searching import Filter, Searching
from .settings import Settings

__all__ = ["RemoteIndex"]

_AT_ONCE = 256
"""Queries or rows of one request."""

_answers = msgspec.json.Decoder(Answers)


class RemoteIndex(Searching):
    """What ``statepool vector serve`` serves. Its answers have the bits of the index itself.

    Any number of threads may use it: each waits on a connection of its own, and searches keep theirs for the next.
    It is also an index for ``RetrievalTool``. What it shares with all indexes is ``Searching``; ``add``, ``update``,
    ``delete`` and ``get`` are written out here and in ``LiveIndex``, since a base of their own would hold nothing else.

    Args:
        url: ``http://host:port``, or ``https://`` where something in between speaks it.
        api_key: the server's, if it has one.
        timeout_s: how long one request may take.

    Raises:
        InvalidConfig: ``url`` is no such address. Unavailable: nobody answers there. Unauthorized: the key is wrong.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = 60.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidConfig(f"url: {url!r} is no address; write http://host:port", param="url")
        self.url = url.rstrip("/")
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port, self._path, self._timeout_s = (
            parts.hostname,
            parts.port,
            parts.path.rstrip("/"),
            timeout_s,
        )
        self._headers = {"Content-Type": "application/json"} | ({} if api_key is None else {"X-API-Key": api_key})
        self._idle: list[http.client.HTTPConnection] = []
        self._gate = threading.Lock()
        try:
            self.settings = Settings(**self.stats()["settings"])
        except BaseException:
            self.close()
            raise
        self.dim, self.metric, self.dtype = self.settings.dim, self.settings.metric, self.settings.dtype

    def search(self, q: np.ndarray, k: int = 10, ef: int | None = None, *, filter: Filter | None = None) -> Result:  # noqa: A002
        """The ``k`` rows nearest to ``q``, approximately, on one thread; arguments and errors as for ``Index.search``.

        Raises:
            Overloaded: too many queries wait there. Unavailable: the server is gone.
        """
        return self._search(self._query(q)[None], k, ef, filter)[0]

    def exact(self, q: np.ndarray, k: int = 10, *, filter: Filter | None = None) -> Result:  # noqa: A002
        """The ``k`` rows nearest to ``q``, by looking at every row; errors as for ``search``."""
        return self._search(self._query(q)[None], k, None, filter, exact=True)[0]

    def search_batch(
        self,
        Q: np.ndarray,  # noqa: N803
        k: int = 10,
        ef: int | None = None,
        *,
        filter: Filter | None = None,  # noqa: A002 - the name of the literature
        workers: int = 0,
    ) -> list[Result]:
        """``search`` for every row of ``Q`` ``[m, dim]``, 256 a request; the server decides how many ``workers``."""
        queries = self._queries(Q)
        parts = (queries[at : at + _AT_ONCE] for at in range(0, len(queries), _AT_ONCE))
        return [result for part in parts for result in self._search(part, k, ef, filter)]

    def get(self, ids: Ids) -> np.ndarray:
        """The vectors as they are stored, float32 ``[len(ids), dim]``.

        Raises:
            NotFound: an id that is not in the index.
        """
        found = msgspec.json.decode(self._ask("POST", "/get", Named(_plain(ids))))["vectors"]
        return np.array(found, np.float32).reshape(len(found), self.dim)

    def add(
        self,
        X: np.ndarray,  # noqa: N803
        ids: Ids,
        *,
        columns: Values | None = None,
        durability: Durability | None = None,
    ) -> int:
        """Add rows, all or none, in one request; arguments and errors as for ``LiveIndex.add``.

        Raises:
            OutcomeUnknown: the connection broke before the answer: they were added, or not.
        """
        return self._change("/add", self._rows(X, ids, columns, durability))

    def update(
        self,
        ids: Ids,
        X: np.ndarray,  # noqa: N803
        *,
        columns: Values | None = None,
        durability: Durability | None = None,
    ) -> int:
        """Replace rows; arguments and errors as for ``LiveIndex.update``, and OutcomeUnknown as for ``add``."""
        return self._change("/update", self._rows(X, ids, columns, durability))

    def delete(self, ids: Ids, *, durability: Durability | None = None) -> int:
        """Delete rows; answers how many were there. OutcomeUnknown as for ``add``."""
        return self._change("/delete", Change(_plain(ids), durability))

    def compact(self) -> int:
        """Have index and log written into one new file; answers the number of rows. Changes wait meanwhile.

        Raises:
            OutcomeUnknown: it takes longer than ``timeout_s``, or the connection broke.
        """
        return self._change("/compact", {})

    def stats(self) -> dict[str, Any]:
        """Figures of the index, and of what was asked of its server."""
        found: dict[str, Any] = msgspec.json.decode(self._ask("GET", "/stat", None))
        return found

    def __len__(self) -> int:
        return int(self.stats()["rows"])

    def close(self) -> None:
        """Let go of the connections."""
        with self._gate:
            while self._idle:
                self._idle.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rows(self, X: np.ndarray, ids: Ids, columns: Values | None, durability: Durability | None) -> Rows:  # noqa: N803
        values = None if columns is None else {name: _plain(each) for name, each in columns.items()}
        return Rows(_plain(ids), self._queries(X).tolist(), values, durability)

    def _search(
        self, queries: np.ndarray, k: int, ef: int | None, chosen: Filter | None, *, exact: bool = False
    ) -> list[Result]:
        asked = Search(queries.tolist(), k, ef, None if chosen is None else dict(chosen), exact)
        return [self._result(each) for each in _answers.decode(self._ask("POST", "/search", asked)).results]

    def _result(self, found: Found) -> Result:
        ids = np.array(found.ids, object if self.settings.text_ids else np.int64)
        return Result(ids, np.array(found.distances, np.float32), found.truncated, found.stats)

    def _change(self, path: str, body: Any) -> int:
        return int(msgspec.json.decode(self._ask("POST", path, body, changes=True))["changed"])

    def _ask(self, method: str, path: str, body: Any, *, changes: bool = False) -> bytes:
        """The body of an answer. A kept connection may have been closed meanwhile: then a question is asked again, and
        a change, which must not be made twice, never takes one.
        """
        data = None if body is None else msgspec.json.encode(body)
        while True:
            connection, kept = self._connection(new=changes)
            sent = False
            try:
                if not kept:
                    connection.connect()
                sent = True
                connection.request(method, self._path + path, data, self._headers)
                answer = connection.getresponse()
                said = answer.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if kept and not isinstance(error, TimeoutError):
                    continue
                if changes and sent:
                    unknown = (
                        f"{self.url}: no answer to {path} ({_why(error)}); it was done or not, get the rows to see"
                    )
                    raise OutcomeUnknown(unknown) from None
                raise Unavailable(f"no vector server answers at {self.url}: {_why(error)}") from None
            if not answer.will_close:
                with self._gate:
                    self._idle.append(connection)
            if answer.status != 200:
                raise raised(answer.status, said)
            return said

    def _connection(self, *, new: bool) -> tuple[http.client.HTTPConnection, bool]:
        with self._gate:
            if self._idle and not new:
                return self._idle.pop(), True
        return self._kind(self._host, self._port, timeout=self._timeout_s), False


def _plain(values: Any) -> list[Any]:
    """As JSON has them."""
    return list(np.asarray(values, dtype=None if isinstance(values, np.ndarray) else object).tolist())


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__
