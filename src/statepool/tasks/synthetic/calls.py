"""Tool calls: choose a tool described in the prompt, call it, read its result and answer."""

from __future__ import annotations

import json
import re
from random import Random
from typing import Any

from statepool.tasks.base import Message, Problem, Tool, Verdict
from statepool.tasks.synthetic import facts
from statepool.tasks.synthetic.episode import Episode, Family, assistant, reply, user
from statepool.tasks.synthetic.words import KEYS


def tool(name: str, description: str, argument: str, meaning: str) -> Tool:
    """Return a function description with one required string argument."""
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {argument: {"type": "string", "description": meaning}},
                "required": [argument],
            },
        },
    }


def calculator(rng: Random) -> Tool:
    """Describe a calculator."""
    name = rng.choice(("calculator", "calculator", "calc"))
    return tool(name, "Evaluate an expression.", "expression", "For example 1 + 2")


def lookup(rng: Random) -> Tool:
    """Describe a look-up of facts."""
    name, argument = rng.choice(("lookup", "lookup", "search")), rng.choice(("key", "key", "query"))
    return tool(name, "Look up a fact.", argument, "What to look up")


def python(rng: Random) -> Tool:
    """Describe a Python interpreter."""
    return tool(rng.choice(("python", "python", "run_code")), "Run Python code.", "code", "The code to run")


def call(described: Tool, argument: str) -> str:
    """Return a call of a one-argument tool in the form the model writes."""
    function = described["function"]
    name = function["parameters"]["required"][0]
    return "<tool_call>\n" + json.dumps({"name": function["name"], "arguments": {name: argument}}) + "\n</tool_call>"


def expression(rng: Random) -> tuple[str, str]:
    """Draw an expression and its value."""
    a, b, sign = rng.randrange(10 ** rng.randint(1, 4)), rng.randrange(10 ** rng.randint(1, 4)), rng.choice("+-*")
    return f"{a} {sign} {b}", str({"+": a + b, "-": a - b, "*": a * b}[sign])


class _Conversation:
    """Collects turns: a question, calls with their results, and the last answer."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.values: list[tuple[str, ...]] = []

    def ask(self, content: str) -> None:
        self.messages.append(user(content))

    def call(self, described: Tool, argument: str, result: str) -> None:
        written = call(described, argument)
        self.messages += [assistant(written), {"role": "tool", "content": result}]
        self.values.append((written,))

    def answer(self, content: str) -> None:
        self.messages.append(assistant(content))
        self.values.append((content,))


def _calculate(rng: Random, talk: _Conversation, calc: Tool) -> None:
    written, result = expression(rng)
    talk.ask(rng.choice(("What is {}?", "Compute {}.", "What is {}?")).format(written))
    talk.call(calc, written, result)
    talk.answer(f"{written} = {result}")


def _run(rng: Random, talk: _Conversation, runner: Tool) -> None:
    written, result = expression(rng)
    talk.ask(f"Use Python to compute {written}.")
    talk.call(runner, f"print({written})", result)
    talk.answer(f"{written} = {result}")


def _find(rng: Random, talk: _Conversation, finder: Tool) -> None:
    key, kind = rng.choice(KEYS), rng.choice(("code", "color", "city"))
    said = facts.value(rng, kind)
    talk.ask(rng.choice(("What is the {} of {}?", "Look up the {} of {}.")).format(kind, key))
    talk.call(finder, f"{kind} of {key}", said)
    talk.answer(facts.sentence(key, kind, said))


def _add_codes(rng: Random, talk: _Conversation, finder: Tool, calc: Tool) -> None:
    keys = rng.sample(KEYS, 2)
    a, b = rng.randrange(1000), rng.randrange(1000)
    talk.ask(f"What is the code of {keys[0]} plus the code of {keys[1]}?")
    talk.call(finder, f"code of {keys[0]}", str(a))
    talk.call(finder, f"code of {keys[1]}", str(b))
    talk.call(calc, f"{a} + {b}", str(a + b))
    talk.answer(f"{a} + {b} = {a + b}")


def draw(rng: Random, size: int, turns: int) -> Episode:
    """Draw one to three tools and questions each of which one of them answers."""
    calc, finder, runner = calculator(rng), lookup(rng), python(rng)
    tools = rng.sample([calc, finder, runner], 1 if size < 450 else rng.randint(1, 3))
    talk = _Conversation()
    if rng.random() < 0.1:
        talk.messages.append({"role": "system", "content": "You are a helpful assistant."})
    room = size - 140 - 75 * len(tools)
    for _ in range(turns or 12):
        chosen = rng.choice(tools)
        if calc in tools and finder in tools and rng.random() < 0.3 and (turns or room > 250):
            _add_codes(rng, talk, finder, calc)
            room -= 230
        elif chosen is calc:
            _calculate(rng, talk, calc)
            room -= 95
        elif chosen is finder:
            _find(rng, talk, finder)
            room -= 95
        else:
            _run(rng, talk, runner)
            room -= 95
        if room < 95:
            break
    return Episode("calls", tuple(talk.messages), tuple(talk.values), tools=tuple(tools))


def parse(answer: str) -> list[Any]:
    """Return the calls in an answer; text that is no JSON is skipped."""
    found = []
    for body in re.findall(r"<tool_call>(.*?)</tool_call>", answer, flags=re.DOTALL):
        try:
            found.append(json.loads(body))
        except ValueError:
            continue
    return found


def check(problem: Problem, answer: str) -> Verdict:
    """Compare calls as JSON, and a reply without a call as text."""
    wanted = parse(problem.values[0])
    given = parse(answer)
    right = given == wanted if wanted else reply(answer) == problem.values[0]
    return Verdict(float(right), "right" if right else f"expected {problem.values[0]!r}; found {reply(answer)!r}")


CALLS = Family("calls", draw, check, size=512)
