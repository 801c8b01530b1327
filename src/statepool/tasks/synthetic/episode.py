"""An episode: a whole conversation with right answers, from which problems and training text are cut."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from statepool.tasks.base import Message, Problem, Tool, Verdict


@dataclass(frozen=True)
class Episode:
    """A conversation whose assistant turns are all right.

    `values[i]` holds what the check of the i-th assistant turn compares.
    """

    family: str
    messages: tuple[Message, ...]
    values: tuple[tuple[str, ...], ...]
    tools: tuple[Tool, ...] = ()
    thinking: bool = True

    def problem(self, turn: int = -1) -> Problem:
        """Cut the conversation before one assistant turn and ask for that turn."""
        places = [i for i, message in enumerate(self.messages) if message["role"] == "assistant"]
        cut = places[turn]
        return Problem(
            task=self.family,
            messages=self.messages[:cut],
            answer=self.messages[cut]["content"],
            values=self.values[turn],
            tools=self.tools,
        )


def user(content: str) -> Message:
    """Return a user message."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    """Return an assistant message."""
    return {"role": "assistant", "content": content}


def reply(answer: str) -> str:
    """Return an answer without its reasoning block and surrounding white space."""
    return re.sub(r"<think>.*?</think>", "", answer, flags=re.DOTALL).replace("<|im_end|>", "").strip()


def compare(wanted: Sequence[str], given: Sequence[str]) -> Verdict:
    """Score by the fraction of wanted values given at their places; a reply of another length scores 0."""
    if len(wanted) != len(given):
        return Verdict(
            0.0, f"expected {len(wanted)} value(s) {', '.join(wanted)}; found {len(given)}: {', '.join(given)}"
        )
    right = sum(a == b for a, b in zip(wanted, given, strict=True))
    if right == len(wanted):
        return Verdict(1.0, "right")
    return Verdict(right / len(wanted), f"expected {', '.join(wanted)}; found {', '.join(given)}")


@dataclass(frozen=True)
class Family:
    """A family of synthetic problems as a `Task`: how to draw an episode and how to check a reply.

    `draw(rng, size, turns)` returns an episode of roughly `size` tokens with `turns` questions
    (0 fills the size with questions).
    """

    name: str
    draw: Callable[[Random, int, int], Episode]
    check: Callable[[Problem, str], Verdict]
    size: int = 256

    def problems(self, seed: int) -> Iterator[Problem]:
        """Yield problems of about `size` tokens without end; the same seed yields the same problems.

        Of a conversation with tool calls, any assistant turn may be the one asked for.
        """
        index = 0
        while True:
            rng = Random(f"{self.name}:{seed}:{index}")
            episode = self.draw(rng, self.size, 1)
            yield episode.problem(rng.randrange(len(episode.values)))
            index += 1

    def prompt(self, problem: Problem) -> Sequence[Message]:
        """Return the chat messages of a problem."""
        return problem.messages

    def tools(self, problem: Problem) -> Sequence[Tool]:
        """Return the tools of a problem."""
        return problem.tools

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """Judge an answer; reasoning in <think> tags is ignored."""
        return self.check(problem, answer)
