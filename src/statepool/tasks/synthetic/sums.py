"""Column addition with worked steps: the longer the numbers, the longer the work."""

from __future__ import annotations

import re
from random import Random

from statepool.tasks.base import Message, Problem, Verdict
from statepool.tasks.synthetic.episode import Episode, Family, assistant, compare, reply, user

QUESTIONS = ("What is {a} + {b}?", "What is {a} + {b}?", "Add {a} and {b}.", "{a} + {b} = ?", "{a}+{b}")
DIGITS = 5


def steps(a: int, b: int) -> str:
    """Work out a + b from the last digits up.

    Each line holds what is left of both numbers, the sum of their last digits and the carry as two digits,
    and the result so far; every line follows from the one before by copying and one small sum.
    """
    left, right, carry, result, lines = str(a), str(b), 0, "", []
    while True:
        total = int(left[-1]) + int(right[-1]) + carry
        result = str(total % 10) + result
        lines.append(f"{left}+{right}: {left[-1]}+{right[-1]}+{carry}={total:02d} {result}")
        carry = total // 10
        if len(left) == len(right) == 1 and not carry:
            return "\n".join(lines)
        left, right = left[:-1] or "0", right[:-1] or "0"


def solution(a: int, b: int, thinking: bool = True) -> str:
    """Return the whole answer; the steps stand in a <think> block, or before the result when thinking is off."""
    work = steps(a, b)
    return f"<think>\n{work}\n</think>\n\n{a} + {b} = {a + b}" if thinking else f"{work}\n\n{a} + {b} = {a + b}"


def number(rng: Random, digits: int) -> int:
    """Draw a number with exactly `digits` digits."""
    return rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)


def draw(rng: Random, size: int, turns: int) -> Episode:
    """Draw additions; `size` bounds the length of the numbers and, with turns = 0, the number of questions."""
    longest = max(2, min(DIGITS, size // 50))
    thinking = rng.random() < 0.8
    messages: list[Message] = []
    values: list[tuple[str, ...]] = []
    spent = 0
    while (len(values) < turns) if turns else (not values or spent < size - 150):
        first = rng.randint(1, longest)
        second = first if rng.random() < 0.5 else rng.randint(1, longest)
        a, b = number(rng, first), number(rng, second)
        answer = solution(a, b, thinking)
        messages += [user(rng.choice(QUESTIONS).format(a=a, b=b)), assistant(answer)]
        values.append((str(a + b),))
        spent += len(answer) + 30
    return Episode("sums", tuple(messages), tuple(values), thinking=thinking)


def check(problem: Problem, answer: str) -> Verdict:
    """Compare the last number of the answer with the sum."""
    return compare(problem.values, re.findall(r"\d+", reply(answer))[-1:])


SUMS = Family("sums", draw, check)
