"""Arithmetic in several turns with a Python tool: each step needs the result of the one before.

The products are beyond a small model's reach, so an answer without the tool is right by luck only; and the second call
cannot be written before the first has answered.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from statepool.core.errors import InvalidRequest
from statepool.tasks.base import Message, Problem, Tool, Verdict
from statepool.tasks.synthetic.calls import call, tool
from statepool.tasks.synthetic.episode import compare, reply

__all__ = ["PYTHON", "PythonSteps"]

PYTHON = tool("python", "Run Python code.", "code", "The code to run")
"""The description the bundled model was trained with."""

_WORDS = {"+": "add", "-": "subtract", "*": "multiply by"}


@dataclass(frozen=True)
class PythonSteps:
    """A product of two numbers, then further steps, such as "Use Python to compute 89 * 42. Then add 55."

    `steps` counts the first product; `digits` is the length of each number; without `tool` the same questions are asked
    with no tool to answer them.

    Raises:
        InvalidRequest: `steps` or `digits` below 1.
    """

    steps: int = 2
    digits: int = 2
    tool: bool = True
    name: str = "python-steps"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.digits < 1:
            raise InvalidRequest(f"steps and digits must be at least 1, got {self.steps} and {self.digits}")

    def problems(self, seed: int) -> Iterator[Problem]:
        """Yield problems without end; the same seed yields the same problems."""
        rng = Random(f"{self.name} {self.steps} {self.digits} {seed}")
        while True:
            yield self._problem(rng)

    def prompt(self, problem: Problem) -> Sequence[Message]:
        """The messages of the problem."""
        return problem.messages

    def tools(self, problem: Problem) -> Sequence[Tool]:
        """The Python tool, unless the task is to do without."""
        return problem.tools

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """Compare the last whole number of the final reply with the result."""
        return compare(problem.values, re.findall(r"-?\d+", reply(answer))[-1:])

    def _problem(self, rng: Random) -> Problem:
        low, high = 10 ** (self.digits - 1), 10**self.digits - 1
        a, b = rng.randint(low, high), rng.randint(low, high)
        text, expression, value = f"Use Python to compute {a} * {b}.", f"{a} * {b}", a * b
        rest: list[Message] = []
        for step in range(1, self.steps + 1):
            rest += [
                {"role": "assistant", "content": call(PYTHON, f"print({expression})")},
                {"role": "tool", "content": str(value)},
            ]
            said = f"{expression} = {value}"
            if step < self.steps:
                sign, c = rng.choice("+-*"), rng.randint(low, high)
                text += f" Then {_WORDS[sign]} {c}."
                expression = f"{value} {sign} {c}"
                value = {"+": value + c, "-": value - c, "*": value * c}[sign]
        rest.append({"role": "assistant", "content": said})
        ask: Message = {"role": "user", "content": text}
        if not self.tool:
            return Problem(self.name, (ask,), said, (str(value),))
        return Problem(self.name, (ask,), said, (str(value),), (PYTHON,), solution=tuple(rest))
