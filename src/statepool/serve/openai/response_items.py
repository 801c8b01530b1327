"""The output items of a response while they are written: messages, reasoning, function calls, cells of code."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from statepool.serve.openai.code_calls import INTERPRETER, code_in
from statepool.serve.reading import CallArguments, CallStart, Content, Piece, Reasoning

_CELL = "code_interpreter_call"
_CELL_EVENT = f"response.{_CELL}"

Named = tuple[str, dict[str, Any]]
"""Name and body of one event, before it is numbered."""


class OutputItems:
    """One item is open at a time; a piece of another kind closes it and opens the next."""

    def __init__(self, container_id: str | None = None) -> None:
        """``container_id`` is where the code interpreter runs, if the response may use it."""
        self.finished: list[dict[str, Any]] = []
        self.cells: list[int] = []
        """Places of the cells whose outcome is not known yet."""
        self._container_id = container_id
        self._open: dict[str, Any] | None = None
        self._text = ""
        self._held_logprobs: list[dict[str, Any]] = []
        self._logprobs: list[dict[str, Any]] = []

    def hold_logprobs(self, logprobs: list[dict[str, Any]]) -> None:
        """Keep log-probabilities of tokens that made no text yet for the next piece of text."""
        self._held_logprobs += logprobs

    def add(self, piece: Piece, logprobs: list[dict[str, Any]]) -> list[Named]:
        """Events for one more piece."""
        match piece:
            case Content(text=text):
                logprobs = [*self._held_logprobs, *logprobs]
                self._held_logprobs = []
                opened = self._ensure("message")
                self._logprobs += logprobs
                return [*opened, self._delta("response.output_text.delta", text, content_index=0, logprobs=logprobs)]
            case Reasoning(text=text):
                opened = self._ensure("reasoning")
                return [*opened, self._delta("response.reasoning_text.delta", text, content_index=0)]
            case CallStart(name=name) if name == INTERPRETER and self._container_id is not None:
                return [*self.close(), *self._start(_CELL, code="", container_id=self._container_id, outputs=None)]
            case CallStart(id=call_id, name=name):
                return [*self.close(), *self._start("function_call", call_id=call_id, name=name, arguments="")]
            case CallArguments(text=text) if self._open is not None and self._open["type"] == _CELL:
                self._text += text  # JSON around the code: told once it is whole
                return []
            case CallArguments(text=text):
                return [self._delta("response.function_call_arguments.delta", text)]

    def close(self, empty_message: bool = False) -> list[Named]:
        """Events that end the open item. With ``empty_message`` an answer without any item gets an empty one."""
        opened = self._ensure("message") if empty_message and self._open is None and not self.finished else []
        item, self._open = self._open, None
        if item is None:
            return []
        place = {"item_id": item["id"], "output_index": len(self.finished)}
        events: list[Named] = []
        if item["type"] == _CELL:
            return self._close_cell(item, place)
        if item["type"] == "function_call":
            item = {**item, "arguments": self._text, "status": "completed"}
            done = {"arguments": self._text, "name": item["name"]}
            events.append(("response.function_call_arguments.done", {**place, **done}))
        else:
            part = _part(item["type"], self._text, self._logprobs)
            item = {**item, "content": [part], "status": "completed"}
            if item["type"] == "message":
                done = {"text": self._text, "logprobs": self._logprobs}
                events.append(("response.output_text.done", {**place, "content_index": 0, **done}))
            else:
                events.append(("response.reasoning_text.done", {**place, "content_index": 0, "text": self._text}))
            events.append(("response.content_part.done", {**place, "content_index": 0, "part": part}))
        events.append(_done(len(self.finished), item))
        self.finished.append(item)
        return [*opened, *events]

    def interpreting(self, index: int) -> list[Named]:
        """Events of a cell that begins to run."""
        self.finished[index] |= {"status": "interpreting"}
        return [(f"{_CELL_EVENT}.interpreting", {"item_id": self.finished[index]["id"], "output_index": index})]

    def interpreted(self, index: int, outputs: list[dict[str, Any]] | None) -> list[Named]:
        """Events of a cell that has run; ``outputs`` if the client wants to see them."""
        self.cells.remove(index)
        item = self.finished[index] = {**self.finished[index], "status": "completed", "outputs": outputs}
        place = {"item_id": item["id"], "output_index": index}
        return [(f"{_CELL_EVENT}.completed", place), _done(index, item)]

    def give_up_cells(self) -> list[Named]:
        """Events of cells that will not run any more: the answer was cut short."""
        events = []
        for index in self.cells:
            item = self.finished[index] = {**self.finished[index], "status": "incomplete"}
            events.append(_done(index, item))
        self.cells = []
        return events

    def _close_cell(self, item: dict[str, Any], place: dict[str, Any]) -> list[Named]:
        """The code of a cell is there; its item stays open until it has run."""
        code = code_in(self._text)
        item |= {"code": self._text if code is None else code}
        self.cells.append(len(self.finished))
        self.finished.append(item)
        events = [("delta", {"delta": item["code"]}), ("done", {"code": item["code"]})]
        return [(f"{_CELL_EVENT}_code.{name}", {**place, **data}) for name, data in events]

    def _ensure(self, kind: str) -> list[Named]:
        if self._open is not None and self._open["type"] == kind:
            return []
        return [*self.close(), *self._start(kind)]

    def _start(self, kind: str, **fields: Any) -> list[Named]:
        prefix = {"message": "msg", "reasoning": "rs", "function_call": "fc", _CELL: "ci"}[kind]
        item: dict[str, Any] = {"id": f"{prefix}_{uuid4().hex[:24]}", "type": kind, "status": "in_progress", **fields}
        if kind == "message":
            item |= {"role": "assistant", "content": []}
        elif kind == "reasoning":
            item |= {"summary": [], "content": []}
        self._open, self._text, self._logprobs = item, "", []
        index = len(self.finished)
        events: list[Named] = [("response.output_item.added", {"output_index": index, "item": item})]
        if kind == _CELL:
            events.append((f"{_CELL_EVENT}.in_progress", {"item_id": item["id"], "output_index": index}))
        elif kind != "function_call":
            place = {"item_id": item["id"], "output_index": index, "content_index": 0}
            events.append(("response.content_part.added", {**place, "part": _part(kind, "", [])}))
        return events

    def _delta(self, name: str, text: str, **fields: Any) -> Named:
        assert self._open is not None, "a delta without an open item"
        self._text += text
        place = {"item_id": self._open["id"], "output_index": len(self.finished)}
        return name, {**place, **fields, "delta": text}


def _done(index: int, item: dict[str, Any]) -> Named:
    return "response.output_item.done", {"output_index": index, "item": dict(item)}


def _part(kind: str, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}
