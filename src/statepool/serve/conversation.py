"""A conversation in the one form that all chat dialects are translated to, and its way into the engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from statepool.core.errors import InvalidRequest
from statepool.engine.request import GrammarSpec
from statepool.engine.text.router import THINKING, Router
from statepool.serve.reading import AnyCallReader, NamedCallReader, PlainReader, Reader, RoutedReader
from statepool.serve.served_model import ServedModel

AUTO, NONE, REQUIRED = "auto", "none", "required"


@dataclass(frozen=True)
class Conversation:
    """Messages and tools in OpenAI's shape.

    ``tool_choice`` is ``auto``, ``none``, ``required``; ``named_tool`` overrides it with one name. ``prefill``
    is text the answer starts with, as if the model had written it.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = field(default_factory=list)
    tool_choice: str = AUTO
    named_tool: str | None = None
    answer_grammar: GrammarSpec | None = None
    prefill: str = ""
    add_generation_prompt: bool = True
    template_values: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse choices that contradict the tools.

        Raises:
            InvalidRequest: a named tool does not exist, or a call is required without tools.
        """
        names = [tool["function"]["name"] for tool in self.tools]
        if len(set(names)) != len(names):
            raise InvalidRequest("tools: two functions have the same name", param="tools")
        if self.named_tool is not None and self.named_tool not in names:
            raise InvalidRequest(f"tool_choice names {self.named_tool!r}, which is not in tools", param="tool_choice")
        if self.tool_choice == REQUIRED and not names:
            raise InvalidRequest("tool_choice 'required' needs tools", param="tool_choice")
        if self.forced and self.answer_grammar is not None:
            raise InvalidRequest("response_format cannot be combined with a forced tool call", param="response_format")

    @property
    def forced(self) -> bool:
        """Whether the answer must be a tool call."""
        return self.named_tool is not None or self.tool_choice == REQUIRED

    @property
    def offered(self) -> list[dict[str, Any]]:
        """Tools the model sees."""
        return [] if self.tool_choice == NONE else self.tools

    def encode(self, model: ServedModel) -> list[int]:
        """Token ids of the prompt.

        Raises:
            InvalidRequest: the template refuses the messages.
        """
        values = self.template_values
        ids = model.encode_messages(self.messages, self.offered, self.add_generation_prompt, **values)
        return ids + model.encode(self.prefill, param="messages") if self.prefill else ids

    def grammar(self) -> GrammarSpec | None:
        """What the answer must fit, if anything."""
        if not self.forced:
            return self.answer_grammar
        if self.named_tool is not None:
            schemas = [tool["function"] for tool in self.tools if tool["function"]["name"] == self.named_tool]
            return GrammarSpec("json_schema", json.dumps(_parameters(schemas[0])))
        calls = [_call_schema(tool["function"]) for tool in self.tools]
        return GrammarSpec("json_schema", json.dumps(calls[0] if len(calls) == 1 else {"anyOf": calls}))

    def marks(self, model: ServedModel) -> tuple[str, ...]:
        """Special tokens that ``reader`` must see in the text."""
        if self.forced or self.answer_grammar is not None:
            return ()
        called = model.tool_parser(self.offered).special if self.offered else ()
        return (*called, *THINKING) if model.reasons else called

    def reader(self, model: ServedModel, prompt: Sequence[int]) -> Reader:
        """A fresh reader for one answer to ``prompt``."""
        if self.named_tool is not None:
            return NamedCallReader(self.named_tool)
        if self.tool_choice == REQUIRED:
            return AnyCallReader()
        if self.answer_grammar is not None:
            return PlainReader()
        parser = model.tool_parser(self.offered) if self.offered else None
        return RoutedReader(Router(parser, model.reasons, model.opens_thinking(prompt)))


def _parameters(function: dict[str, Any]) -> dict[str, Any]:
    return function.get("parameters") or {"type": "object", "properties": {}}


def _call_schema(function: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": _parameters(function)},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
