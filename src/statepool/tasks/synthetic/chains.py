"""Variable tracking: short chains of assignment among many others."""

from __future__ import annotations

import re
from itertools import pairwise
from random import Random

from statepool.tasks.base import Message, Problem, Verdict
from statepool.tasks.synthetic.episode import Episode, Family, assistant, compare, reply, user
from statepool.tasks.synthetic.words import NAMES

TOKENS_PER_LINE = 8
QUESTIONS = ("What is {name}?", "What is {name}?", "What is the value of {name}?")


def chains(rng: Random, lines: int) -> list[list[str]]:
    """Draw chains of different names, each ending in a number, with `lines` assignments in all."""
    names = rng.sample(NAMES, min(lines, len(NAMES)))
    drawn = []
    while names:
        length = rng.choice((1, 2, 2, 3, 3, 4))
        drawn.append([*names[:length], str(rng.randrange(10, 1000))])
        names = names[length:]
    return drawn


def draw(rng: Random, size: int, turns: int) -> Episode:
    """Draw assignments in random order and questions about some of the names."""
    asked = turns or max(1, min(5, size // 100)) * rng.randint(1, 2)
    count = int((size - 25 - asked * 32) / TOKENS_PER_LINE)
    if turns == 0:
        count = int(count * rng.uniform(0.5, 1.0))
    drawn = chains(rng, max(3, count))
    lines = [f"Let {a} = {b}." for chain in drawn for a, b in pairwise(chain)]
    rng.shuffle(lines)
    messages: list[Message] = []
    values = []
    for turn in range(asked):
        chain = rng.choice(drawn)
        start = rng.randrange(len(chain) - 1) if turns == 0 else 0
        ask = rng.choice(QUESTIONS).format(name=chain[start])
        text = " ".join(lines) + "\n\n" + ask if turn == 0 else ask
        messages += [user(text), assistant("The chain is " + " = ".join(chain[start:]) + ".")]
        values.append((chain[-1],))
    return Episode("chains", tuple(messages), tuple(values))


def check(problem: Problem, answer: str) -> Verdict:
    """Compare the last value of the chain in the answer."""
    found = re.findall(r"(\w+)\.?$", reply(answer))
    return compare(problem.values, found[-1:])


CHAINS = Family("chains", draw, check, size=200)
