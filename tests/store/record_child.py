"""Uses a store from some threads and writes down when each call began and ended. Run by test_histories.py.

One JSON request as argument: where (a folder or a daemon's address), role (owner, client or reader), out (file), seed,
threads, timeout. A line of the file is [thread, number, what, time, …]: "start" with part, name and arguments, before
the call begins; "end" with the result, after it returned; "void" if it is certain that it changed nothing. A call
without a second line is of unknown outcome. Times are nanoseconds of the machine's monotonic clock.
"""

import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import statepool.store
from statepool.core.errors import Conflict, NotFound, OutcomeUnknown, Unavailable

KEYS = 4


class Caller:
    """One thread's calls."""

    def __init__(self, store: statepool.store.Store, role: str, out: int, thread: int, seed: int) -> None:
        self.store, self.role, self.out, self.thread = store, role, out, thread
        self.draw, self.numbers = random.Random(seed * 100 + thread), count(1)
        self.name = f"{os.getpid()}-{thread}"
        if role != "reader":
            self.queue, self.stack = store.queue("q", values="str"), store.stack("s", values="str")
            self.counter = store.counter("c")
            self.pairs = store.sorted_dict("pairs", keys="str", values="str")
        self.entries = store.dict("d", keys="str", values="str")

    def say(self, *line: Any) -> None:
        os.write(self.out, json.dumps([self.thread, *line]).encode() + b"\n")

    def record(self, part: Any, name: str, arguments: tuple[Any, ...], act: Callable[[], Any]) -> None:
        number = f"{self.name} {next(self.numbers)}"
        self.say(number, "start", time.monotonic_ns(), part, name, arguments)
        try:
            result = act()
        except OutcomeUnknown:
            return
        except (Unavailable, NotFound, Conflict):  # NotFound: a reader whose owner is gone
            self.say(number, "void", 0)
            time.sleep(0.002)
            return
        self.say(number, "end", time.monotonic_ns(), result)

    def step(self) -> None:
        draw = self.draw
        key, value = f"k{draw.randrange(KEYS)}", f"{self.name}-{next(self.numbers)}"
        part, dice = ["entry", key], draw.random()
        if self.role == "reader" or dice < 0.3:
            self.record(part, "get", (), lambda: self.entries.get(key))
        elif dice < 0.5:
            self.record(part, "put", (value,), lambda: self.entries.__setitem__(key, value))
        elif dice < 0.55:
            self.record(part, "pop", (), lambda: self.entries.pop(key, None))
        elif dice < 0.65:
            expected = self.entries.get(key)
            swap = lambda: self.entries.compare_and_set(key, expected, value)  # noqa: E731 - a call to be recorded
            self.record(part, "set", (expected, value), swap)
        elif dice < 0.68:
            writes = draw.choice([(), (("x", value),), (("x", value), ("y", value))])
            self.record(["together"], "run", (writes, ("x", "y")), lambda: self.transaction(writes, ("x", "y")))
        elif dice < 0.72:
            self.record(["entry", "counter"], "add", (1,), self.counter.add)
        elif dice < 0.77:
            self.record(["queue"], "put", (value,), lambda: self.queue.put(value) and None)
        elif dice < 0.85:
            self.record(["queue"], "take", (), self.take)
        elif dice < 0.92:
            self.record(["stack"], "push", (value,), lambda: self.stack.push(value))
        else:
            self.record(["stack"], "pop", (), self.pop)

    def transaction(self, writes: tuple[tuple[str, str], ...], reads: tuple[str, ...]) -> list[Any]:
        with self.store.transaction() as tx:
            face = tx[self.pairs]
            seen = [face.get(key) for key in reads]
            face.update(writes)
        return seen

    def take(self) -> Any:
        item = self.queue.take(0.0)
        return None if item is None else item.value

    def pop(self) -> Any:
        try:
            return self.stack.pop()
        except IndexError:
            return None

    def run(self) -> None:
        while True:
            try:
                self.step()
                time.sleep(0.0005)  # histories that a checker can search
            except (Unavailable, NotFound):  # of the look before a swap
                time.sleep(0.002)

    def last_look(self) -> None:
        """What there is at the end, taken out."""
        for i in range(KEYS):
            self.record(["entry", f"k{i}"], "get", (), lambda i=i: self.entries.get(f"k{i}"))
        self.record(["entry", "counter"], "add", (1,), self.counter.add)
        for part, name, act, structure in (
            ("queue", "take", self.take, self.queue),
            ("stack", "pop", self.pop, self.stack),
        ):
            for _ in range(len(structure) + 1):
                self.record([part], name, (), act)


def opened(request: dict[str, Any]) -> statepool.store.Store:
    where, role = request["where"], request["role"]
    if role == "client" or "://" in where:
        return statepool.store.open(where, timeout=request["timeout"])
    if role == "owner":
        return statepool.store.open(where, capacity="16MiB", segment_size="256KiB", durability=request["durability"])
    while True:
        try:
            store = statepool.store.open(where, mode="read")
            store.dict("d")
            return store
        except NotFound:
            time.sleep(0.002)


def main() -> None:
    request = json.loads(sys.argv[1])
    out = os.open(request["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    callers: list[Caller] = []
    while not callers:  # a daemon may be killed just now
        try:
            store = opened(request)
            callers = [Caller(store, request["role"], out, i, request["seed"]) for i in range(request["threads"])]
        except (Unavailable, OutcomeUnknown):
            time.sleep(0.05)
    print("ready", flush=True)
    if request.get("last"):
        callers[0].last_look()
        store.close()
        return
    for caller in callers:
        threading.Thread(target=caller.run, daemon=True).start()
    threading.Event().wait()


main()
