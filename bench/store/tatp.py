"""TATP: seven kinds of transactions of a mobile phone register, 80 % of them reads.

Mix 35/10/35/2/14/2/2 %, subscribers drawn with the benchmark's own skew, and 1 to 4 access rows and facilities per
subscriber with up to 3 forwardings each. A transaction whose row is absent (or, for an insertion, present) ends without
a write, as the benchmark demands.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence

from bench.store.data import commits
from bench.store.systems.base import Pair, Place, Planned, Session

TABLES = ("subscriber", "number", "access", "facility", "forwarding")
_STARTS = (0, 8, 16)
_KINDS = ("subscriber", "destination", "access", "update", "move", "forward", "unforward")
_WEIGHTS = (35, 45, 80, 82, 96, 98, 100)

_subscriber = struct.Struct("<IHQQQII")  # number, bits, hex, two of byte2, two locations: 38 bytes
_facility = struct.Struct("<???5s")  # active, error control, data_a, data_b
_access = struct.Struct("<BB3s5s")
_forwarding = struct.Struct("<B15s")
_id = struct.Struct(">I")


class Tatp:
    """The register. It knows its size only; all state is in the store."""

    tables = TABLES

    def __init__(self, subscribers: int) -> None:
        self._count = subscribers
        self._skew = 65535 if subscribers <= 1_000_000 else 1048575

    def rows(self) -> Iterator[tuple[str, list[Pair]]]:
        """All rows, in commits of one table each."""
        for table, make in (
            ("subscriber", self._subscribers),
            ("number", self._numbers),
            ("access", self._accesses),
            ("facility", self._facilities),
            ("forwarding", self._forwardings),
        ):
            for part in commits(make()):
                yield table, part

    def plan(self, draw: random.Random) -> Planned:
        """One transaction."""
        kind = draw.choices(_KINDS, cum_weights=_WEIGHTS)[0]
        number = (draw.randint(0, self._skew) | draw.randrange(self._count)) % self._count
        key = _id.pack(number)
        if kind == "subscriber":
            return _read([("subscriber", key)])
        if kind == "destination":
            part = _under(key, draw.randint(1, 4))
            return _read([("facility", part), *(("forwarding", _under(part, start)) for start in _STARTS)])
        if kind == "access":
            return _read([("access", _under(key, draw.randint(1, 4)))])
        if kind == "update":
            return _update(key, draw)
        change = {"move": _move, "forward": _forward, "unforward": _unforward}[kind](draw)
        places = [("number", _digits(number))]

        def run(session: Session) -> None:
            found = session.read(places)[0]
            if found is None:
                raise LookupError("a subscriber is missing")
            change(session, found)

        return run

    def check(self, session: Session) -> None:
        """Any subscriber can still be found by number."""
        for number in range(0, self._count, max(1, self._count // 100)):
            if session.read([("number", _digits(number))]) != [_id.pack(number)]:
                raise LookupError("a subscriber is missing")

    def _subscribers(self) -> Iterator[Pair]:
        for number in range(self._count):
            yield _id.pack(number), _subscriber.pack(number, 0, number, number, number, 1, 1)

    def _numbers(self) -> Iterator[Pair]:
        for number in range(self._count):
            yield _digits(number), _id.pack(number)

    def _accesses(self) -> Iterator[Pair]:
        for key in self._parts(2):
            yield key, _access.pack(1, 2, b"abc", b"defgh")

    def _facilities(self) -> Iterator[Pair]:
        for key in self._parts(3):
            yield key, _facility.pack(random.Random(key).random() < 0.85, False, False, b"abcde")

    def _forwardings(self) -> Iterator[Pair]:
        for part in self._parts(3):
            draw = random.Random(part + b"f")
            for start in draw.sample(_STARTS, draw.randint(0, 3)):
                yield _under(part, start), _forwarding.pack(start + 8, b"0" * 15)

    def _parts(self, seed: int) -> Iterator[bytes]:
        draw = random.Random(seed)
        for number in range(self._count):
            for part in sorted(draw.sample((1, 2, 3, 4), draw.randint(1, 4))):
                yield _under(_id.pack(number), part)


def _under(key: bytes, part: int) -> bytes:
    return key + bytes([part])


def _digits(number: int) -> bytes:
    return b"%015d" % number


def _read(places: list[Place]) -> Planned:
    return lambda session: session.read(places)


def _update(key: bytes, draw: random.Random) -> Planned:
    places = [("subscriber", key), ("facility", _under(key, draw.randint(1, 4)))]
    bit, data = draw.getrandbits(1), draw.random() < 0.5

    def change(found: Sequence[bytes | None]) -> Mapping[Place, bytes]:
        if found[0] is None or found[1] is None:
            return {}
        fields, facility = list(_subscriber.unpack(found[0])), list(_facility.unpack(found[1]))
        fields[1], facility[2] = bit, data
        return {places[0]: _subscriber.pack(*fields), places[1]: _facility.pack(*facility)}

    return lambda session: session.update(places, change)


def _move(draw: random.Random) -> Callable[[Session, bytes], None]:
    location = draw.getrandbits(32)

    def run(session: Session, key: bytes) -> None:
        place = ("subscriber", key)

        def change(found: Sequence[bytes | None]) -> Mapping[Place, bytes]:
            if found[0] is None:
                raise LookupError("a subscriber is missing")
            return {place: _subscriber.pack(*_subscriber.unpack(found[0])[:-1], location)}

        session.update([place], change)

    return run


def _forward(draw: random.Random) -> Callable[[Session, bytes], None]:
    kind, start = draw.randint(1, 4), draw.choice(_STARTS)
    value = _forwarding.pack(start + draw.randint(1, 8), b"%015d" % draw.randrange(10**15))

    def run(session: Session, key: bytes) -> None:
        part = _under(key, kind)
        places = [("facility", part), ("forwarding", _under(part, start))]

        def change(found: Sequence[bytes | None]) -> Mapping[Place, bytes]:
            return {places[1]: value} if found[0] is not None and found[1] is None else {}

        session.update(places, change)

    return run


def _unforward(draw: random.Random) -> Callable[[Session, bytes], None]:
    kind, start = draw.randint(1, 4), draw.choice(_STARTS)

    def run(session: Session, key: bytes) -> None:
        place = ("forwarding", _under(_under(key, kind), start))
        session.update([place], lambda found: {} if found[0] is None else {place: None})

    return run
