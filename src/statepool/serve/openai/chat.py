"""``/v1/chat/completions``: from the body to engine requests, and from outputs to chunks or one answer."""

from __future__ import annotations

from typing import Any

from statepool.core.errors import InvalidRequest, StatepoolError
from statepool.engine.request import GrammarSpec, Output, Request, TokenLogprob
from statepool.serve.conversation import AUTO, Conversation
from statepool.serve.errors import code_of, openai_body
from statepool.serve.job import Event
from statepool.serve.openai.chat_schema import (
    ChatRequest,
    ChosenTool,
    JsonObjectFormat,
    JsonSchemaFormat,
    LarkFormat,
    Message,
    RegexFormat,
    ResponseFormat,
    Tool,
)
from statepool.serve.openai.grammars import json_schema_grammar
from statepool.serve.openai.reports import logprob_entry, usage_body
from statepool.serve.reading import CallArguments, CallStart, Content, Piece, Reasoning
from statepool.serve.sampling import engine_request, sampling_params
from statepool.serve.served_model import ServedModel
from statepool.serve.turn import Turn


def message_dict(message: Message) -> dict[str, Any]:
    """A message as templates want it. ``developer`` is today's name for ``system``."""
    ready = message.model_dump(exclude_none=True)
    if message.role == "developer":
        ready["role"] = "system"
    return ready


def tool_dict(tool: Tool) -> dict[str, Any]:
    """A tool as templates want it."""
    return {"type": "function", "function": tool.function.model_dump(exclude_none=True, exclude={"strict"})}


def answer_grammar(wanted: ResponseFormat | None) -> GrammarSpec | None:
    """The grammar a ``response_format`` asks for.

    Raises:
        InvalidRequest: the schema cannot be written as JSON.
    """
    match wanted:
        case JsonSchemaFormat(json_schema=spec):
            return json_schema_grammar(spec.schema_, "response_format.json_schema.schema")
        case JsonObjectFormat():
            return GrammarSpec("json_object")
        case RegexFormat(pattern=pattern):
            return GrammarSpec("regex", pattern)
        case LarkFormat(grammar=grammar):
            return GrammarSpec("lark", grammar)
        case _:
            return None


def conversation_of(body: ChatRequest) -> Conversation:
    """The conversation in a chat body."""
    messages = [message_dict(message) for message in body.messages]
    prefill = ""
    if body.continue_final_message:
        last = messages.pop()
        if last["role"] != "assistant" or not messages:
            raise InvalidRequest("continue_final_message needs a last message of the assistant", param="messages")
        prefill = last.get("content") or ""
        if not isinstance(prefill, str):
            prefill = "".join(part["text"] for part in prefill)
    choice = body.tool_choice
    named = choice.function.name if isinstance(choice, ChosenTool) else None
    conversation = Conversation(
        messages=messages,
        tools=[tool_dict(tool) for tool in body.tools or ()],
        tool_choice=choice if isinstance(choice, str) else AUTO,
        named_tool=named,
        answer_grammar=answer_grammar(body.response_format),
        prefill=prefill,
        add_generation_prompt=body.add_generation_prompt,
        template_values=_template_values(body),
    )
    conversation.check()
    return conversation


