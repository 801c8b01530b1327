"""Chat templates: messages to the model's own prompt form, with user text unable to forge control tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from statepool.core.errors import InvalidCheckpoint, InvalidRequest
from statepool.engine.text.guard import Guard, encode_guarded
from statepool.engine.text.tokenizer import Tokenizer, check_text, read_json, token_string

Clock = Callable[[], datetime]

_TEMPLATE_FAILURES = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
)


class ChatTemplate:
    """One chat template of a checkpoint, compiled once.

    Rendering follows the environment that checkpoints are written for: trimmed blocks, loop
    controls, ``tojson`` without escapes, ``raise_exception``, ``strftime_now`` and a ``generation`` block
    that only groups.
    """

    def __init__(
        self, source: str | None, variables: Mapping[str, str] | None = None, clock: Clock = datetime.now
    ) -> None:
        """Compile ``source``; ``variables`` are names such as ``bos_token``; ``clock`` feeds ``strftime_now``.

        Raises:
            InvalidCheckpoint: the template does not compile.
        """
        self.source = source
        self.variables = dict(variables or {})
        """Names of tokens, such as ``eos_token``, and their texts."""
        self._clock = clock
        self._template: Template | None = None
        self.takes_parts = False
        """Whether the template walks lists of content parts itself; else text parts are joined for it."""
        if source is not None:
            try:
                self._template = _environment().from_string(source)
                self.takes_parts = _walks_content(_environment().parse(source))
            except TemplateError as error:
                raise InvalidCheckpoint(f"chat template does not compile: {error}") from error

    @classmethod
    def load(cls, path: str | Path, clock: Clock = datetime.now) -> ChatTemplate:
        """Read ``chat_template.jinja`` or ``chat_template`` of ``tokenizer_config.json`` in a checkpoint folder.

        A folder without a template loads; using it raises InvalidRequest.

        Raises:
            InvalidCheckpoint: a file is unreadable or the template does not compile.
        """
        folder = Path(path)
        config = read_json(folder / "tokenizer_config.json")
        variables = {**_token_variables(read_json(folder / "special_tokens_map.json")), **_token_variables(config)}
        file = folder / "chat_template.jinja"
        if file.is_file():
            return cls(file.read_text(encoding="utf-8"), variables, clock)
        source = config.get("chat_template", read_json(folder / "chat_template.json").get("chat_template"))
        if isinstance(source, list):
            named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
            source = named.get("default", next(iter(named.values()), None))
        if source is not None and not isinstance(source, str):
            raise InvalidCheckpoint(f"{folder / 'tokenizer_config.json'}: chat_template must be a string or a list")
        return cls(source, variables, clock)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        """The prompt text for ``messages``; ``kwargs`` reach the template (``enable_thinking`` and the like).

        Raises:
            InvalidRequest: with ``param="messages"`` when the template refuses the messages.
        """
        return self._render(self.prepare(messages), tools, add_generation_prompt, kwargs)

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> list[int]:
        """Token ids of the rendered prompt, where only the template's own control tokens are control tokens.

        Control tokens spelled inside messages, tools or ``kwargs`` come out as plain text. Without
        such text the ids are those of ``tokenizer.encode(render(...), allow_special=True)``.

        Raises:
            InvalidRequest: with ``param="messages"`` for what the template refuses or UTF-8 cannot hold.
        """
        prepared = self.prepare(messages)
        guard = Guard(tokenizer, self.source or "", (prepared, tools, kwargs))
        text = self._render(
            [guard.message(message) for message in prepared],
            guard.value(tools),
            add_generation_prompt,
            guard.value(kwargs),
        )
        check_text(text, "messages")
        return encode_guarded(tokenizer, text, guard)

    def prepare(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Messages in the shape templates expect: arguments as objects, text parts joined, no null content.

        Raises:
            InvalidRequest: a message is not an object with a string ``role``.
        """
        if not messages:
            raise InvalidRequest("messages must hold at least one message", param="messages")
        return [_prepare(message, index, self.takes_parts) for index, message in enumerate(messages)]

    def _render(
        self,
        messages: list[dict[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        kwargs: Mapping[str, Any],
    ) -> str:
        if self._template is None:
            raise InvalidRequest("this model has no chat template; send a prompt to /v1/completions", param="messages")
        values = {
            **self.variables,
            "documents": None,
            **kwargs,
            "messages": messages,
            "tools": list(tools) if tools else None,
            "add_generation_prompt": add_generation_prompt,
            "strftime_now": lambda form: self._clock().strftime(form),
        }
        try:
            return self._template.render(values)
        except _TEMPLATE_FAILURES as error:
            raise InvalidRequest(f"messages do not fit the chat template: {error}", param="messages") from error


class _Generation(Extension):
    """``{% generation %}`` marks the assistant's text for trainers; here it only opens a scope."""

    tags = {"generation"}  # noqa: RUF012  (the base class declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> str:
    raise TemplateError(message)


def _token_variables(config: Mapping[str, Any]) -> dict[str, str]:
    named = {key: token_string(value) for key, value in config.items() if key.endswith("_token")}
    return {key: value for key, value in named.items() if value is not None}


def _walks_content(tree: nodes.Template) -> bool:
    """Whether a ``for`` loop of the template runs over something named content."""

    def named(node: nodes.Node) -> bool:
        if isinstance(node, nodes.Filter) and node.node is not None:
            return named(node.node)
        if isinstance(node, nodes.Getattr):
            return node.attr == "content"
        if isinstance(node, nodes.Getitem):
            return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
        return isinstance(node, nodes.Name) and node.name == "content"

    return any(named(loop.iter) for loop in tree.find_all(nodes.For))


def _prepare(message: Mapping[str, Any], index: int, takes_parts: bool) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise InvalidRequest(f"messages[{index}] must be an object with a string role", param="messages")
    ready = dict(message)
    content = ready.get("content")
    if content is None:
        ready["content"] = ""
    elif isinstance(content, list) and not takes_parts:
        ready["content"] = "\n".join(_part_text(part, index) for part in content)
    elif not isinstance(content, str | list):
        raise InvalidRequest(f"messages[{index}].content must be a string or a list of parts", param="messages")
    calls = ready.get("tool_calls")
    if calls:
        ready["tool_calls"] = [_with_object_arguments(call) for call in calls]
    elif "tool_calls" in ready:
        del ready["tool_calls"]
    return ready


def _part_text(part: Any, index: int) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return str(part["text"])
    raise InvalidRequest(f"messages[{index}].content holds a part that is not text", param="messages")


def _with_object_arguments(call: Any) -> Any:
    """Arguments arrive as JSON text on the wire; templates expect the object."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:
        return call
    if not isinstance(arguments, dict):
        return call
    return {**call, "function": {**function, "arguments": arguments}}
