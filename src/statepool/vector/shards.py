"""An index in several shards, each in a process of its own, with one merged answer; it survives the loss of shards.

The processes run on this machine, or wherever a ``Start`` puts them: ``statepool.cluster`` has one for Ray.
"""

from __future__ import annotations

import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

import numpy as np

from statepool.core.errors import InvalidRequest, Unavailable

from .answer import Result, Stats
from .check import check_search, floats, labels, same_width, within
from .columns import Values
from .index import Index
from .names import Ids, Names, are_texts
from .searching import Filter
from .settings import Settings
from .shard import KEY_VARIABLE, Found, Question, Reply, connect, questions, read_message, replies, write_message

__all__ = ["LocalShard", "RemoteShard", "Shard", "ShardLost", "ShardedIndex", "ShardedResult", "Start", "build_shards"]

Start = Callable[[str, tuple[str, ...], Mapping[str, str]], str]
"""Runs ``python -m module arguments`` with an environment somewhere, and answers the line that it prints. ``{host}``
in an argument stands for the address of the machine it runs on."""


MODULE = "statepool.vector.shard"
CONNECT_SECONDS = 10.0


class ShardLost(Unavailable):
    """A shard is gone, damaged or too slow."""

    code = "shard_lost"


class Shard(Protocol):
    """Part of an index, wherever it is. One thread at a time uses it."""

    name: str
    rows: int
    dim: int

    def ask(self, question: Question) -> None:
        """Begin to answer; ShardLost if there is nobody."""

    def answer(self, number: int, until: float) -> Reply:
        """The reply to that question, by ``time.monotonic() == until``; ShardLost without one."""

    def close(self) -> None:
        """Let go of it."""


class _Process:
    """A process at the other end of a line. ``wait`` until its index is open before asking."""

    def __init__(self, name: str, line: socket.socket) -> None:
        self.name, self.rows, self.dim, self._line = name, 0, 0, line

    def wait(self, timeout_s: float = 60.0) -> None:
        """Until the index is open.

        Raises:
            ShardLost: it could not be opened, or not in time.
        """
        hello = self.answer(0, time.monotonic() + timeout_s)
        if hello.error:
            raise ShardLost(f"{self.name}: {hello.error}")
        self.rows, self.dim = hello.rows, hello.dim

    def ask(self, question: Question) -> None:
        """Send it.

        Raises:
            ShardLost: the process is gone.
        """
        try:
            self._line.settimeout(1.0)
            write_message(self._line, questions.encode(question))
        except OSError as error:
            raise ShardLost(f"{self.name}: its process is gone") from error

    def answer(self, number: int, until: float) -> Reply:
        """Wait for the reply. One that does not come in time is the end of the line.

        Raises:
            ShardLost: the process is gone, or the reply not there in time.
        """
        try:
            self._line.settimeout(max(0.001, until - time.monotonic()))
            reply = replies.decode(read_message(self._line))
        except TimeoutError as error:
            # Half a message may have come: nothing on this line can be trusted any more.
            self.close()
            raise ShardLost(f"{self.name}: no answer in time") from error
        except OSError as error:
            raise ShardLost(f"{self.name}: its process is gone") from error
        assert reply.number == number, "one question at a time"
        return reply

    def close(self) -> None:
        """End the line, and with it the process."""
        self._line.close()


class LocalShard(_Process):
    """A process of this machine that has the index at ``path`` open. It starts at once.

    Args:
        path: What ``save`` wrote.
    """

    def __init__(self, path: str | Path) -> None:
        line, theirs = socket.socketpair()
        command = [sys.executable, "-m", MODULE, str(path), str(theirs.fileno())]
        with theirs:
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        super().__init__(str(path), line)

    def close(self) -> None:
        """End the process."""
        super().close()
        self.process.kill()
        self.process.wait()


class RemoteShard(_Process):
    """A process that was started somewhere and has the index at ``path`` there open.

    Args:
        path: What ``save`` wrote, as that machine names it.
        start: Starts it.

    Raises:
        ShardLost: it started and cannot be reached.
        Unavailable: as ``start``.
    """

    def __init__(self, path: str | Path, start: Start) -> None:
        key = secrets.token_hex(32)
        address = start(MODULE, (str(path), "{host}"), {KEY_VARIABLE: key})
        try:
            line = connect(address, key, CONNECT_SECONDS)
        except (OSError, ValueError) as error:
            raise ShardLost(f"{path}: nobody answers at {address!r}") from error
        super().__init__(str(path), line)


@dataclass(slots=True)
class ShardedResult(Result):
    """The nearest rows of all shards that answered."""

    lost: dict[str, str] = field(default_factory=dict)
    """Why others did not, by name."""

    @property
    def partial(self) -> bool:
        """Rows of a shard may be missing."""
        return bool(self.lost)