class ChatJob:
    """One chat call with ``n`` choices."""

    def __init__(self, body: ChatRequest, model: ServedModel, call_id: str, created: int) -> None:
        """Translate ``body``.

        Raises:
            InvalidRequest: a field cannot be honoured.
            NotFound: the model is not served here.
        """
        model.check_name(body.model)
        if body.top_logprobs and not body.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs to be true", param="top_logprobs")
        self._body = body
        self._model = model
        self._id = call_id
        self._created = created
        conversation = conversation_of(body)
        if body.prompt_token_ids is not None:
            model.check_ids(body.prompt_token_ids, "prompt_token_ids")
            self._prompt = tuple(body.prompt_token_ids)
        else:
            self._prompt = tuple(conversation.encode(model))
        wanted = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        params = sampling_params(
            body,
            model,
            max_tokens=model.room(self._prompt, wanted, "messages"),
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            grammar=conversation.grammar(),
            marks=conversation.marks(model),
        )
        self.requests = [
            engine_request(body, f"{call_id}-{index}", self._prompt, params, index, first=index == 0)
            for index in range(body.n or 1)
        ]
        self._turns = {request.id: Turn(conversation.reader(model, self._prompt)) for request in self.requests}
        self._usage_asked = body.stream_options is not None and body.stream_options.include_usage

    def opening(self) -> list[Event]:
        """The role of every choice; prompt ids, if asked for, with the first."""
        events = []
        for request in self.requests:
            extra: dict[str, Any] = {}
            if request.index == 0 and self._body.return_token_ids:
                extra["prompt_token_ids"] = list(self._prompt)
            events.append(self._chunk(request.index, {"role": "assistant", "content": ""}, None, **extra))
        return events

    def push(self, output: Output) -> list[Event]:
        """Chunks with what ``output`` adds to its choice."""
        turn = self._turns[output.id]
        index = self._index(output.id)
        pieces = turn.push(output)
        deltas = [_delta(piece) for piece in pieces]
        if not deltas and (output.logprobs or (self._body.return_token_ids and output.tokens)):
            # Tokens whose text is still held back are reported at once all the same.
            deltas = [{}]
        events = []
        for position, delta in enumerate(deltas):
            events.append(self._chunk(index, delta, None, output if position == 0 else None))
        if turn.finish is not None:
            events.append(self._chunk(index, {}, finish_reason(turn), stop_reason=turn.stop_reason))
        return events

    def closing(self) -> list[Event]:
        """Usage, if asked for, and the end mark."""
        events = []
        if self._usage_asked:
            events.append(Event({**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage()}))
        return [*events, Event("[DONE]")]

    def failed(self, error: StatepoolError) -> list[Event]:
        """An error object in place of a chunk."""
        return [Event(openai_body(error.status, error.message, error.param, code_of(error))), Event("[DONE]")]

    def answer(self) -> dict[str, Any]:
        """A ``chat.completion``."""
        choices = [self._choice(request) for request in self.requests]
        answer = {**self._head("chat.completion"), "choices": choices, "usage": self._usage()}
        if self._body.return_token_ids:
            answer["prompt_token_ids"] = list(self._prompt)
        return answer

    def _choice(self, request: Request) -> dict[str, Any]:
        turn = self._turns[request.id]
        message: dict[str, Any] = {"role": "assistant", "content": turn.content, "refusal": None}
        if turn.reasoning:
            message["reasoning_content"] = turn.reasoning
        if turn.calls:
            message["content"] = turn.content or None
            message["tool_calls"] = [call.chat_form() for call in turn.calls]
        choice: dict[str, Any] = {
            "index": request.index,
            "message": message,
            "logprobs": self._logprobs(turn.logprobs) if self._body.logprobs else None,
            "finish_reason": finish_reason(turn),
            "stop_reason": turn.stop_reason,
        }
        if self._body.return_token_ids:
            choice["token_ids"] = turn.tokens
            if turn.sampled_logprobs:
                choice["sampled_logprobs"] = turn.sampled_logprobs
        return choice

    def _chunk(
        self, index: int, delta: dict[str, Any], finish: str | None, output: Output | None = None, **extra: Any
    ) -> Event:
        choice: dict[str, Any] = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        if output is not None:
            if self._body.logprobs:
                choice["logprobs"] = self._logprobs(output.logprobs)
            if self._body.return_token_ids:
                choice["token_ids"] = list(output.tokens)
        if "stop_reason" in extra:
            choice["stop_reason"] = extra.pop("stop_reason")
        chunk = {**self._head("chat.completion.chunk"), "choices": [choice], **extra}
        if self._usage_asked:
            chunk["usage"] = None
        return Event(chunk)

    def _logprobs(self, logprobs: tuple[TokenLogprob, ...] | list[TokenLogprob]) -> dict[str, Any]:
        return {"content": [logprob_entry(entry, self._model.tokenizer) for entry in logprobs], "refusal": None}

    def _usage(self) -> dict[str, Any]:
        return usage_body([turn.usage for turn in self._turns.values()], len(self._prompt))

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model.id,
            "system_fingerprint": self._model.info.fingerprint,
        }

    def _index(self, request_id: str) -> int:
        return int(request_id.rpartition("-")[2])


def finish_reason(turn: Turn) -> str:
    """OpenAI's word for why the answer ended."""
    return "tool_calls" if turn.called else turn.finish or "stop"


def _delta(piece: Piece) -> dict[str, Any]:
    match piece:
        case Content(text=text):
            return {"content": text}
        case Reasoning(text=text):
            return {"reasoning_content": text}
        case CallStart(index=index, id=call_id, name=name):
            function = {"name": name, "arguments": ""}
            return {"tool_calls": [{"index": index, "id": call_id, "type": "function", "function": function}]}
        case CallArguments(index=index, text=text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}


_RESERVED = frozenset({"messages", "tools", "add_generation_prompt", "tokenizer", "documents", "self"})


def _template_values(body: ChatRequest) -> dict[str, Any]:
    values = dict(body.chat_template_kwargs or {})
    taken = _RESERVED.intersection(values)
    if taken:
        raise InvalidRequest(
            f"chat_template_kwargs must not hold {', '.join(sorted(taken))}", param="chat_template_kwargs"
        )
    return values
