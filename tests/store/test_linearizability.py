"""The checker itself: histories that are known to be wrong or right, and all orders of small ones tried one by one."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from .linearizability import ENTRY, LOG, QUEUE, STACK, TOGETHER, UNKNOWN, Call, Sequential, check, linearizable

MODELS = {"entry": ENTRY, "queue": QUEUE, "stack": STACK, "log": LOG, "together": TOGETHER}


def model(part: Any) -> Sequential:
    return MODELS[part if isinstance(part, str) else part[0]]


def calls(part: str, *lines: tuple[Any, ...]) -> list[Call]:
    """Lines of (start, end, name, arguments, result); an end of ``None`` is an outcome nobody learned."""
    return [
        Call(part, name, arguments, start, math.inf if end is None else end, UNKNOWN if end is None else result)
        for start, end, name, arguments, result in lines
    ]


WRONG: dict[str, list[Call]] = {
    "a stale read": calls("entry", (0, 1, "put", (1,), None), (2, 3, "put", (2,), None), (4, 5, "get", (), 1)),
    "a lost update": calls("entry", (0, 4, "add", (1,), 1), (1, 5, "add", (1,), 1)),
    "an addition done twice": calls("entry", (0, 1, "add", (1,), 1), (2, 3, "get", (), 2)),
    "a put of unknown outcome done twice": calls(
        "queue", (0, None, "put", ("x",), None), (1, 2, "take", (), "x"), (3, 4, "take", (), "x")
    ),
    "an acknowledged write that a crash took": calls("entry", (0, 1, "put", (1,), None), (5, 6, "get", (), None)),
    "takes in another order than puts": calls(
        "queue",
        (0, 1, "put", ("a",), None),
        (2, 3, "put", ("b",), None),
        (4, 5, "take", (), "b"),
        (6, 7, "take", (), "a"),
    ),
    "an item taken by two": calls(
        "queue", (0, 1, "put", ("a",), None), (2, 5, "take", (), "a"), (3, 6, "take", (), "a")
    ),
    "an item lost": calls("queue", (0, 1, "put", ("a",), None), (2, 3, "take", (), None)),
    "a value from nowhere": calls("entry", (0, 1, "put", (1,), None), (2, 3, "get", (), 7)),
    "a value from the future": calls("entry", (0, 1, "get", (), 1), (2, 3, "put", (1,), None)),
    "two that swapped the same value": calls(
        "entry", (0, 1, "put", (0,), None), (2, 5, "set", (0, 1), True), (3, 6, "set", (0, 2), True)
    ),
    "a reader that goes back in time": calls(
        "entry",
        (0, 1, "put", (1,), None),
        (2, 9, "put", (2,), None),
        (3, 4, "get", (), 2),
        (5, 6, "get", (), 1),
    ),
    "a second reader behind the first": calls(
        "entry", (0, None, "put", (2,), None), (3, 4, "get", (), 2), (5, 6, "get", (), None)
    ),
    "a write of unknown outcome that comes and goes": calls(
        "entry",
        (0, 1, "put", (1,), None),
        (2, None, "put", (2,), None),
        (3, 4, "get", (), 2),
        (5, 6, "put", (1,), None),
        (7, 8, "get", (), 2),
    ),
    "pops in the order of pushes": calls(
        "stack",
        (0, 1, "push", ("a",), None),
        (2, 3, "push", ("b",), None),
        (4, 5, "pop", (), "a"),
    ),
    "an erased entry that comes back": calls(
        "entry", (0, 1, "put", (1,), None), (2, 3, "pop", (), 1), (4, 5, "get", (), 1)
    ),
    "a refused swap that happened": calls(
        "entry", (0, 1, "put", (0,), None), (2, 3, "set", (0, 5), False), (4, 5, "get", (), 5)
    ),
    "a transaction seen in half": calls(
        "together",
        (0, 1, "run", ((("x", 1), ("y", 1)), ()), ()),
        (2, 9, "run", ((("x", 2), ("y", 2)), ()), ()),
        (3, 4, "run", ((), ("x", "y")), (2, 1)),
    ),
    "write skew": calls(
        "together",
        (0, 5, "run", ((("x", 1),), ("x", "y")), (None, None)),
        (1, 6, "run", ((("y", 1),), ("x", "y")), (None, None)),
    ),
    "a log that shrank": calls("log", (0, 1, "append", (), 0), (2, 3, "append", (), 1), (4, 5, "length", (), 1)),
    "a number given out twice": calls("log", (0, 3, "append", (), 0), (1, 4, "append", (), 0)),
}

RIGHT: dict[str, list[Call]] = {
    "nothing": [],
    "one after the other": calls("entry", (0, 1, "put", (1,), None), (2, 3, "get", (), 1)),
    "a read beside a write sees the old": calls(
        "entry", (0, 1, "put", (1,), None), (2, 9, "put", (2,), None), (3, 4, "get", (), 1)
    ),
    "a read beside a write sees the new": calls("entry", (0, 9, "put", (2,), None), (3, 4, "get", (), 2)),
    "of unknown outcome and never done": calls(
        "entry", (0, 1, "put", (1,), None), (2, None, "put", (2,), None), (90, 91, "get", (), 1)
    ),
    "of unknown outcome and done late": calls(
        "entry",
        (0, 1, "put", (1,), None),
        (2, None, "put", (2,), None),
        (90, 91, "get", (), 1),
        (92, 93, "get", (), 2),
    ),
    "an unknown take explains a missing item": calls(
        "queue",
        (0, 1, "put", ("a",), None),
        (2, 3, "put", ("b",), None),
        (4, None, "take", (), None),
        (5, 6, "take", (), "b"),
    ),
    "puts beside each other in either order": calls(
        "queue",
        (0, 9, "put", ("a",), None),
        (1, 8, "put", ("b",), None),
        (10, 11, "take", (), "b"),
        (12, 13, "take", (), "a"),
    ),
    "an empty take beside a put": calls("queue", (0, 9, "put", ("a",), None), (3, 4, "take", (), None)),
    "a swap that lost beside one that won": calls(
        "entry", (0, 1, "put", (0,), None), (2, 5, "set", (0, 1), True), (3, 6, "set", (0, 2), False)
    ),
    "additions beside each other": calls("entry", (0, 4, "add", (1,), 2), (1, 5, "add", (1,), 1)),
    "calls that touch": calls("entry", (0, 1, "get", (), 1), (1, 2, "put", (1,), None)),
    "a transaction seen whole": calls(
        "together",
        (0, 9, "run", ((("x", 2), ("y", 2)), ()), ()),
        (3, 4, "run", ((), ("x", "y")), (None, None)),
        (5, 6, "run", ((), ("x", "y")), (2, 2)),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_known_to_be_wrong(name: str) -> None:
    with pytest.raises(AssertionError, match="no order explains it"):
        check(WRONG[name], model)


@pytest.mark.parametrize("name", RIGHT)
def test_known_to_be_right(name: str) -> None:
    check(RIGHT[name], model)


def test_parts_are_independent_and_one_wrong_part_is_enough() -> None:
    right = [
        Call(("entry", i), *astuple(call)) for i in range(20) for call in RIGHT["of unknown outcome and done late"]
    ]
    check(right, model)
    wrong = [Call(("entry", 99), *astuple(call)) for call in WRONG["a stale read"]]
    with pytest.raises(AssertionError, match=r"part \('entry', 99\)"):
        check(right + wrong, model)


def astuple(call: Call) -> tuple[Any, ...]:
    return call.name, call.arguments, call.start, call.end, call.result


# ---- every order, one by one -----------------------------------------------------------------------------------------


def explains(kind: str, order: tuple[Call, ...]) -> bool:
    """Plays calls on Python's own objects; whether the known results come out."""
    cell: dict[str, Any] = {}
    items: list[Any] = []
    for call in order:
        a = call.arguments
        if kind == "entry":
            if call.name == "put":
                found, cell["v"] = None, a[0]
            elif call.name == "set":
                found = cell.get("v") == a[0]
                cell.update({"v": a[1]} if found else {})
            else:
                found = cell.pop("v", None) if call.name == "pop" else cell.get("v")
        elif call.name in ("put", "push"):
            found = items.append(a[0])
        else:
            found = items.pop(0 if kind == "queue" else -1) if items else None
        if call.known and found != call.result:
            return False
    return True


