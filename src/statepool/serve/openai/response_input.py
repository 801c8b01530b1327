"""The input of a response as chat messages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from statepool.core.errors import InvalidRequest
from statepool.serve.containers import Outcome
from statepool.serve.openai.code_calls import INTERPRETER, seen
from statepool.serve.openai.response_schema import (
    InputCall,
    InputCallOutput,
    InputInterpreterCall,
    InputItem,
    InputLogs,
    InputMessage,
    InputText,
)
from statepool.serve.turn import Call

__all__ = ["calls_in", "cell_id", "input_messages"]


def input_messages(items: str | list[InputItem], earlier: int = 0) -> list[dict[str, Any]]:
    """Messages for ``items``, behind a conversation with ``earlier`` calls; calls in a row join one message.

    Raises:
        InvalidRequest: a cell comes without what it gave.
    """
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    messages: list[dict[str, Any]] = []
    for item in items:
        match item:
            case InputMessage(role=role, content=content):
                messages.append({"role": "system" if role == "developer" else role, "content": _text(content)})
            case InputCall(call_id=call_id, name=name, arguments=arguments):
                _add_call(messages, Call(call_id, name, arguments))
            case InputCallOutput(call_id=call_id, output=output):
                messages.append({"role": "tool", "tool_call_id": call_id, "content": _text(output)})
            case InputInterpreterCall():
                name = cell_id(earlier + calls_in(messages))
                _add_call(messages, Call(name, INTERPRETER, json.dumps({"code": item.code or ""})))
                messages.append({"role": "tool", "tool_call_id": name, "content": _outcome(item)})
            case _:
                pass
    return messages


def calls_in(messages: Sequence[dict[str, Any]]) -> int:
    """How many calls the model has made in a conversation."""
    return sum(len(message.get("tool_calls") or ()) for message in messages)


def cell_id(number: int) -> str:
    """Id in the conversation of a cell that is call ``number``: the same in every run, since templates may write it
    into the prompt, and of nine letters and digits, since some of them ask for that.
    """
    return f"cell{number:05d}"


def _add_call(messages: list[dict[str, Any]], call: Call) -> None:
    if messages and messages[-1]["role"] == "assistant":
        messages[-1].setdefault("tool_calls", []).append(call.chat_form())
    else:
        messages.append({"role": "assistant", "content": "", "tool_calls": [call.chat_form()]})


def _outcome(item: InputInterpreterCall) -> str:
    if item.outputs is None:
        raise InvalidRequest(
            "input: a code_interpreter_call without outputs; ask for them with "
            "include=['code_interpreter_call.outputs'], or continue with previous_response_id",
            param="input",
        )
    logs = "\n".join(output.logs for output in item.outputs if isinstance(output, InputLogs))
    return seen(Outcome(logs, tuple("" for output in item.outputs if not isinstance(output, InputLogs))))


def _text(content: str | list[Any]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.text if isinstance(part, InputText) else part.refusal for part in content)
