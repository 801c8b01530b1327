"""The archive: every orbit once, in a durable store, with a leaderboard per problem."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator

import statepool.store
from statepool.store import Conflict
from statepool.tasks.sequences.objectives import KINDS
from statepool.tasks.sequences.records import Record, verify

__all__ = ["Archive"]

_TRIES = 100


class Archive:
    """Records by orbit in a store that any number of processes may share.

    Args:
        where: A folder, or the address of a store's daemon.
    """

    def __init__(self, where: str | os.PathLike[str]) -> None:
        self._store = statepool.store.open(where)
        self._orbits = self._store.dict("sequences.orbits", keys="str", values="str")
        self._ranks = self._store.sorted_dict("sequences.ranks", keys="bytes", values="str")

    def add(self, record: Record) -> bool:
        """Check a record and keep it; False if its orbit is there with a value at least as good.

        A better record of the same orbit (another filter) replaces the one before.

        Raises:
            BadCertificate: The record does not hold.
        """
        verify(record)
        key = f"{_board(record)}|{record.orbit_key}"
        for _ in range(_TRIES):
            try:
                with self._store.transaction() as tx:
                    orbits, ranks = tx[self._orbits], tx[self._ranks]
                    held = orbits.get(key)
                    if held is not None:
                        before = Record.parse(held)
                        if _rank(before) <= _rank(record):
                            return False
                        del ranks[_rank(before)]
                    orbits[key] = record.json()
                    ranks[_rank(record)] = key
                return True
            except Conflict:
                continue
        raise Conflict(f"archive: {key} was changed by others {_TRIES} times; try again")

    def best(self, problem: str, n: int, params: dict[str, object] | None = None, limit: int = 10) -> Iterator[Record]:
        """The best records of one board, best first."""
        board = _name(problem, n, params or {}).encode()
        for _, key in self._ranks.range(board + b"\0", board + b"\1", limit=limit):
            yield Record.parse(self._orbits[key])

    def boards(self) -> Iterator[tuple[str, Record]]:
        """Every board with its leader."""
        low: bytes | None = None
        while True:
            first = next(iter(self._ranks.range(low, None, limit=1)), None)
            if first is None:
                return
            board = first[0].partition(b"\0")[0]
            yield board.decode(), Record.parse(self._orbits[first[1]])
            low = board + b"\1"

    def __len__(self) -> int:
        return len(self._orbits)

    def close(self) -> None:
        """Let the store go."""
        self._store.close()

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def _name(problem: str, n: int, params: dict[str, object]) -> str:
    return f"{problem} n={n} " + json.dumps(params, sort_keys=True)


def _board(record: Record) -> str:
    return _name(record.problem, len(record.codes[0]), record.params)


def _rank(record: Record) -> bytes:
    """Bytes that sort the better value first, then by orbit."""
    value = -record.number if KINDS[record.problem].better == "higher" else record.number
    bits = struct.unpack(">Q", struct.pack(">d", value))[0]
    bits = bits ^ 0xFFFFFFFFFFFFFFFF if bits >> 63 else bits | 1 << 63
    return _board(record).encode() + b"\0" + struct.pack(">Q", bits) + record.orbit_key.encode()