def brute(kind: str, history: list[Call]) -> bool:
    known, pending = [c for c in history if c.known], [c for c in history if not c.known]
    for count in range(len(pending) + 1):
        for done in itertools.combinations(pending, count):
            for order in itertools.permutations([*known, *done]):
                # Nobody stands before a call that had ended when it began.
                early = any(b.end < a.start for i, a in enumerate(order) for b in order[i + 1 :])
                if not early and explains(kind, order):
                    return True
    return False


NAMES = {
    "entry": [("get", ()), ("put", (1,)), ("put", (2,)), ("pop", ()), ("set", (1, 2)), ("set", (None, 1))],
    "queue": [("put", (1,)), ("put", (2,)), ("take", ()), ("take", ())],
    "stack": [("push", (1,)), ("push", (2,)), ("pop", ()), ("pop", ())],
}


def results(name: str) -> list[Any]:
    return [None] if name in ("put", "push") else [True, False] if name == "set" else [None, 1, 2]


@st.composite
def histories(draw: Any, kind: str) -> list[Call]:
    drawn = []
    for _ in range(draw(st.integers(1, 5))):
        name, arguments = draw(st.sampled_from(NAMES[kind]))
        start, length = draw(st.integers(0, 8)), draw(st.integers(0, 6))
        if draw(st.integers(0, 4)) == 0:
            drawn.append(Call(kind, name, arguments, start))
        else:
            drawn.append(Call(kind, name, arguments, start, start + length, draw(st.sampled_from(results(name)))))
    return drawn


