"""What every task offers: problems drawn from a seed, a prompt, tools and a verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

Message: TypeAlias = dict[str, Any]
"""One chat message in the OpenAI form: role, content and, for an assistant, tool_calls."""

Tool: TypeAlias = dict[str, Any]
"""One function description in the OpenAI form."""


@dataclass(frozen=True)
class Verdict:
    """How good an answer is: a score from 0 to 1 and the reason in words."""

    score: float
    reason: str


@dataclass(frozen=True)
class Problem:
    """One question: the messages up to it, the tools offered and what its check needs.

    `answer` is the reply a perfect model gives word for word; `values` are the parts of it that the check compares.
    """

    task: str
    messages: tuple[Message, ...]
    answer: str
    values: tuple[str, ...]
    tools: tuple[Tool, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    solution: tuple[Message, ...] = ()
    """The whole rest of the conversation where it takes more than `answer`: calls, what tools say, the answer."""

    @property
    def rest(self) -> tuple[Message, ...]:
        """What a perfect model and its tools would add to `messages`."""
        return self.solution or ({"role": "assistant", "content": self.answer},)


@dataclass(frozen=True)
class Turn:
    """What the world answers to a turn of the model.

    `content` is None when the conversation is over; then `verdict` judges it, or is None where no judgement could be
    had, which is no reason to invent one. `faults` name what went wrong on the way.
    """

    content: str | None = None
    role: str = "tool"
    verdict: Verdict | None = None
    faults: tuple[str, ...] = ()


class Dialogue(Protocol):
    """The other side of one conversation: tools, an environment, a judge."""

    def reply(self, text: str) -> Turn:
        """Answer one turn of the model; blocks until the answer is there, at most as long as its limits allow."""
        ...

    def close(self) -> None:
        """Give back what the conversation held."""
        ...


@runtime_checkable
class ConversationJudge(Protocol):
    """What a task offers beside `verify` where more than the last turn counts: what programs printed, say."""

    def verify_conversation(self, problem: Problem, said: Sequence[Message]) -> Verdict:
        """Judge a complete conversation: every turn of the model and every reply of its tools, behind the prompt."""
        ...


class Task(Protocol):
    """A source of problems whose answers can be checked exactly.

    A task that is a `ConversationJudge` too has its conversations with tools judged whole.
    """

    name: str

    def problems(self, seed: int) -> Iterator[Problem]:
        """Yield problems without end; the same seed yields the same problems."""
        ...

    def prompt(self, problem: Problem) -> Sequence[Message]:
        """Return the chat messages to send to the model."""
        ...

    def tools(self, problem: Problem) -> Sequence[Tool]:
        """Return the tools the model may call."""
        ...

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """Judge a complete answer."""
        ...
