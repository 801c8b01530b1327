"""``/v1/responses``: from the body to engine requests, and from outputs to typed events or one response.

With the code interpreter a response has several turns: cells that the model asks for are run (``serve.interpreter``),
and it goes on with what they gave.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from statepool.core.errors import ContextLengthExceeded, StatepoolError
from statepool.engine.request import GrammarSpec, Output, Request, Usage
from statepool.serve.containers import Containers, Outcome
from statepool.serve.conversation import AUTO, Conversation
from statepool.serve.errors import code_of
from statepool.serve.interpreter import Cell
from statepool.serve.job import Event
from statepool.serve.openai.chat_schema import JsonObjectFormat
from statepool.serve.openai.code_calls import INTERPRETER, TOOL, CodeCalls, seen, shown
from statepool.serve.openai.grammars import json_schema_grammar
from statepool.serve.openai.reports import logprob_entry
from statepool.serve.openai.response_input import calls_in, cell_id, input_messages
from statepool.serve.openai.response_items import OutputItems
from statepool.serve.openai.response_schema import (
    InterpreterTool,
    ResponseChosenInterpreter,
    ResponseChosenTool,
    ResponseRequest,
    ResponseSchemaFormat,
    ResponseTool,
)
from statepool.serve.response_store import ResponseStore, StoredResponse
from statepool.serve.sampling import engine_request, sampling_params
from statepool.serve.served_model import ServedModel
from statepool.serve.turn import Turn, total


def _tool(tool: ResponseTool | InterpreterTool) -> dict[str, Any]:
    if isinstance(tool, InterpreterTool):
        return TOOL
    return {"type": "function", "function": tool.model_dump(exclude_none=True, exclude={"strict", "type"})}


def _chosen(choice: object) -> str | None:
    match choice:
        case ResponseChosenTool(name=name):
            return name
        case ResponseChosenInterpreter():
            return INTERPRETER
        case _:
            return None


def _echoed(tool: ResponseTool | InterpreterTool) -> dict[str, Any]:
    empty = {} if isinstance(tool, InterpreterTool) else {"strict": None, "parameters": None, "description": None}
    return {**empty, **tool.model_dump(exclude_none=True)}


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
        self,
        body: ResponseRequest,
        model: ServedModel,
        store: ResponseStore,
        containers: Containers,
        call_id: str,
        created: int,
    ) -> None:
        """Translate ``body``.

        Raises:
            InvalidRequest: a field cannot be honoured.
            NotFound: the model is not served here, or the previous response is not stored.
        """
        model.check_name(body.model)
        earlier: StoredResponse | None = None
        if body.previous_response_id is not None:
            earlier = store.get(body.previous_response_id, "previous_response_id")
        told = earlier.messages if earlier else []
        self._history = [*told, *input_messages(body.input, calls_in(told))]
        self._body = body
        self._model = model
        self._store = store
        self._id = call_id
        self._created = created
        self._logprobs = "message.output_text.logprobs" in (body.include or ()) or body.top_logprobs is not None
        self._code = CodeCalls.of(body, containers, earlier.container_id if earlier else None)
        self._items = OutputItems(self._code.container_id if self._code else None)
        self._usages: list[Usage] = []
        self._told = False
        """Whether the turn is part of the history already."""
        self._cut = False
        """Whether there was no room for a further turn."""
        self._held: list[tuple[str, dict[str, Any]]] = []
        self._sequence = 0
        self.requests = [self._request()]

    @property
    def runs_code(self) -> bool:
        """Whether it may have cells to run."""
        return self._code is not None

    def _request(self) -> Request:
        """The next turn. Only the first one is bound by ``tool_choice``; the others are free, or none would be last."""
        body, model, number = self._body, self._model, len(self._usages)
        choice = body.tool_choice if number == 0 else None
        spent = sum(usage.completion_tokens for usage in self._usages)
        exhausted = self._code is not None and self._code.left == 0
        conversation = Conversation(
            messages=[
                *([{"role": "system", "content": body.instructions}] if body.instructions else []),
                *self._history,
            ],
            tools=[_tool(tool) for tool in body.tools or () if not (exhausted and tool.type == INTERPRETER)],
            tool_choice=choice if isinstance(choice, str) else AUTO,
            named_tool=_chosen(choice),
            answer_grammar=_grammar(body),
            template_values=dict(body.chat_template_kwargs or {}),
        )
        conversation.check()
        prompt = tuple(conversation.encode(model))
        most = None if body.max_output_tokens is None else body.max_output_tokens - spent
        params = sampling_params(
            body,
            model,
            max_tokens=model.room(prompt, most, "input"),
            logprobs=(body.top_logprobs or 0) if self._logprobs else None,
            grammar=conversation.grammar(),
            marks=conversation.marks(model),
        )
        self._turn = Turn(conversation.reader(model, prompt))
        return engine_request(body, f"{self._id}-{number}" if number else self._id, prompt, params)

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
        if output.finish_reason is not None:
            self._usages.append(self._turn.usage)
            if self._code is not None and self._turn.called:
                events += self._items.close()
                self._ask(self._code)
        held, self._held = self._held, []
        return self._numbered([*events, *held])

    def _ask(self, code: CodeCalls) -> None:
        """Queue the cells of a turn that has ended."""
        calls = [call for call in self._turn.calls if call.name == INTERPRETER]
        if not calls:
            return
        for number, call in enumerate(calls, calls_in(self._history)):
            call.id = cell_id(number)
        self._history.append(self._own_message())
        self._told = True
        code.ask(calls, self._items.cells)
        self._settle(code)

    def _settle(self, code: CodeCalls) -> None:
        """Answer calls that are not run, up to the next one that is."""
        while (refused := code.refused()) is not None:
            self._answer_call(*refused)
        if code.place is not None:
            self._held += self._items.interpreting(code.place)

    def _answer_call(self, call_id: str, place: int, outcome: Outcome) -> None:
        self._history.append({"role": "tool", "tool_call_id": call_id, "content": seen(outcome)})
        wanted = "code_interpreter_call.outputs" in (self._body.include or ())
        self._held += self._items.interpreted(place, shown(outcome) if wanted else None)

    def cell(self) -> Cell | None:
        """What to run now; see ``CodeJob``."""
        return None if self._code is None else self._code.cell()

    def ran(self, outcome: Outcome) -> None:
        """Take what the cell gave."""
        assert self._code is not None, "a response without a container ran code"
        self._answer_call(*self._code.ran(), outcome)
        self._settle(self._code)

    def next_turn(self) -> Request | None:
        """The request behind the cells; None when the answer is complete, waits for the client, or has no room."""
        theirs = any(call.name != INTERPRETER for call in self._turn.calls)
        if not self._told or theirs:
            return None
        spent = sum(usage.completion_tokens for usage in self._usages)
        try:
            self._cut = self._body.max_output_tokens is not None and spent >= self._body.max_output_tokens
            request = None if self._cut else self._request()
        except ContextLengthExceeded:
            self._cut, request = True, None
        self._told = request is None
        return request

    def closing(self) -> list[Event]:
        """The end of the last item, and the whole response."""
        events = self._close()
        response = self._finished()
        return self._numbered([*events, (f"response.{response['status']}", {"response": response})])

    def failed(self, error: StatepoolError) -> list[Event]:
        """``response.failed``."""
        response = self._response("failed")
        response["error"] = {"code": code_of(error), "message": error.message}
        return self._numbered([("response.failed", {"response": response})])

    def answer(self) -> dict[str, Any]:
        """The response."""
        self._close()
        return self._finished()

    def _close(self) -> list[tuple[str, dict[str, Any]]]:
        events = self._items.close(empty_message=True)
        return [*events, *self._items.give_up_cells()]

    def _finished(self) -> dict[str, Any]:
        response = self._response("incomplete" if self._cut or self._turn.finish == "length" else "completed")
        if self._body.store is not False:
            messages = self._history if self._told else [*self._history, self._own_message()]
            self._store.put(StoredResponse(response, messages, self._code.container_id if self._code else None))
        return response

    def _own_message(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": self._turn.content}
        if self._turn.calls:
            message["tool_calls"] = [call.chat_form() for call in self._turn.calls]
        return message

    def _response(self, status: str) -> dict[str, Any]:
        body, usage = self._body, total(self._usages)
        choice = body.tool_choice or AUTO
        chosen = choice if isinstance(choice, str) else choice.model_dump()
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
            "tools": [_echoed(tool) for tool in body.tools or ()],
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": body.max_tool_calls,
            "previous_response_id": body.previous_response_id,
            "store": body.store is not False,
            "text": {"format": form.model_dump(by_alias=True, exclude_none=True) if form else {"type": "text"}},
            "usage": {
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.prompt_tokens + usage.completion_tokens,
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
