"""Sequence design as a task for rollouts: objectives mixed at random, lengths kept back for tests.

The reward is piecewise linear between measured anchors: the median of random codes (0), one round of tabu search (0.7),
the best of three (1). All are computed from the problem itself, with a fixed number of rounds, so they are the same
everywhere; no table of known results can be recited, since weights and filter lengths are drawn with the problem.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar, Literal

import numpy as np

from statepool.core.errors import StatepoolError
from statepool.tasks.base import Message, Problem, Tool, Verdict
from statepool.tasks.sequences.codes import Code, from_signs
from statepool.tasks.sequences.objectives import Energy, PeakSidelobe, Score, Sir
from statepool.tasks.sequences.search.native import LocalSearch
from statepool.tasks.sequences.sets import EnvelopePeak
from statepool.tasks.synthetic.calls import call
from statepool.tasks.synthetic.episode import reply
from statepool.tasks.tools import PYTHON

__all__ = ["HELD_OUT", "SequenceTask"]

HELD_OUT = (17, 23, 29, 37)
"""Lengths that training never sees."""

_PROGRAM = """from random import Random
r = Random(1)
def energy(s): return sum(sum(a * b for a, b in zip(s, s[k:])) ** 2 for k in range(1, {n}))
best = min(([r.choice((1, -1)) for _ in range({n})] for _ in range({tries})), key=energy)
print("".join("-+"[x > 0] for x in best))"""
_TRIES = (1, 10, 100, 1000)
"""Codes that programs shown to a model try: which of them is worth its while is for the model to find out."""

_LENGTHS = tuple(n for n in range(12, 41) if n not in HELD_OUT)
_NAMES = {"energy": "sum of squared autocorrelation sidelobes over n", "psl": "peak autocorrelation sidelobe",
          "pmepr": "peak to mean envelope power ratio", "sir": "n over the signal to interference ratio of the best "
          "mismatched filter"}  # fmt: skip


@dataclass(frozen=True)
class Mix:
    """A weighted sum of objectives, lower is better; every part is near 1 to n for any code."""

    weights: tuple[tuple[str, int], ...]
    length: int
    """Taps of the mismatched filter."""
    name: ClassVar[str] = "mix"
    better: ClassVar[Literal["higher", "lower"]] = "lower"
    codes: ClassVar[int] = 1

    def score(self, codes: Sequence[Code]) -> Score:
        """The sum for one code."""
        return Score(float(self.costs(codes[0].signs[None, None])[0]))

    def costs(self, signs: np.ndarray) -> np.ndarray:
        """The sum for int8 [count, 1, n]."""
        n = signs.shape[2]
        total = np.zeros(len(signs))
        for name, weight in self.weights:
            if name == "energy":
                part = Energy().costs(signs) / n
            elif name == "psl":
                part = np.floor(PeakSidelobe().costs(signs))
            elif name == "pmepr":
                part = EnvelopePeak(oversampling=8).costs(signs)
            else:
                part = -n / Sir(length=self.length).costs(signs)
            total += weight * part
        return total


@dataclass(frozen=True)
class SequenceTask:
    """Problems that ask for one binary code; ``held_out`` draws from the lengths kept back.

    With ``tool`` the model may write programs that search, and the best code that any of them printed counts as much
    as one in the answer. The programs shown to it as solutions are plain ones, some of them hardly worth running.
    """

    held_out: bool = False
    tool: bool = False
    name: str = "sequences"

    def problems(self, seed: int) -> Iterator[Problem]:
        """Yield problems without end; the same seed yields the same problems."""
        random = Random(f"sequences {seed} {self.held_out}")
        while True:
            n = random.choice(HELD_OUT if self.held_out else _LENGTHS)
            chosen = random.sample(sorted(_NAMES), random.randint(1, 3))
            mix = Mix(tuple((name, random.randint(1, 9)) for name in chosen), n + random.randrange(n + 1))
            yield self._problem(n, mix, random.getrandbits(32))

    def prompt(self, problem: Problem) -> Sequence[Message]:
        """The messages of the problem."""
        return problem.messages

    def tools(self, problem: Problem) -> Sequence[Tool]:
        """The Python tool, where programs may search; else none: the code is the answer."""
        return problem.tools

    def verify_conversation(self, problem: Problem, said: Sequence[Message]) -> Verdict:
        """The best of the answer and of what each program printed; a program's own text does not count."""
        *before, last = said
        texts = [last, *(message for message in before if message["role"] == "tool")]
        return max((self.verify(problem, str(message["content"])) for message in texts), key=lambda v: v.score)

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """Score the last run of + and - in the answer that is as long as the problem asks."""
        n, facts = problem.facts["n"], problem.facts
        found = re.findall(r"[+\-]{2,}", reply(answer))
        if not found:
            return Verdict(0.0, "there is no code of + and - in the answer")
        try:
            code = from_signs(found[-1])
        except StatepoolError as error:
            return Verdict(0.0, error.message)
        if len(code) != n:
            return Verdict(0.0, f"the code has {len(code)} symbols, not {n}")
        cost = _mix(facts).score([code]).value
        anchors = facts["random"], facts["round"], facts["best"]
        return Verdict(
            _reward(cost, *anchors), f"cost {cost:.6g}; random codes {anchors[0]:.6g}, best known {anchors[2]:.6g}"
        )

    def _problem(self, n: int, mix: Mix, seed: int) -> Problem:
        noise = np.random.Generator(np.random.Philox(key=seed))
        random = float(np.median(mix.costs(noise.choice(np.array([-1, 1], np.int8), (64, 1, n)))))
        batches = LocalSearch("tabu", "tabu").batches(mix, n, seed, 0)
        rounds = [next(batches) for _ in range(3)]
        best = min(rounds, key=lambda batch: batch.cost)
        parts = "; ".join(f"{weight} times the {_NAMES[name]}" for name, weight in mix.weights)
        taps = f" The filter has {mix.length} taps." if any(name == "sir" for name, _ in mix.weights) else ""
        text = (
            f"Find a binary code of {n} symbols, written with + and -, that makes this sum as small as you can: "
            f"{parts}.{taps} Answer with the code on the last line."
        )
        facts: dict[str, Any] = {
            "n": n, "weights": mix.weights, "length": mix.length,
            "random": random, "round": max(rounds[0].cost, best.cost), "best": best.cost,
        }  # fmt: skip
        if self.tool:
            tries = _TRIES[seed % len(_TRIES)]
            program = _PROGRAM.format(n=n, tries=tries)
            answer = _drawn(n, tries)
            solution: tuple[Message, ...] = (
                {"role": "assistant", "content": call(PYTHON, program)},
                {"role": "tool", "content": answer},
                {"role": "assistant", "content": answer},
            )
            text += " A Python program may search for it."
        else:
            answer, solution = Code(tuple(map(int, best.phases[0]))).text, ()
        asked: Message = {"role": "user", "content": text}
        tools = (PYTHON,) if self.tool else ()
        return Problem(self.name, (asked,), answer, (f"{best.cost:.9g}",), tools, facts, solution)


def _drawn(n: int, tries: int) -> str:
    """What the program prints."""
    random = Random(1)
    signs = np.array([[[random.choice((1, -1)) for _ in range(n)]] for _ in range(tries)], np.int8)
    return "".join("+" if sign > 0 else "-" for sign in signs[Energy().costs(signs).argmin(), 0])


def _mix(facts: dict[str, Any]) -> Mix:
    return Mix(tuple((name, weight) for name, weight in facts["weights"]), facts["length"])


def _reward(cost: float, random: float, first: float, best: float) -> float:
    """0 at the median of random codes, 0.7 after one round, 1 at the best known or better."""
    if cost <= best:
        return 1.0
    if cost <= first:
        return 0.7 + 0.3 * (first - cost) / (first - best)
    return 0.7 * max(0.0, random - cost) / (random - first) if random > first else 0.0