class ShardedIndex:
    """Searches all shards at once. A shard that does not answer makes the answer partial, not wrong.

    Args:
        shards: At least one; no id is in two of them.
        timeout_s: How long an answer may take; a slower shard counts as lost.

    Raises:
        InvalidRequest: no shards, or of different widths.
    """

    def __init__(self, shards: Sequence[Shard], timeout_s: float = 10.0) -> None:
        if not shards or len({shard.dim for shard in shards}) != 1:
            raise InvalidRequest("shards: give at least one, all of one width", param="shards")
        self.dim, self._timeout = shards[0].dim, timeout_s
        self._shards, self._lost = list(shards), dict[str, str]()
        self._rows = sum(shard.rows for shard in shards)
        self._number, self._lock = 0, threading.Lock()

    @classmethod
    def open(cls, paths: Sequence[str | Path], timeout_s: float = 10.0, *, start: Start | None = None) -> Self:
        """One process for each file.

        Args:
            paths: The files, as the machines name them that the processes run on.
            timeout_s: As for the class.
            start: Starts the processes; None for children of this one.

        Raises:
            ShardLost: one of them could not be opened.
            Unavailable: as ``start``.
        """
        opened: list[LocalShard | RemoteShard] = []
        try:
            opened.extend(LocalShard(path) if start is None else RemoteShard(path, start) for path in paths)
            for shard in opened:
                shard.wait()
            return cls(opened, timeout_s)
        except BaseException:
            for shard in opened:
                shard.close()
            raise

    def __len__(self) -> int:
        """Rows of all shards, lost ones too."""
        return self._rows

    def search(
        self,
        q: np.ndarray,
        k: int = 10,
        ef: int | None = None,
        *,
        filter: Filter | None = None,  # noqa: A002 - the name of the literature
    ) -> ShardedResult:
        """The ``k`` rows nearest to ``q`` among all shards that answer; every shard keeps ``ef`` candidates.

        Raises:
            DimensionError, InvalidRequest: as ``Index.search``; a wrong filter too.
            Unavailable: no shard answers.
        """
        return self._ask(floats("q", q, 1)[None], k, ef, filter, exact=False)[0]

    def exact(self, q: np.ndarray, k: int = 10, *, filter: Filter | None = None) -> ShardedResult:  # noqa: A002
        """The same by looking at every row."""
        return self._ask(floats("q", q, 1)[None], k, None, filter, exact=True)[0]

    def search_batch(
        self,
        Q: np.ndarray,  # noqa: N803
        k: int = 10,
        ef: int | None = None,
        *,
        filter: Filter | None = None,  # noqa: A002 - the name of the literature
    ) -> list[ShardedResult]:
        """``search`` for every row of ``Q`` ``[m, dim]``, all asked at once."""
        return self._ask(floats("Q", Q, 2), k, ef, filter, exact=False)

    @property
    def lost(self) -> dict[str, str]:
        """Shards that do not answer any more, and why."""
        return dict(self._lost)

    def close(self) -> None:
        """Let go of all shards."""
        with self._lock:
            for shard in self._shards:
                shard.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(
        self, queries: np.ndarray, k: int, ef: int | None, chosen: Filter | None, *, exact: bool
    ) -> list[ShardedResult]:
        same_width("q", queries.shape[1], self.dim)
        within("k", k, 1, 2**31 - 1) if exact else check_search(k, ef)
        with self._lock:
            self._number += 1
            question = Question(self._number, queries, k, ef, exact, None if chosen is None else dict(chosen))
            asked, until = [], time.monotonic() + self._timeout
            for shard in self._shards:
                if shard.name in self._lost:
                    continue
                try:
                    shard.ask(question)
                    asked.append(shard)
                except ShardLost as error:
                    self._lost[shard.name] = error.message
            answered = []
            for shard in asked:
                try:
                    reply = shard.answer(question.number, until)
                except ShardLost as error:
                    self._lost[shard.name] = error.message
                    continue
                if reply.damaged:
                    self._lost[shard.name] = reply.error
                else:
                    answered.append(reply)
        for reply in answered:
            if reply.error:
                raise InvalidRequest(reply.error)
        if not answered:
            raise Unavailable(f"shards: none answers ({'; '.join(self._lost.values())}); open the index again")
        return [self._merge(found, k) for found in zip(*(reply.found for reply in answered), strict=True)]

    def _merge(self, parts: Sequence[Found], k: int) -> ShardedResult:
        gaps = np.concatenate([part.distances for part in parts])
        ids = np.concatenate([np.asarray(p.ids, dtype=object if isinstance(p.ids, list) else None) for p in parts])
        order = np.argsort(gaps, kind="stable")[:k]
        stats: Stats = parts[0].stats
        for part in parts[1:]:
            stats = stats + part.stats
        # Shards work side by side: the longest is what was waited for.
        stats.ndc_max = max(part.stats.ndc_max for part in parts)
        return ShardedResult(
            ids[order], gaps[order], any(part.truncated for part in parts), stats, lost=dict(self._lost)
        )


def build_shards(
    folder: str | Path,
    X: np.ndarray,  # noqa: N803
    ids: Ids | None = None,
    *,
    shards: int,
    settings: Settings,
    columns: Values | None = None,
    seal: bool = True,
) -> list[Path]:
    """Build ``shards`` indices of the rows of ``X`` ``[n, dim]``, one after the other; each row is in one, by its id.

    Returns:
        The files, for ``ShardedIndex.open``.

    Raises:
        DimensionError, InvalidRequest: as ``Index.build``; fewer rows than shards, or a shard that gets none.
    """
    rows = floats("X", X, 2)
    named: np.ndarray = np.arange(len(rows)) if ids is None else np.asarray(ids, dtype=object)
    keys = Names().keys(named, len(rows)) if are_texts(named) else labels(np.asarray(named.tolist()), len(rows))
    within("shards", shards, 1, 4096)
    values: Mapping[str, np.ndarray] = {
        name: np.asarray(given, dtype=object if settings.columns.get(name) == "str" else None)
        for name, given in (columns or {}).items()
    }
    paths = []
    for number in range(shards):
        mine = np.flatnonzero(keys % shards == number)
        if not len(mine):
            raise InvalidRequest(f"shards: shard {number} of {shards} gets no rows; use fewer", param="shards")
        index = Index.of(settings)
        index.build(
            rows[mine],
            named[mine] if are_texts(named) else keys[mine],
            columns={name: given[mine] for name, given in values.items()},
        )
        if seal:
            index.seal()
        paths.append(Path(folder) / f"shard-{number:04d}.index")
        index.save(paths[-1])
    return paths
