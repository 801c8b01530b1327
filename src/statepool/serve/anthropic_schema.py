"""Shapes of ``/v1/messages``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from statepool.engine.request import MAX_STOP_STRINGS
from statepool.serve.openai.schema import JsonObject, Name, Placement, Shape, StopText


class AnthropicErrorDetail(Shape):
    """Kind and text of a failure."""

    type: str
    message: str


class AnthropicError(Shape):
    """Body of every failure under ``/v1/messages``."""

    type: Literal["error"] = "error"
    error: AnthropicErrorDetail


class TextBlock(Shape):
    """Text."""

    type: Literal["text"]
    text: str


class ThinkingBlock(Shape):
    """Earlier reasoning; the model does not see it again."""

    type: Literal["thinking", "redacted_thinking"]


class ToolUseBlock(Shape):
    """A call the model made."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: JsonObject


class ToolResultBlock(Shape):
    """What a call returned."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None


Block = Annotated[TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")]


class AnthropicMessage(Shape):
    """One message. A last message of the assistant is the beginning of the answer."""

    role: Literal["user", "assistant"]
    content: str | list[Block]


class AnthropicTool(Shape):
    """A tool the model may use."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_\-]{1,128}$")]
    description: str | None = None
    input_schema: JsonObject
    type: Literal["custom"] | None = None


class ToolChoice(Shape):
    """Whether tools may, must or must not be used."""

    type: Literal["auto", "any", "tool", "none"]
    name: Name | None = None
    disable_parallel_tool_use: bool | None = None


class OutputFormat(Shape):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    schema_: JsonObject = Field(alias="schema")


class OutputConfig(Shape):
    """How the answer must look."""

    format: OutputFormat | None = None
    effort: str | None = None


class CountRequest(Shape):
    """Body of ``POST /v1/messages/count_tokens``."""

    model: Name
    messages: Annotated[list[AnthropicMessage], Field(min_length=1)]
    system: str | list[TextBlock] | None = None
    tools: Annotated[list[AnthropicTool], Field(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: dict[str, Any] | None = None


class MessageRequest(CountRequest, Placement):
    """Body of ``POST /v1/messages``."""

    max_tokens: Annotated[int, Field(ge=1, le=(1 << 31) - 1)]
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=(1 << 31) - 1)] | None = None
    stop_sequences: Annotated[list[StopText], Field(max_length=MAX_STOP_STRINGS)] | None = None
    stream: bool | None = None
    metadata: dict[str, Any] | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None


class AnthropicUsage(Shape):
    """Token counts. The whole prompt is ``input_tokens + cache_read_input_tokens``."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class MessageBody(Shape):
    """Answer of ``POST /v1/messages``."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[JsonObject]
    stop_reason: str | None
    stop_sequence: str | None
    usage: AnthropicUsage


class CountAnswer(Shape):
    """Answer of ``POST /v1/messages/count_tokens``."""

    input_tokens: int
