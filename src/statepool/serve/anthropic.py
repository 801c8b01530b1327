"""``/v1/messages``: from the body to an engine request, and from outputs to events or one message."""

from __future__ import annotations

import json
from typing import Any

from statepool.core.errors import InvalidRequest, StatepoolError
from statepool.engine.request import GrammarSpec, Output, SamplingParams
from statepool.serve.anthropic_schema import (
    AnthropicMessage,
    AnthropicTool,
    CountRequest,
    MessageRequest,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from statepool.serve.conversation import AUTO, NONE, REQUIRED, Conversation
from statepool.serve.errors import anthropic_body
from statepool.serve.job import Event
from statepool.serve.openai.grammars import json_schema_grammar
from statepool.serve.reading import CallArguments, CallStart, Content, Piece, Reasoning
from statepool.serve.sampling import engine_request
from statepool.serve.served_model import ServedModel
from statepool.serve.turn import Call, Turn

_CHOICES = {"auto": AUTO, "any": REQUIRED, "none": NONE, "tool": AUTO}


def messages_of(body: CountRequest) -> list[dict[str, Any]]:
    """Chat messages for an Anthropic conversation."""
    messages: list[dict[str, Any]] = []
    if body.system:
        text = body.system if isinstance(body.system, str) else "\n\n".join(block.text for block in body.system)
        messages.append({"role": "system", "content": text})
    for message in body.messages:
        messages += _split(message)
    return messages


def _split(message: AnthropicMessage) -> list[dict[str, Any]]:
    """One Anthropic message as chat messages: tool results become messages of their own, before the text."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for block in message.content:
        match block:
            case TextBlock(text=text):
                texts.append(text)
            case ToolUseBlock(id=call_id, name=name, input=arguments):
                calls.append(Call(call_id, name, json.dumps(arguments, ensure_ascii=False)).chat_form())
            case ToolResultBlock(tool_use_id=call_id, content=content):
                text = content if isinstance(content, str) else "\n".join(part.text for part in content or ())
                results.append({"role": "tool", "tool_call_id": call_id, "content": text})
            case _:
                pass
    if not texts and not calls:
        return results
    own: dict[str, Any] = {"role": message.role, "content": "\n".join(texts)}
    if calls:
        own["tool_calls"] = calls
    return [*results, own]


def _tool(tool: AnthropicTool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema}
    return {"type": "function", "function": function}


def conversation_of(body: CountRequest) -> Conversation:
    """The conversation in an Anthropic body.

    Raises:
        InvalidRequest: the tool choice names no tool, or there is nothing to answer.
    """
    messages = messages_of(body)
    prefill = ""
    if len(messages) > 1 and messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls"):
        prefill = messages.pop()["content"]
    if not messages:
        raise InvalidRequest("messages hold nothing the model can read", param="messages")
    choice = body.tool_choice
    if choice is not None and choice.type == "tool" and choice.name is None:
        raise InvalidRequest("tool_choice of type 'tool' needs a name", param="tool_choice.name")
    conversation = Conversation(
        messages=messages,
        tools=[_tool(tool) for tool in body.tools or ()],
        tool_choice=_CHOICES[choice.type] if choice else AUTO,
        named_tool=choice.name if choice and choice.type == "tool" else None,
        answer_grammar=_grammar(body),
        prefill=prefill,
    )
    conversation.check()
    return conversation


def _grammar(body: CountRequest) -> GrammarSpec | None:
    if not isinstance(body, MessageRequest):
        return None
    wanted = body.output_format or (body.output_config.format if body.output_config else None)
    return None if wanted is None else json_schema_grammar(wanted.schema_, "output_config.format.schema")


def count_tokens(body: CountRequest, model: ServedModel) -> int:
    """Tokens of the prompt that ``body`` makes."""
    model.check_name(body.model)
    return len(conversation_of(body).encode(model))


class MessageJob:
    """One call of ``/v1/messages``."""

    def __init__(self, body: MessageRequest, model: ServedModel, call_id: str) -> None:
        """Translate ``body``.

        Raises:
            InvalidRequest: a field cannot be honoured.
            NotFound: the model is not served here.
        """
        model.check_name(body.model)
        conversation = conversation_of(body)
        prompt = tuple(conversation.encode(model))
        params = SamplingParams(
            max_tokens=model.room(prompt, body.max_tokens, "messages"),
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            top_k=body.top_k or 0,
            seed=body.seed,
            stop=tuple(dict.fromkeys(body.stop_sequences or ())),
            grammar=conversation.grammar(),
            show_special=conversation.marks(model),
        )
        self._model = model
        self._id = call_id
        self._prompt_tokens = len(prompt)
        self._turn = Turn(conversation.reader(model, prompt))
        self._blocks = 0
        self._open: str | None = None
        self.requests = [engine_request(body, call_id, prompt, params)]

    def opening(self) -> list[Event]:
        """``message_start``, with the whole prompt counted as new: what is cached is known later."""
        usage = {
            "input_tokens": self._prompt_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 0,
        }
        message = {**self._head(), "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        return [_event("message_start", message=message), _event("ping")]

    def push(self, output: Output) -> list[Event]:
        """Deltas of the open block; blocks are opened and closed as their kind changes."""
        events: list[Event] = []
        for piece in self._turn.push(output):
            events += self._add(piece)
        return events

    def closing(self) -> list[Event]:
        """The end of the last block and of the message."""
        reason, sequence = self._stop()
        events = self._close() if self._open or self._blocks else [*self._start("text", {"text": ""}), *self._close()]
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        return [*events, _event("message_delta", delta=delta, usage=self._usage()), _event("message_stop")]

    def failed(self, error: StatepoolError) -> list[Event]:
        """An ``error`` event."""
        return [Event(anthropic_body(error.status, error.message), "error")]

    def answer(self) -> dict[str, Any]:
        """The message."""
        turn = self._turn
        content: list[dict[str, Any]] = []
        if turn.reasoning:
            content.append({"type": "thinking", "thinking": turn.reasoning, "signature": ""})
        if turn.content or not turn.calls:
            content.append({"type": "text", "text": turn.content})
        content += [
            {"type": "tool_use", "id": call.id, "name": call.name, "input": _input(call)} for call in turn.calls
        ]
        reason, sequence = self._stop()
        return {
            **self._head(),
            "content": content,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": self._usage(),
        }

    def _add(self, piece: Piece) -> list[Event]:
        match piece:
            case Content(text=text):
                opened = [] if self._open == "text" else self._start("text", {"text": ""})
                return [*opened, self._delta({"type": "text_delta", "text": text})]
            case Reasoning(text=text):
                fields = {"thinking": "", "signature": ""}
                opened = [] if self._open == "thinking" else self._start("thinking", fields)
                return [*opened, self._delta({"type": "thinking_delta", "thinking": text})]
            case CallStart(id=call_id, name=name):
                return self._start("tool_use", {"id": call_id, "name": name, "input": {}})
            case CallArguments(text=text):
                return [self._delta({"type": "input_json_delta", "partial_json": text})]

    def _start(self, kind: str, fields: dict[str, Any]) -> list[Event]:
        closed = self._close()
        self._open = kind
        block = {"type": kind, **fields}
        return [*closed, _event("content_block_start", index=self._blocks, content_block=block)]

    def _delta(self, delta: dict[str, Any]) -> Event:
        return _event("content_block_delta", index=self._blocks, delta=delta)

    def _close(self) -> list[Event]:
        if self._open is None:
            return []
        self._open = None
        self._blocks += 1
        return [_event("content_block_stop", index=self._blocks - 1)]

    def _stop(self) -> tuple[str, str | None]:
        turn = self._turn
        if turn.called:
            return "tool_use", None
        if turn.finish == "length":
            return "max_tokens", None
        if isinstance(turn.stop_reason, str):
            return "stop_sequence", turn.stop_reason
        return "end_turn", None

    def _usage(self) -> dict[str, Any]:
        cached = self._turn.usage.cached_tokens
        return {
            "input_tokens": self._prompt_tokens - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": self._turn.usage.completion_tokens,
        }

    def _head(self) -> dict[str, Any]:
        return {"id": self._id, "type": "message", "role": "assistant", "model": self._model.id}


def _event(kind: str, **fields: Any) -> Event:
    return Event({"type": kind, **fields}, kind)


def _input(call: Call) -> dict[str, Any]:
    """The arguments as an object; an answer cut short inside them leaves an empty one."""
    try:
        value = json.loads(call.arguments or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
