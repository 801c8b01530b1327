"""SmallBank: six kinds of transactions on savings and checking accounts, most of them on a few hot accounts.

Mix and hot share are those of FORD's workload (15/15/15/25/15/15 %, 90 % of the transactions on 4 % of the accounts).
Money is counted in cents, so that the sum of all balances can be checked exactly.
"""

from __future__ import annotations

import random
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence

from bench.store.data import commits
from bench.store.systems.base import Pair, Place, Planned, Session

TABLES = ("savings", "checking")
_HOT_SHARE, _HOT = 0.9, 0.04
_START = 100_000
_DEPOSIT, _PAYMENT, _SAVING, _CHECK, _PENALTY = 130, 500, 2020, 500, 100
_KINDS = ("amalgamate", "balance", "deposit", "pay", "save", "check")
_WEIGHTS = (15, 30, 45, 70, 85, 100)

_money = struct.Struct("<q")
_account = struct.Struct(">I")


class SmallBank:
    """The bank and how much came in from outside, over all threads."""

    tables = TABLES

    def __init__(self, accounts: int) -> None:
        self._accounts, self._hot = accounts, max(2, int(accounts * _HOT))
        self._added = 0
        self._adding = threading.Lock()

    def rows(self) -> Iterator[tuple[str, list[Pair]]]:
        """All rows, in commits of one table each."""
        for table in TABLES:
            pairs = ((_account.pack(number), _money.pack(_START)) for number in range(self._accounts))
            for part in commits(pairs):
                yield table, part

    def plan(self, draw: random.Random) -> Planned:
        """One transaction."""
        kind = draw.choices(_KINDS, cum_weights=_WEIGHTS)[0]
        among = self._hot if draw.random() < _HOT_SHARE else self._accounts
        if kind in ("amalgamate", "pay"):
            first, second = draw.sample(range(among), 2)
            return (_amalgamate if kind == "amalgamate" else _pay)(_account.pack(first), _account.pack(second))
        key = _account.pack(draw.randrange(among))
        if kind == "balance":
            places = [("savings", key), ("checking", key)]
            return lambda session: session.read(places)
        if kind == "check":
            return self._write_check(key)
        amount, table = (_DEPOSIT, "checking") if kind == "deposit" else (_SAVING, "savings")
        return self._put_in((table, key), amount)

    def check(self, session: Session) -> None:
        """Compare the sum of all balances with what it started with and what came in since.

        Raises:
            ArithmeticError: money was lost or made.
        """
        total = 0
        for table in TABLES:
            for start in range(0, self._accounts, 1000):
                numbers = range(start, min(start + 1000, self._accounts))
                found = session.read([(table, _account.pack(number)) for number in numbers])
                total += sum(_value(value) for value in found)
        expected = 2 * _START * self._accounts + self._added
        if total != expected:
            raise ArithmeticError(f"SmallBank holds {total} cents instead of {expected}")

    def _add(self, amount: int) -> None:
        with self._adding:
            self._added += amount

    def _put_in(self, place: Place, amount: int) -> Planned:
        places = [place]

        def run(session: Session) -> None:
            session.update(places, lambda found: {place: _plus(found[0], amount)})
            self._add(amount)

        return run

    def _write_check(self, key: bytes) -> Planned:
        places = [("savings", key), ("checking", key)]

        def run(session: Session) -> None:
            amount = 0

            def change(found: Sequence[bytes | None]) -> Mapping[Place, bytes]:
                nonlocal amount  # of the last call, the one that is committed
                short = _value(found[0]) + _value(found[1]) < _CHECK
                amount = -(_CHECK + _PENALTY) if short else -_CHECK
                return {places[1]: _plus(found[1], amount)}

            session.update(places, change)
            self._add(amount)

        return run


def _amalgamate(first: bytes, second: bytes) -> Planned:
    places = [("savings", first), ("checking", first), ("checking", second)]
    nothing = _money.pack(0)

    def change(found: Sequence[bytes | None]) -> Mapping[Place, bytes]:
        savings, checking = _value(found[0]), _value(found[1])
        return {places[0]: nothing, places[1]: nothing, places[2]: _plus(found[2], savings + checking)}

    return lambda session: session.update(places, change)


def _pay(first: bytes, second: bytes) -> Planned:
    places = [("checking", first), ("checking", second)]

    def change(found: Sequence[bytes | None]) -> Mapping[Place, bytes]:
        if _value(found[0]) < _PAYMENT:
            return {}
        return {places[0]: _plus(found[0], -_PAYMENT), places[1]: _plus(found[1], _PAYMENT)}

    return lambda session: session.update(places, change)


def _value(found: bytes | None) -> int:
    if found is None:
        raise LookupError("an account is missing")
    value: int = _money.unpack(found)[0]
    return value


def _plus(found: bytes | None, amount: int) -> bytes:
    return _money.pack(_value(found) + amount)
