"""Is a recorded history one that a single copy, changed in an instant by each call, could have given?

The search is that of Wing and Gong (1993) with Lowe's cache of visited configurations (2017): a call may take effect at
any instant between its start and its end; a history is linearizable if instants can be chosen so that every known
result is the one of the sequential object. A call whose outcome nobody learned ends never: it may have taken effect at
any instant after its start, or not at all.

Calls of different ``part`` are independent objects (Herlihy and Wing 1990, theorem 1: locality): each part is searched
alone. What changes several together, a transaction, must have one part for all of them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Step = Callable[[Any, str, tuple[Any, ...]], tuple[Any, Any]]
"""(state, name of the call, its arguments) -> (its result, the state after it). States are hashable."""


class _Unknown:
    def __repr__(self) -> str:
        return "?"


UNKNOWN = _Unknown()
"""The result of a call whose outcome nobody learned."""


@dataclass(frozen=True)
class Call:
    """One call of a history."""

    part: Hashable
    name: str
    arguments: tuple[Any, ...]
    start: float
    end: float = math.inf
    result: Any = UNKNOWN
    by: Hashable = None
    """Who called; only for people who read the history."""

    @property
    def known(self) -> bool:
        return self.end < math.inf

    def __str__(self) -> str:
        return f"[{self.start}, {self.end}] {self.by}: {self.part} {self.name}{self.arguments} -> {self.result!r}"


@dataclass(frozen=True)
class Sequential:
    """An object by its first state and what each call does."""

    start: Hashable
    step: Step


class NotLinearizable(AssertionError):
    """A history that no order of its calls explains."""


def check(history: Iterable[Call], model: Callable[[Hashable], Sequential]) -> int:
    """Search each part's calls for an order; how many configurations that took.

    Args:
        history: calls in any order.
        model: the sequential object that a part should be.

    Raises:
        NotLinearizable: there is none; the message has the part and where the longest order ends.
    """
    parts: dict[Hashable, list[Call]] = defaultdict(list)
    for call in history:
        parts[call.part].append(call)
    return sum(_search(part, calls, model(part)) for part, calls in parts.items())


def linearizable(history: Iterable[Call], model: Callable[[Hashable], Sequential]) -> bool:
    """Whether :func:`check` finds an order."""
    try:
        check(history, model)
    except NotLinearizable:
        return False
    return True


class _Events:
    """Starts and ends in their order of time, as a list from which a call can be lifted and put back."""

    def __init__(self, calls: Sequence[Call]) -> None:
        # At one instant starts come first: calls that touch are taken for overlapping, which accuses nobody wrongly.
        moments = [(call.start, 0, i) for i, call in enumerate(calls)]
        moments += [(call.end, 1, i) for i, call in enumerate(calls) if call.known]
        moments.sort()
        self.of = [-1] + [i for _, _, i in moments]  # event 0 is before all
        self.is_end = [False] + [kind == 1 for _, kind, _ in moments]
        count = len(self.of)
        self.after, self.before = [*range(1, count), 0], [count - 1, *range(count - 1)]
        self.start_of, self.end_of = [0] * len(calls), [0] * len(calls)
        for event in range(1, count):
            (self.end_of if self.is_end[event] else self.start_of)[self.of[event]] = event

    def lift(self, call: int) -> None:
        for event in filter(None, (self.start_of[call], self.end_of[call])):
            before, after = self.before[event], self.after[event]
            self.after[before], self.before[after] = after, before

    def put_back(self, call: int) -> None:
        for event in filter(None, (self.end_of[call], self.start_of[call])):
            before, after = self.before[event], self.after[event]
            self.after[before] = self.before[after] = event


def _search(part: Hashable, calls: list[Call], model: Sequential) -> int:
    events, state, taken = _Events(calls), model.start, 0
    order: list[tuple[int, Any]] = []  # calls that have taken effect, each with the state before it
    longest: list[int] = []
    visited: set[tuple[int, Any]] = set()
    left = sum(call.known for call in calls)
    event = events.after[0]
    while left:
        index = events.of[event]
        if not events.is_end[event]:
            result, after = model.step(state, calls[index].name, calls[index].arguments)
            fits = not calls[index].known or result == calls[index].result
            configuration = (taken | 1 << index, after)
            if fits and configuration not in visited:
                visited.add(configuration)
                order.append((index, state))
                state, taken = after, configuration[0]
                left -= calls[index].known
                events.lift(index)
                event = events.after[0]
            else:
                event = events.after[event]
            continue
        # This call has ended, so it must have taken effect before everything behind: one of those before was wrong.
        if len(order) >= len(longest):
            longest = [i for i, _ in order]
        if not order:
            raise NotLinearizable(_explanation(part, calls, longest, model))
        index, state = order.pop()
        taken ^= 1 << index
        left += calls[index].known
        events.put_back(index)
        event = events.after[events.start_of[index]]
    return len(visited)


def _explanation(part: Hashable, calls: list[Call], longest: list[int], model: Sequential) -> str:
    state = model.start
    for index in longest:
        _, state = model.step(state, calls[index].name, calls[index].arguments)
    rest = [call for i, call in enumerate(calls) if i not in set(longest) and call.known]
    deadline = min(call.end for call in rest)
    stuck = [str(call) for call in rest if call.start <= deadline]
    said = [str(calls[i]) for i in longest[-12:]]
    return (
        f"part {part!r}: no order explains it. Behind {len(longest)} of {len(calls)} calls, the last ones\n  "
        + "\n  ".join(said)
        + f"\nthe state is {str(state)[:300]}, and next would be one of\n  "
        + "\n  ".join(stuck)
    )


# ---- sequential objects ----------------------------------------------------------------------------------------------


def _entry(value: Any, name: str, arguments: tuple[Any, ...]) -> tuple[Any, Any]:
    if name == "get":
        return value, value
    if name == "put":
        return None, arguments[0]
    if name == "pop":
        return value, None
    if name == "set":  # compare and set
        expected, wanted = arguments
        return (True, wanted) if value == expected else (False, value)
    assert name == "add"
    return (value or 0) + arguments[0], (value or 0) + arguments[0]


def _queue(items: tuple[Any, ...], name: str, arguments: tuple[Any, ...]) -> tuple[Any, Any]:
    if name == "put":
        return None, (*items, arguments[0])
    if name == "take":
        return (items[0], items[1:]) if items else (None, items)
    assert name == "len"
    return len(items), items


def _stack(items: tuple[Any, ...], name: str, arguments: tuple[Any, ...]) -> tuple[Any, Any]:
    if name == "push":
        return None, (*items, arguments[0])
    if name == "pop":
        return (items[-1], items[:-1]) if items else (None, items)
    assert name == "len"
    return len(items), items


def _log(length: int, name: str, arguments: tuple[Any, ...]) -> tuple[Any, Any]:
    return (length, length + 1) if name == "append" else (length, length)


def _together(entries: frozenset[tuple[Any, Any]], name: str, arguments: tuple[Any, ...]) -> tuple[Any, Any]:
    """A transaction: ``run`` with pairs of keys and values to put; gives the values of the keys in ``arguments[1]``."""
    assert name == "run"
    writes, reads = arguments
    before = dict(entries)
    return tuple(before.get(key) for key in reads), frozenset((before | dict(writes)).items())


ENTRY = Sequential(None, _entry)
"""An entry of a dictionary, or a counter: get, put, pop, set(expected, value), add. None: absent."""
QUEUE = Sequential((), _queue)
"""put, take (None: empty), len."""
STACK = Sequential((), _stack)
"""push, pop (None: empty), len."""
LOG = Sequential(0, _log)
"""append gives the number of the entry, length how many there are."""
TOGETHER = Sequential(frozenset(), _together)
"""Several entries at once: run(((key, value), …), (key, …)) gives what the keys were before, and then puts."""
