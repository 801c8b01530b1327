"""Retrieval from a long context: one fact among many, named in the question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from statepool.core.errors import InvalidRequest
from statepool.tasks.base import Message, Problem, Tool, Verdict
from statepool.tasks.synthetic import facts

__all__ = ["Retrieval"]


@dataclass(frozen=True)
class Retrieval:
    """A context of about `size` tokens of facts and filler, and a question about one of the facts.

    Raises:
        InvalidRequest: `size` below 64.
    """

    size: int = 1000
    name: str = "retrieval"

    def __post_init__(self) -> None:
        if self.size < 64:
            raise InvalidRequest(f"size must be at least 64 tokens, got {self.size}", param="size")

    def problems(self, seed: int) -> Iterator[Problem]:
        """Yield problems without end; the same seed yields the same problems."""
        index = 0
        while True:
            rng = Random(f"{self.name} {self.size} {seed} {index}")
            yield facts.draw(rng, self.size, 1).problem()
            index += 1

    def prompt(self, problem: Problem) -> Sequence[Message]:
        """The messages of the problem."""
        return problem.messages

    def tools(self, problem: Problem) -> Sequence[Tool]:
        """None: the answer stands in the prompt."""
        return problem.tools

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """Compare the value stated in the answer with the fact asked for."""
        return facts.check(problem, answer)
