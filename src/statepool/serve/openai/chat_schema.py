"""Shapes of ``/v1/chat/completions``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from statepool.serve.openai.schema import (
    ChoiceLogprobs,
    Count,
    JsonObject,
    LogprobCount,
    Name,
    Sampling,
    Shape,
    TokenId,
    Usage,
)

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.\-]{1,64}$")]


class TextPart(Shape):
    """A piece of text in a message."""

    type: Literal["text"]
    text: str


class FunctionCall(Shape):
    """Name and JSON arguments of a call."""

    name: str
    arguments: str


class ToolCall(Shape):
    """A call the model made."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Shape):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class FunctionSpec(Shape):
    """A function the model may call. ``parameters`` is a JSON schema."""

    name: FunctionName
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(Shape):
    """A tool the model may call."""

    type: Literal["function"] = "function"
    function: FunctionSpec


class ChosenFunction(Shape):
    """The name of a function."""

    name: Name


class ChosenTool(Shape):
    """A tool the model must call."""

    type: Literal["function"] = "function"
    function: ChosenFunction


class JsonSchemaSpec(Shape):
    """A JSON schema with a name."""

    name: str = "answer"
    description: str | None = None
    schema_: JsonObject = Field(alias="schema", default_factory=dict)
    strict: bool | None = None


class TextFormat(Shape):
    """Free text."""

    type: Literal["text"]


class JsonObjectFormat(Shape):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(Shape):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchemaSpec


class RegexFormat(Shape):
    """Text that fits a regular expression. Not part of OpenAI's API."""

    type: Literal["regex"]
    pattern: str


class LarkFormat(Shape):
    """Text that fits a grammar in llguidance's Lark dialect. Not part of OpenAI's API."""

    type: Literal["grammar"]
    grammar: str


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat | RegexFormat | LarkFormat, Field(discriminator="type")
]


class ChatRequest(Sampling):
    """Body of ``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: LogprobCount | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    prompt_token_ids: Annotated[list[TokenId], Field(min_length=1)] | None = Field(
        None, description="Ids to use instead of rendering the messages: what an earlier turn returned, for example."
    )
    reasoning_effort: str | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None


class AssistantMessage(Shape):
    """The model's answer."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(Shape):
    """One of ``n`` answers."""

    index: int
    message: AssistantMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: str
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    sampled_logprobs: list[float] | None = None


class ChatCompletion(Shape):
    """Answer of ``POST /v1/chat/completions``."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    prompt_token_ids: list[int] | None = None
