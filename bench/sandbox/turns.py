"""T14: turns that change nothing are told from those that do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence

from bench.machine import LoadWatch
from bench.row import Row
from bench.sandbox.measure import row, summary, wanted
from statepool.sandbox import Pool, Sandbox

_BEGIN = "import json, math\ndata = {'a': [1, 2, 3], 'b': 'text'}\nopen('log', 'w').write('one')"
_LOOKS = (
    (False, "data"),
    (False, "print(len(data['a']), sum(data['a']))"),
    (False, "json.dumps(data)"),
    (False, "[math.sqrt(n) for n in data['a']]"),
    (False, "sorted(data)"),
    (False, "data['missing']"),
    (True, "ls -la"),
    (True, "cat log"),
    (True, "grep -c one log"),
    (True, "python3 -c 'print(6 * 7)'"),
)
"""Turns of an agent that looks: whether a line of shell, and what. Nothing is left behind by them."""
_CHANGES = (
    (False, "data['a'].append(4)"),
    (False, "x = 1"),
    (False, "data['b'] += '!'"),
    (False, "def f(): return 1"),
    (False, "import os; os.environ['A'] = 'b'"),
    (False, "import random; random.random()"),
    (False, "open('new', 'w').write('x')"),
    (True, "echo more >> log"),
    (True, "rm log"),
    (True, "chmod 600 log"),
)


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """The wanted rows."""
    if not wanted(only, "T14", "T14b", "T14c"):
        return
    rounds, watch, asked, kept = 2 if quick else 20, LoadWatch(), [], []
    found = {_LOOKS: 0, _CHANGES: 0}
    with Pool(low=0) as pool, Sandbox(pool=pool) as sandbox:
        sandbox.run_code(_BEGIN)
        with sandbox.snapshot() as moment:
            for _ in range(rounds):
                for turns in found:
                    for shell, code in turns:
                        sandbox.rollback(moment)
                        (sandbox.commands.run if shell else sandbox.run_code)(code)
                        began = time.perf_counter()
                        found[turns] += sandbox.changed(moment)
                        asked.append(time.perf_counter() - began)
                        began = time.perf_counter()
                        with sandbox.snapshot():
                            kept.append(time.perf_counter() - began)
    load, count = watch.stop(), rounds * len(_LOOKS)
    recall, skipped = found[_CHANGES] / (rounds * len(_CHANGES)), 1 - found[_LOOKS] / count
    own = f"{rounds} rounds of {len(_LOOKS)} turns that look and {len(_CHANGES)} that change something"
    yield row("T14", "changes that were seen", "share", "higher", 1.0, recall, own, load)
    yield row("T14b", "turns without effect that made no moment", "share", "higher", 0.9, skipped, own, load)
    gain = statistics.median(kept) / statistics.median(asked)
    what = "keeping a moment over asking whether anything has changed: median"
    yield row("T14c", what, "x", "higher", 1.0, gain, f"ask {summary(asked)}; keep {summary(kept)}", load)
