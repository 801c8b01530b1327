"""How many threads one query gets: decisions as pure functions of what can be seen when it arrives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "Load",
    "Plan",
    "choose_detour",
    "choose_engine",
    "choose_path",
    "choose_period",
    "choose_threads",
    "least_share",
    "most_worth",
    "share_out",
]

SCANNED = 100
"""Rows that are measured in the time of one candidate of a two-hop search, its probe included."""

MOMENT_NS = 30_000
"""So long after its search a caller counts as busy, longer than Python takes from one search to the next. One in a loop
asks again at once: a core that were lent meanwhile had to be called back from a helper that has hardly begun."""

SEALED_REST = 384
"""Bytes of a sealed row beyond eight bits per dimension and 32 codes: ids, factors, its own norm."""

SEALED_SHARE = 1 << 17
"""Bytes of sealed rows for which one more thread pays; below them two threads were measured slower than one."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is seen when a query arrives."""

    cores: int
    """Cores of the machine."""
    busy: int
    """Threads that work on other queries now, or will at once, see ``MOMENT_NS``."""
    waiting: int
    """Queries that wait behind this one, since every core has one."""


def choose_threads(load: Load, most: int) -> int:
    """Idle cores, shared fairly with the queries behind: 1 … ``most``.

    A query that takes a second core halves its latency. It gives it back to one that comes later, see ``share_out``,
    so taking it needs no guess of what is to come.
    """
    idle = max(0, load.cores - load.busy)
    return max(1, min(most, idle // (load.waiting + 1)))


def share_out(held: Sequence[int], idle: int, most: int, share: int) -> list[int]:
    """What queries that have ``held`` threads keep of them when one more comes, which can use ``most``.

    It should have an equal ``share`` of the cores, at least one: the ``idle`` ones, and then what those have beyond
    their own shares, from whoever has most.
    """
    kept, share = list(held), max(1, share)
    for _ in range(min(most, share) - idle):
        widest = max(range(len(kept)), key=kept.__getitem__)
        if kept[widest] <= share:
            break
        kept[widest] -= 1
    return kept


def most_worth(dim: int, ef: int, sealed: bool) -> int:
    """Threads that a query of so many candidates can use before handing work over costs more than it saves.

    An expansion of a sealed row takes half a microsecond, and a look at what another thread has nearly as long. What a
    search of ``ef`` candidates reads, at most ``ef`` rows of eight bits and 32 codes, tells how long it is.
    """
    if not sealed:
        return 64
    return 1 + ef * (5 * dim + SEALED_REST) // SEALED_SHARE


def choose_engine(threads: int) -> Literal["sequential", "async"]:
    """The engine for so many threads.

    Roles do a third of the work of 64 asynchronous threads, and are slower up to there in the simulator: what a
    maintainer hands out and gets back by cache lines costs as much as the distances it saves.
    """
    return "sequential" if threads == 1 else "async"


def choose_period(threads: int, sealed: bool) -> int:
    """Expansions of a thread between two looks at the others.

    A look costs a few cache lines, and tells the more the more threads there are. For plain rows four are best from 8
    threads on in the simulator; a sealed row's expansion is too short for that.
    """
    return 4 if threads >= 8 and not sealed else 8


@dataclass(frozen=True, slots=True)
class Plan:
    """How the rows that pass a filter are looked for."""

    path: Literal["empty", "scan", "two-hop", "check"]
    width: int
    """Candidates kept while searching."""
    probe: int = 0
    """Candidates of a small search of the whole graph before, which finds where to begin and whether rows near the
    query pass at all. 0: none."""


def choose_path(rows: int, matches: int, ef: int, *, sealed: bool = False) -> Plan:
    """By how many of the rows pass.

    Few are measured one by one: a candidate of ``two-hop`` leads to the links of its links, which takes as long as the
    distances of a hundred rows in their order (measured over 50,000 rows of 384 dimensions). With many, a search of the
    whole graph meets enough of them if it keeps more candidates. In between, below two rows in five, the graph of those
    that pass is searched, two links taken as one where the row between does not pass. A sealed graph is so fast that
    ``check`` pays for less.
    """
    if matches == 0:
        return Plan("empty", ef)
    if sealed and matches > max(2000, rows // 100):
        # An expansion by codes takes as long as four distances, and ef * rows / matches of them are needed.
        if matches * matches <= 4 * ef * rows:
            return Plan("scan", ef)
        return Plan("check", ef * rows // matches)
    few = 5 * matches <= 2 * rows
    if matches <= max(2000, rows // 100) or (few and matches <= SCANNED * ef):
        return Plan("scan", ef)
    if few:
        return Plan("two-hop", ef, max(32, min(4 * rows // matches, 400)))
    return Plan("check", ef * rows // matches)


def least_share(rows: int, matches: int) -> float:
    """Of the candidates near a query so many must pass; fewer mean that the filter keeps away from the query."""
    return matches / rows / 4


def choose_detour(share: float, rows: int, matches: int, ef: int) -> Plan | None:
    """What else to do after the first search, of whose candidates ``share`` passed; None for nothing.

    If rows near the query pass far more rarely than all do, those that pass lie elsewhere. The nearest of them are then
    at the edge of where they lie, among rows that do not pass, where few of their links lead.
    """
    if share >= least_share(rows, matches):
        return None
    return Plan("scan", ef) if 3 * matches <= rows else Plan("two-hop", 2 * ef)
