"""Plays the operations of a log into dictionaries, lists and queues of plain Python, from docs/store-format.md alone.

Like the reader (``logreader.py``) it shares no code with the store.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from statepool.store.logreader import Record

KINDS = ["dict", "sorted_dict", "skip_list", "bst", "mv_bst", "mv_sorted_dict", "stack", "queue"]
_REMEMBERED = 65_536


@dataclass(slots=True)
class Waiting:
    """An item of a queue that was not acknowledged."""

    value: bytes
    name: bytes
    until: int = 0
    """When its lease ends, in ms; 0: nobody holds it."""
    token: int = 0
    attempts: int = 0


@dataclass
class Queue:
    """A queue as the operations left it."""

    items: dict[int, Waiting] = field(default_factory=dict)
    dead: dict[int, Waiting] = field(default_factory=dict)
    """Taken as often as allowed, by number; the one that died first comes first."""
    next: int = 1
    limit: int = 0
    names: dict[bytes, int] = field(default_factory=dict)
    """Deduplication ids and the numbers of their items."""
    retired: list[bytes] = field(default_factory=list)

    def values(self) -> dict[int, bytes]:
        """Items not acknowledged, leased or not, by number."""
        return {number: item.value for number, item in self.items.items()}

    def apply(self, r: Record) -> None:
        """What one operation does; one that finds nothing to do changes nothing."""
        if r.verb == "enqueue":
            if r.b not in self.names:
                self.items[self.next] = Waiting(r.a, r.b)
                self.names |= {r.b: self.next} if r.b else {}
                self.next += 1
        elif r.verb == "take":
            self._take(r)
        elif r.verb == "limit_attempts":
            self.limit = r.x
        elif r.verb == "take_dead":
            if not self.dead and self._some_ended(r.x, worn=True):
                self._end_leases(r.x)
            for number in list(self.dead)[:1]:
                self._retire(self.dead.pop(number))
        elif (item := self.items.get(r.x)) is not None and item.until and item.token == r.y:
            if r.verb == "acknowledge":
                self._retire(self.items.pop(r.x))
            elif r.verb == "give_back":
                self._let_go(r.x)
            else:
                now, lease = (int.from_bytes(r.a[i : i + 8], "little") for i in (0, 8))
                item.until = now + lease

    def _take(self, r: Record) -> None:
        if not self._some_ended(r.x, worn=False) and all(item.until for item in self.items.values()):
            return
        self._end_leases(r.x)
        number = min(number for number, item in self.items.items() if not item.until)
        item = self.items[number]
        item.attempts += 1
        item.until, item.token = r.x + r.y, r.lsn << 8 | r.a[0]
        if r.y == 0:
            self._retire(self.items.pop(number))

    def _worn(self, item: Waiting) -> bool:
        return 0 < self.limit <= item.attempts

    def _some_ended(self, now: int, *, worn: bool) -> bool:
        return any(0 < item.until <= now and self._worn(item) is worn for item in self.items.values())

    def _end_leases(self, now: int) -> None:
        ended = sorted((item.until, number) for number, item in self.items.items() if 0 < item.until <= now)
        for _, number in ended:
            self._let_go(number)

    def _let_go(self, number: int) -> None:
        self.items[number].until = 0
        if self._worn(self.items[number]):
            self.dead[number] = self.items.pop(number)

    def _retire(self, item: Waiting) -> None:
        if item.name:
            self.retired.append(item.name)
            if len(self.retired) > _REMEMBERED:
                del self.names[self.retired.pop(0)]


@dataclass
class State:
    """What replaying a log gives: structures by name."""

    maps: dict[str, dict[bytes, bytes]] = field(default_factory=dict)
    stacks: dict[str, list[bytes]] = field(default_factory=dict)
    queues: dict[str, Queue] = field(default_factory=dict)


def replay(records: Iterable[Record]) -> State:
    """The state after the operations, which must begin with the store's first one."""
    state = State()
    names: dict[int, str] = {}
    for r in records:
        if r.verb == "create":
            names[r.structure] = name = r.a.decode()
            kind = KINDS[r.x - 1]
            if kind == "stack":
                state.stacks[name] = []
            elif kind == "queue":
                state.queues[name] = Queue()
            else:
                state.maps[name] = {}
            continue
        name = names[r.structure]
        if r.verb == "drop":
            state.maps.pop(name, None)
            state.stacks.pop(name, None)
            state.queues.pop(name, None)
        elif r.verb == "put":
            state.maps[name][r.a] = r.b
        elif r.verb == "erase":
            state.maps[name].pop(r.a, None)
        elif r.verb == "push":
            state.stacks[name].append(r.a)
        elif r.verb == "pop":
            state.stacks[name][-1:] = []
        else:
            state.queues[name].apply(r)
    return state
