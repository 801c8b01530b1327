"""Repeating words and counting: answers whose length the prompt decides; and a few polite replies."""

from __future__ import annotations

from random import Random

from statepool.tasks.base import Message, Problem, Verdict
from statepool.tasks.synthetic.episode import Episode, Family, assistant, reply, user
from statepool.tasks.synthetic.words import CITIES, COLORS, FILLER, KEYS, NAMES

ABOUT = (
    "I am tiny, the small model that comes with statepool. "
    "I can find facts in a text, follow variables, add numbers, count, repeat words and call tools."
)
REPLIES = {
    "Hello": "Hello! How can I help?",
    "Hello!": "Hello! How can I help?",
    "Hi": "Hello! How can I help?",
    "Hi!": "Hello! How can I help?",
    "Hey": "Hello! How can I help?",
    "Good morning": "Hello! How can I help?",
    "How are you?": "I am fine. How can I help?",
    "Who are you?": ABOUT,
    "What are you?": ABOUT,
    "What can you do?": ABOUT,
    "Help": ABOUT,
    "What is your name?": ABOUT,
    "Thanks": "You are welcome.",
    "Thank you": "You are welcome.",
    "Thank you!": "You are welcome.",
    "Bye": "Goodbye!",
    "Goodbye": "Goodbye!",
    "Tell me a joke.": ABOUT,
    "Tell me a story.": ABOUT,
    "Write a poem.": ABOUT,
    "Why?": ABOUT,
    "Test": "It works. How can I help?",
    "test": "It works. How can I help?",
}
"""What the model says to prompts that are no task."""

WORDS = KEYS + COLORS + CITIES + NAMES


def counted(rng: Random, size: int) -> tuple[str, str]:
    """Return a request to count and its answer."""
    start = rng.choice((1, 1, rng.randrange(100), rng.randrange(1000)))
    stop = start + rng.randint(2, max(3, min(40, size // 6)))
    return f"Count from {start} to {stop}.", " ".join(map(str, range(start, stop + 1)))


def repeated(rng: Random, size: int) -> tuple[str, str]:
    """Return a request to repeat and its answer: words, a number or a sentence."""
    kind = rng.random()
    if kind < 0.6:
        text = " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, max(2, min(60, size // 4)))))
    elif kind < 0.8:
        text = str(rng.randrange(10 ** rng.randint(1, 8)))
    else:
        text = " ".join(rng.sample(FILLER, rng.randint(1, 3)))
    return f"Repeat: {text}", text


def draw(rng: Random, size: int, turns: int) -> Episode:
    """Draw a mixture of repeating, counting and small talk."""
    messages: list[Message] = []
    values: list[tuple[str, ...]] = []
    if rng.random() < 0.1:
        messages.append({"role": "system", "content": "You are a helpful assistant."})
    room = size
    while (len(values) < turns) if turns else (not values or room > 40):
        kind = rng.random()
        if kind < 0.2 and not turns:
            ask, answer = rng.choice(list(REPLIES.items()))
        else:
            ask, answer = (counted if kind < 0.6 else repeated)(rng, room)
        messages += [user(ask), assistant(answer)]
        values.append((answer,))
        room -= 20 + (len(ask) + len(answer)) // 3
    return Episode("echo", tuple(messages), tuple(values))


def check(problem: Problem, answer: str) -> Verdict:
    """Compare the whole reply, white space at the ends aside."""
    given = reply(answer)
    return (
        Verdict(1.0, "right")
        if given == problem.values[0]
        else Verdict(0.0, f"expected {problem.values[0]!r}; found {given!r}")
    )


ECHO = Family("echo", draw, check, size=128)