@pytest.mark.parametrize("kind", NAMES)
def test_against_every_order_of_small_histories(kind: str) -> None:
    @settings(max_examples=400, deadline=None)
    @given(histories(kind))
    def agree(history: list[Call]) -> None:
        wanted = brute(kind, history)
        event(f"linearizable: {wanted}")
        assert linearizable(history, model) is wanted

    agree()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", NAMES)
def test_against_every_order_of_many_small_histories(kind: str) -> None:
    draw, seen = random.Random(kind), [0, 0]
    for _ in range(20_000):
        history = []
        for _ in range(draw.randint(1, 6)):
            name, arguments = draw.choice(NAMES[kind])
            start, length = draw.randint(0, 9), draw.randint(0, 7)
            if draw.random() < 0.2:
                history.append(Call(kind, name, arguments, start))
            else:
                history.append(Call(kind, name, arguments, start, start + length, draw.choice(results(name))))
        wanted = brute(kind, history)
        seen[wanted] += 1
        assert linearizable(history, model) is wanted, history
    assert min(seen) > 2_000, "both answers must be asked for often"


# ---- histories of an object that is right, and of one that is not --------------------------------------------------


def recorded(kind: str, seed: int, count: int, *, threads: int = 5) -> list[Call]:
    """Calls of several threads on a right object, each taking effect at a drawn instant of its time or never."""
    draw, plans, object_ = random.Random(seed), [], MODELS[kind]
    for thread in range(threads):
        clock = draw.random()
        for i in range(count // threads):
            name, arguments = draw.choice(NAMES[kind])
            if name in ("put", "push"):
                arguments = (f"{thread} {i}",)
            start, length = clock + draw.random(), draw.expovariate(1.0)
            plans.append((start + draw.random() * length, start, start + length, name, arguments, thread))
            clock = start + length
    state, history, unknown = object_.start, [], count // 25
    for _, start, end, name, arguments, thread in sorted(plans):
        lost = unknown > 0 and draw.random() < 0.05
        unknown -= lost
        if not lost or draw.random() < 0.5:
            result, state = object_.step(state, name, arguments)
        if lost:
            history.append(Call(kind, name, arguments, start, by=thread))
        else:
            history.append(Call(kind, name, arguments, start, end, result, thread))
    return history


LENGTHS = {"entry": 200, "queue": 60, "stack": 25}


@pytest.mark.parametrize("kind", NAMES)
def test_long_histories_of_a_right_object(kind: str) -> None:
    for seed in range(6):
        check(recorded(kind, seed, LENGTHS[kind]), model)


@pytest.mark.parametrize("kind", NAMES)
def test_one_changed_result_in_a_long_history(kind: str) -> None:
    """A value that nobody ever wrote is put in the place of one result: every such history is refused."""
    for seed in range(6):
        history = recorded(kind, seed, LENGTHS[kind] // 2)
        readers = [i for i, c in enumerate(history) if c.known and c.name in ("get", "take", "pop")]
        i = random.Random(seed).choice(readers)
        changed = Call(kind, history[i].name, (), history[i].start, history[i].end, "never written")
        assert not linearizable([*history[:i], changed, *history[i + 1 :]], model)
