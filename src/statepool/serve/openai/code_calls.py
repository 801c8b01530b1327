"""The code interpreter of ``/v1/responses``: how the model sees the tool, in which container a response runs code, and
what becomes of each call.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from statepool.core.config import parse_size
from statepool.core.errors import InvalidRequest
from statepool.serve.containers import Containers, Outcome, new_container_id
from statepool.serve.interpreter import Cell
from statepool.serve.openai.response_schema import AutoContainer, InputInterpreterCall, InterpreterTool, ResponseRequest
from statepool.serve.turn import Call

__all__ = ["INTERPRETER", "TOOL", "CodeCalls", "code_in", "seen", "shown"]

INTERPRETER = "code_interpreter"
"""Name of the tool, to the client and to the model."""
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": INTERPRETER,
        "description": (
            "Run Python in a sandbox without network. Names and files stay from call to call. "
            "The answer is what was printed and the value of the last expression."
        ),
        "parameters": {
            "type": "object",
            "properties": {"code": {"type": "string"}},
            "required": ["code"],
            "additionalProperties": False,
        },
    },
}
_MOST_CHARS = 16_000
"""Of what a cell printed that the model gets to see: from its start and its end."""


def code_in(arguments: str) -> str | None:
    """The code in the arguments of a call; None where they are not what the tool takes."""
    try:
        found = json.loads(arguments)
    except ValueError:
        return None
    code = found.get("code") if isinstance(found, dict) else None
    return code if isinstance(code, str) else None


def seen(outcome: Outcome) -> str:
    """What the model reads of an outcome."""
    text = outcome.logs
    if len(text) > _MOST_CHARS:
        half = _MOST_CHARS // 2
        text = f"{text[:half]}\n[{len(text) - 2 * half} characters left out]\n{text[-half:]}"
    figures = f"[{len(outcome.images)} figure(s) shown to the user]" if outcome.images else ""
    return "\n".join(part for part in (text, figures) if part) or "(no output)"


def shown(outcome: Outcome) -> list[dict[str, Any]]:
    """What the client gets of an outcome."""
    logs = [{"type": "logs", "logs": outcome.logs}] if outcome.logs else []
    images = [{"type": "image", "url": f"data:image/png;base64,{image}"} for image in outcome.images]
    return [*logs, *images]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A call on its way: its id in the conversation, its code or why it is not run, and its place in the output."""

    call_id: str
    code: str
    refusal: str | None
    place: int


class CodeCalls:
    """The calls of one response: which container they run in, which of them wait, how many more there may be."""

    def __init__(self, container_id: str, domain: str | None, most: int) -> None:
        self.container_id = container_id
        self.left = most
        self._most = most
        self._domain = domain
        self._waiting: list[_Asked] = []

    @classmethod
    def of(cls, body: ResponseRequest, containers: Containers, earlier: str | None) -> CodeCalls | None:
        """For a response whose tools name the interpreter, else None.

        Args:
            body: the request.
            containers: of this server.
            earlier: the container of the response that this one continues.

        Raises:
            InvalidRequest: the server runs no code, or not in a container like this.
            NotFound: the named container has ended.
        """
        tool = next((tool for tool in body.tools or () if isinstance(tool, InterpreterTool)), None)
        if tool is None:
            return None
        containers.require()
        place = tool.container
        if isinstance(place, AutoContainer):
            _check_auto(place, containers.config.code_memory_bytes)
            named = [item.container_id for item in body.input if isinstance(item, InputInterpreterCall)]
            known = [name for name in (earlier, *named) if name is not None and containers.alive(name)]
            container_id = known[-1] if known else new_container_id()
        else:
            container_id = containers.get(place, "tools").id
        most = containers.config.code_calls
        return cls(
            container_id, body.cache_salt, most if body.max_tool_calls is None else min(most, body.max_tool_calls)
        )

    def ask(self, calls: Sequence[Call], places: Sequence[int]) -> None:
        """Queue the calls of a turn; ``places`` are the numbers of their items in the output."""
        for call, place in zip(calls, places, strict=True):
            code, refusal = code_in(call.arguments), None
            if code is None:
                refusal = 'not run: the arguments must be {"code": "..."}'
            elif self.left == 0:
                refusal = f"not run: a response may run {self._most} cells; answer with what is known"
            else:
                self.left -= 1
            self._waiting.append(_Asked(call.id, code or "", refusal, place))

    def refused(self) -> tuple[str, int, Outcome] | None:
        """Id, place and outcome of the first call that waits, if it is one that is not run."""
        if not self._waiting or (refusal := self._waiting[0].refusal) is None:
            return None
        asked = self._waiting.pop(0)
        return asked.call_id, asked.place, Outcome(refusal, failed=True)

    def cell(self) -> Cell | None:
        """What to run next."""
        return Cell(self.container_id, self._waiting[0].code, self._domain) if self._waiting else None

    @property
    def place(self) -> int | None:
        """The item of the cell that runs next."""
        return self._waiting[0].place if self._waiting else None

    def ran(self) -> tuple[str, int]:
        """The first call has its outcome: its id and place."""
        asked = self._waiting.pop(0)
        return asked.call_id, asked.place


def _check_auto(place: AutoContainer, most_bytes: int) -> None:
    if place.file_ids:
        raise InvalidRequest(
            "container.file_ids: there are no files here to copy in; make a container (POST /v1/containers), put the "
            "files into it and name it",
            param="tools",
        )
    if place.memory_limit is not None:
        check_memory(place.memory_limit, most_bytes, "tools")
    if place.network_policy is not None and place.network_policy.type != "disabled":
        raise InvalidRequest("container.network_policy: containers of this server have no network", param="tools")


def check_memory(text: str, most_bytes: int, param: str) -> int:
    """Bytes of a memory limit such as ``1g``, in powers of two.

    Raises:
        InvalidRequest: more than this server gives.
    """
    wanted = parse_size(f"{text}i")
    if wanted > most_bytes:
        raise InvalidRequest(
            f"memory_limit: {text} is more than this server gives a container ({most_bytes >> 20} MiB)", param=param
        )
    return wanted
