"""Column addition with worked steps: the length of the answer follows from the length of the numbers.

The steps are those of `statepool.tasks.synthetic.sums`; here the number of digits is the task's, also beyond the five
that the bundled model was trained on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from statepool.core.errors import InvalidRequest
from statepool.tasks.base import Message, Problem, Tool, Verdict
from statepool.tasks.synthetic.episode import compare, reply
from statepool.tasks.synthetic.sums import number, solution

__all__ = ["ColumnAddition"]


@dataclass(frozen=True)
class ColumnAddition:
    """Additions of two numbers of `low` to `high` digits each.

    Raises:
        InvalidRequest: not 1 <= low <= high.
    """

    low: int = 2
    high: int = 5
    name: str = "column-addition"

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high:
            raise InvalidRequest(f"low and high must be 1 or more and in order, got {self.low} and {self.high}")

    def problems(self, seed: int) -> Iterator[Problem]:
        """Yield problems without end; the same seed yields the same problems."""
        rng = Random(f"{self.name} {self.low} {self.high} {seed}")
        while True:
            a, b = (number(rng, rng.randint(self.low, self.high)) for _ in range(2))
            ask: Message = {"role": "user", "content": f"What is {a} + {b}?"}
            yield Problem(self.name, (ask,), solution(a, b), (str(a + b),))

    def prompt(self, problem: Problem) -> Sequence[Message]:
        """The messages of the problem."""
        return problem.messages

    def tools(self, problem: Problem) -> Sequence[Tool]:
        """None: the work is the point."""
        return problem.tools

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """Compare the last number behind the reasoning with the sum."""
        return compare(problem.values, re.findall(r"\d+", reply(answer))[-1:])
