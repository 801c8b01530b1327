"""Needles: many facts in one context, questions about some of them."""

from __future__ import annotations

import re
from random import Random

from statepool.tasks.base import Message, Problem, Verdict
from statepool.tasks.synthetic.episode import Episode, Family, assistant, compare, reply, user
from statepool.tasks.synthetic.words import CITIES, COLORS, FILLER, KEYS

TOKENS_PER_FACT = 11
TOKENS_PER_QUESTION = 30

INTROS = ("", "", "Remember these facts.\n", "Here are some facts.\n", "Read this.\n")
QUESTIONS = ("What is the {kind} of {key}?", "What is the {kind} of {key}?", "Tell me the {kind} of {key}.")


def value(rng: Random, kind: str) -> str:
    """Draw a value that fits a kind of fact."""
    if kind == "code":
        return str(rng.randrange(10 ** rng.choice((1, 2, 2, 2)), 10 ** rng.choice((3, 3, 3, 4))))
    return rng.choice(COLORS if kind == "color" else CITIES)


def facts(rng: Random, count: int) -> dict[str, tuple[str, str]]:
    """Draw `count` facts about different things: key -> (kind, value)."""
    kinds = rng.choice((("code",), ("code",), ("code", "color"), ("code", "city"), ("code", "color", "city")))
    chosen = [(key, rng.choice(kinds)) for key in rng.sample(KEYS, min(count, len(KEYS)))]
    return {key: (kind, value(rng, kind)) for key, kind in chosen}


def sentence(key: str, kind: str, said: str) -> str:
    """Return the sentence that states a fact, and that answers a question about it."""
    return f"The {kind} of {key} is {said}."


def context(rng: Random, known: dict[str, tuple[str, str]], fillers: int) -> str:
    """Return the facts in their order, with filler sentences in between."""
    lines = [sentence(key, *fact) for key, fact in known.items()]
    for _ in range(fillers):
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(FILLER))
    return " ".join(lines)


def question(rng: Random, known: dict[str, tuple[str, str]], several: bool) -> tuple[str, str, tuple[str, ...]]:
    """Return a question, its answer and the values in it."""
    keys = rng.sample(sorted(known), min(len(known), rng.randint(2, 5) if several else 1))
    answer = " ".join(sentence(key, *known[key]) for key in keys)
    values = tuple(known[key][1] for key in keys)
    if len(keys) == 1:
        return rng.choice(QUESTIONS).format(kind=known[keys[0]][0], key=keys[0]), answer, values
    asked = [f"the {known[key][0]} of {key}" for key in keys]
    return f"What is {', '.join(asked[:-1])} and {asked[-1]}?", answer, values


def draw(rng: Random, size: int, turns: int) -> Episode:
    """Draw a context of facts and the conversation about it."""
    asked = turns or max(1, min(6, size // 120)) * rng.randint(1, 2)
    room = max(40, size - 25 - asked * TOKENS_PER_QUESTION * (1 if turns else 1.5))
    share = rng.choice((1.0, 1.0, 0.8, 0.5, 0.25)) if turns == 0 else 0.8
    count = max(2, min(len(KEYS), int(room * share / TOKENS_PER_FACT)))
    known = facts(rng, count)
    text = context(rng, known, int((room - count * TOKENS_PER_FACT) / 7.5))
    messages: list[Message] = []
    if rng.random() < 0.15:
        messages.append({"role": "system", "content": text})
        text = ""
    elif rng.random() < 0.3:
        text = rng.choice(INTROS) + text + "\n"
    else:
        text = rng.choice(INTROS) + text + "\n\n"
    values = []
    for turn in range(asked):
        ask, answer, found = question(rng, known, several=turns == 0 and rng.random() < 0.5)
        messages += [user(text + ask if turn == 0 else ask), assistant(answer)]
        values.append(found)
    return Episode("facts", tuple(messages), tuple(values))


def check(problem: Problem, answer: str) -> Verdict:
    """Compare the values stated in the answer with the facts asked for."""
    return compare(problem.values, re.findall(r"\bis (\w+)\.", reply(answer)))


FACTS = Family("facts", draw, check)
