"""What the probe model is asked, as token ids: needles in filler, and chains of them.

A key and its value stand somewhere in filler; the tail asks for some keys, and the model writes their values. Nothing
in it can be guessed: a value that attention does not read is wrong. A chain is asked for by its first link, and every
link is found by the one before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from random import Random

ASK, FILLERS, KEYS, VALUES = 1, range(2, 66), range(66, 290), range(290, 512)
"""Token ids: what begins a question, and what stands for what. 0 ends a text."""
VOCABULARY = 512


@dataclass(frozen=True, slots=True)
class Question:
    """A text with its questions and answers.

    Attributes:
        tokens: token ids.
        body: tokens before the first question.
        answers: places of the tokens to be written, answer by answer.
    """

    tokens: tuple[int, ...]
    body: int
    answers: tuple[tuple[int, ...], ...]


def needles(rng: Random, length: int, pairs: int, asked: int) -> Question:
    """``pairs`` keys with a value each, ``asked`` of them asked for, in ``length`` tokens or two fewer."""
    keys = rng.sample(KEYS, pairs)
    known = {key: rng.choice(VALUES) for key in keys}
    body = scatter(rng, length - 3 * asked, list(known.items()))
    return _ask(body, [(key, known[key]) for key in rng.sample(keys, asked)])


def chains(rng: Random, length: int, pairs: int, asked: int) -> Question:
    """As ``needles``, but keys lead to keys: a chain of two links and a value at its end, out of order in the text."""
    keys = rng.sample(KEYS, pairs // 3 * 3)
    links = [(*keys[i : i + 3], rng.choice(VALUES)) for i in range(0, len(keys), 3)]
    stated = [pair for link in links for pair in pairwise(link)]
    rng.shuffle(stated)
    asked = max(asked // 2, 1)
    return _ask(scatter(rng, length - 5 * asked, stated), rng.sample(links, asked))


def copies(rng: Random, length: int) -> Question:
    """Random tokens of which stretches come again; the second time is to be written.

    The distance is random, because a fixed one teaches a position, not a search.
    """
    tokens: list[int] = []
    answers: list[int] = []
    while len(tokens) < length:
        size = rng.randint(4, max(5, length // 4))
        if len(tokens) < max(5, length // 4) or rng.random() < 0.3:
            tokens += [rng.randrange(ASK, VOCABULARY) for _ in range(size)]
        else:
            start = rng.randrange(len(tokens) - 4)
            again = tokens[start : start + size]
            answers += range(len(tokens) + 1, len(tokens) + len(again))
            tokens += again
    return Question(tuple(tokens[:length]), 1, (tuple(at for at in answers if at < length),))


KINDS = {"needles": needles, "chains": chains}
"""Kinds of questions by name."""


def scatter(rng: Random, length: int, pairs: list[tuple[int, int]]) -> list[int]:
    """Filler of ``length`` tokens with the pairs in it, in their order."""
    room = length - 2 * len(pairs)
    tokens: list[int] = []
    before = 0
    for filler, pair in zip(sorted(rng.randint(0, room) for _ in pairs), pairs, strict=True):
        tokens += [*rng.choices(FILLERS, k=filler - before), *pair]
        before = filler
    return tokens + rng.choices(FILLERS, k=room - before)


def _ask(body: list[int], links: list[tuple[int, ...]]) -> Question:
    tokens, answers = list(body), []
    for link in links:
        answers.append(tuple(range(len(tokens) + 2, len(tokens) + 1 + len(link))))
        tokens += [ASK, *link]
    return Question(tuple(tokens), len(body), tuple(answers))
