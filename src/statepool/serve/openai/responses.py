"""``/v1/responses``: from the body to an engine request, and from outputs to typed events or one response."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from statepool.core.errors import StatepoolError
from statepool.engine.request import GrammarSpec, Output
from statepool.serve.conversation import AUTO, Conversation
from statepool.serve.errors import code_of
from statepool.serve.job import Event
from statepool.serve.openai.chat_schema import JsonObjectFormat
from statepool.serve.openai.grammars import json_schema_grammar
from statepool.serve.openai.reports import logprob_entry
from statepool.serve.openai.response_items import OutputItems
from statepool.serve.openai.response_schema import (
    InputCall,
    InputCallOutput,
    InputItem,
    InputMessage,
    InputText,
    ResponseChosenTool,
    ResponseRequest,
    ResponseSchemaFormat,
    ResponseTool,
)
from statepool.serve.response_store import ResponseStore, StoredResponse
from statepool.serve.sampling import engine_request, sampling_params
from statepool.serve.served_model import ServedModel
from statepool.serve.turn import Call, Turn


def input_messages(items: str | list[InputItem]) -> list[dict[str, Any]]:
    """Chat messages for the input of a response; calls in a row join one assistant message."""
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    messages: list[dict[str, Any]] = []
    for item in items:
        match item:
            case InputMessage(role=role, content=content):
                messages.append({"role": "system" if role == "developer" else role, "content": _text(content)})
            case InputCall(call_id=call_id, name=name, arguments=arguments):
                call = Call(call_id, name, arguments).chat_form()
                if messages and messages[-1]["role"] == "assistant":
                    messages[-1].setdefault("tool_calls", []).append(call)
                else:
                    messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
            case InputCallOutput(call_id=call_id, output=output):
                messages.append({"role": "tool", "tool_call_id": call_id, "content": _text(output)})
            case _:
                pass
    return messages


def _text(content: str | list[Any]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.text if isinstance(part, InputText) else part.refusal for part in content)


def _tool(tool: ResponseTool) -> dict[str, Any]:
    return {"type": "function", "function": tool.model_dump(exclude_none=True, exclude={"strict", "type"})}


def _grammar(body: ResponseRequest) -> GrammarSpec | None:
    match body.text.format if body.text else None:
        case ResponseSchemaFormat(schema_=schema):
            return json_schema_grammar(schema, "text.format.schema")
        case JsonObjectFormat():
            return GrammarSpec("json_object")
        case _:
            return None


class ResponseJob:
    """One call of ``/v1/responses``."""

    def __init__(
        self, body: ResponseRequest, model: ServedModel, store: ResponseStore, call_id: str, created: int
    ) -> None:
        """Translate ``body``.

        Raises:
            InvalidRequest: a field cannot be honoured.
            NotFound: the model is not served here, or the previous response is not stored.
        """
        model.check_name(body.model)
        earlier: list[dict[str, Any]] = []
        if body.previous_response_id is not None:
            earlier = store.get(body.previous_response_id, "previous_response_id").messages
        self._history = [*earlier, *input_messages(body.input)]
        choice = body.tool_choice
        conversation = Conversation(
            messages=[
                *([{"role": "system", "content": body.instructions}] if body.instructions else []),
                *self._history,
            ],
            tools=[_tool(tool) for tool in body.tools or ()],
            tool_choice=choice if isinstance(choice, str) else AUTO,
            named_tool=choice.name if isinstance(choice, ResponseChosenTool) else None,
            answer_grammar=_grammar(body),
            template_values=dict(body.chat_template_kwargs or {}),
        )
        conversation.check()
        prompt = tuple(conversation.encode(model))
        self._logprobs = "message.output_text.logprobs" in (body.include or ()) or body.top_logprobs is not None
        params = sampling_params(
            body,
            model,
            max_tokens=model.room(prompt, body.max_output_tokens, "input"),
            logprobs=(body.top_logprobs or 0) if self._logprobs else None,
            grammar=conversation.grammar(),
            marks=conversation.marks(model),
        )
        self._body = body
        self._model = model
        self._store = store
        self._id = call_id
        self._created = created
        self._prompt_tokens = len(prompt)
        self._turn = Turn(conversation.reader(model, prompt))
        self._items = OutputItems()
        self._sequence = 0
        self.requests = [engine_request(body, call_id, prompt, params)]

    def opening(self) -> list[Event]:
        """``response.created`` and ``response.in_progress``."""
        response = self._response("in_progress")
        return self._numbered([(name, {"response": response}) for name in ("response.created", "response.in_progress")])

    def push(self, output: Output) -> list[Event]:
        """Deltas of the item being written; items are opened and closed as their kind changes."""
        pieces = self._turn.push(output)
        logprobs = [logprob_entry(entry, self._model.tokenizer) for entry in output.logprobs]
        events: list[tuple[str, dict[str, Any]]] = []
        for piece in pieces:
            events += self._items.add(piece, logprobs)
            logprobs = []
        self._items.hold_logprobs(logprobs)
        return self._numbered(events)

    def closing(self) -> list[Event]:
        """The end of the last item, and the whole response."""
        events = self._items.close(empty_message=True)
        response = self._finished()
        return self._numbered([*events, (f"response.{response['status']}", {"response": response})])

    def failed(self, error: StatepoolError) -> list[Event]:
        """``response.failed``."""
        response = self._response("failed")
        response["error"] = {"code": code_of(error), "message": error.message}
        return self._numbered([("response.failed", {"response": response})])

    def answer(self) -> dict[str, Any]:
        """The response."""
        self._items.close(empty_message=True)
        return self._finished()

    def _finished(self) -> dict[str, Any]:
        response = self._response("incomplete" if self._turn.finish == "length" else "completed")
        if self._body.store is not False:
            self._store.put(StoredResponse(response, [*self._history, self._own_message()]))
        return response

    def _own_message(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": self._turn.content}
        if self._turn.calls:
            message["tool_calls"] = [call.chat_form() for call in self._turn.calls]
        return message

    def _response(self, status: str) -> dict[str, Any]:
        body, usage = self._body, self._turn.usage
        choice = body.tool_choice or AUTO
        chosen = choice if isinstance(choice, str) else {"type": "function", "name": choice.name}
        ended = status in ("completed", "incomplete")
        form = body.text.format if body.text else None
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "model": self._model.id,
            "output": list(self._items.finished),
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions,
            "metadata": body.metadata or {},
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "tool_choice": chosen,
            "tools": [
                {"strict": None, "parameters": None, "description": None, **tool.model_dump(exclude_none=True)}
                for tool in body.tools or ()
            ],
            "max_output_tokens": body.max_output_tokens,
            "previous_response_id": body.previous_response_id,
            "store": body.store is not False,
            "text": {"format": form.model_dump(by_alias=True, exclude_none=True) if form else {"type": "text"}},
            "usage": {
                "input_tokens": self._prompt_tokens,
                "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": self._prompt_tokens + usage.completion_tokens,
            }
            if ended
            else None,
        }

    def _numbered(self, events: list[tuple[str, dict[str, Any]]]) -> list[Event]:
        numbered = []
        for name, data in events:
            numbered.append(Event({"type": name, "sequence_number": self._sequence, **data}, name))
            self._sequence += 1
        return numbered


def new_response_id() -> str:
    """A fresh id for a response."""
    return f"resp_{uuid4().hex}"
