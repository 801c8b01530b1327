"""The world's side of a conversation: tool calls are run, answers are judged, and every failure gets a name.

What the model did wrong (a malformed call, an unknown tool, code that runs too long) it is told, and goes on. What it
could not help (a sandbox that broke, a verifier that raised) ends the conversation without a verdict, and so without a
reward.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from statepool.core.errors import InvalidRequest, StatepoolError
from statepool.engine.text.tools import ToolCall, ToolParser
from statepool.tasks import ConversationJudge, Message, Problem, Task, Turn, Verdict

_log = logging.getLogger(__name__)


class ToolBroken(StatepoolError):
    """A tool could not be run at all; the model is not to blame."""

    code = "tool_broken"


class ToolTimeout(StatepoolError):
    """A call ran longer than it may."""

    code = "tool_timeout"


class Tool(Protocol):
    """What runs one kind of call for one conversation."""

    def call(self, arguments: Mapping[str, Any]) -> str:
        """Run a call and return what it printed.

        Raises:
            InvalidRequest: the arguments are not those of the tool. ToolTimeout. ToolBroken.
        """
        ...

    def close(self) -> None:
        """Give back what the tool held."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What a conversation may use: ``output`` characters of one tool reply."""

    output: int = 512


class ToolDialogue:
    """A problem with tools: calls until there is none in a turn, which is then the answer.

    The task judges that answer, or all that was said where it is a `ConversationJudge`.
    """

    def __init__(
        self, task: Task, problem: Problem, tools: Mapping[str, Tool], parser: type[ToolParser], limits: Limits
    ) -> None:
        self._task = task
        self._problem = problem
        self._tools = tools
        self._parser = parser
        self._limits = limits
        self._said: list[Message] = []

    def reply(self, text: str) -> Turn:
        """Run the calls in ``text``; without one, judge."""
        self._said.append({"role": "assistant", "content": text})
        described = list(self._task.tools(self._problem))
        if not described:
            return self._judged()
        _, calls = self._parser.parse(text, described)
        if not calls:
            faults = ("malformed_call",) if any(mark in text for mark in self._parser.markers) else ()
            return self._judged(faults)
        said: list[str] = []
        faults: list[str] = []  # type: ignore[no-redef]
        for call in calls:
            try:
                content, fault = self._run(call)
            except ToolBroken as error:
                _log.warning("a tool broke, so this conversation gets no reward: %s", error.message)
                return Turn(faults=(*faults, "tool_broken"))
            said.append(content)
            self._said.append({"role": "tool", "content": content})
            faults += [fault] if fault else []  # type: ignore[operator]
        return Turn("\n".join(said), faults=tuple(faults))

    def close(self) -> None:
        """Close every tool."""
        for tool in self._tools.values():
            tool.close()

    def _run(self, call: ToolCall) -> tuple[str, str]:
        tool = self._tools.get(call.name)
        if tool is None:
            return f"error: there is no tool {call.name}", "unknown_tool"
        try:
            arguments = json.loads(call.arguments)
            if not isinstance(arguments, dict):
                return "error: arguments must be an object", "malformed_call"
            said = tool.call(arguments)
        except (ValueError, InvalidRequest) as error:
            return f"error: {error}", "malformed_call"
        except ToolTimeout as error:
            return f"error: {error.message}", "tool_timeout"
        if len(said) > self._limits.output:
            return said[: self._limits.output] + "…", "output_cut"
        return said, ""

    def _judged(self, faults: tuple[str, ...] = ()) -> Turn:
        verdict, fault = judge(self._task, self._problem, self._said)
        return Turn(verdict=verdict, faults=(*faults, fault) if fault else faults)


def judge(task: Task, problem: Problem, said: Sequence[Message]) -> tuple[Verdict | None, str]:
    """The verdict on what was said, the answer last, and the name of what went wrong where there is none."""
    try:
        if isinstance(task, ConversationJudge):
            verdict = task.verify_conversation(problem, said)
        else:
            verdict = task.verify(problem, said[-1]["content"])
    except Exception as error:  # noqa: BLE001 - anybody's verifier; its failure must not become a reward
        _log.warning("the verifier of %s raised %s: %s", task.name, type(error).__name__, error)
        return None, "verifier_error"
    if not 0.0 <= verdict.score <= 1.0:  # also not a number
        _log.warning("the verifier of %s gave %r, which is no score from 0 to 1", task.name, verdict.score)
        return None, "verifier_error"
    return verdict, ""
