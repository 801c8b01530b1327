"""Shapes of ``/v1/responses``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from statepool.serve.openai.chat_schema import FunctionName, JsonObjectFormat, TextFormat
from statepool.serve.openai.schema import Count, JsonObject, LogprobCount, Name, Sampling, Shape


class InputText(Shape):
    """Text in an input item."""

    type: Literal["input_text", "output_text", "text"]
    text: str


class InputRefusal(Shape):
    """A refusal in an earlier answer."""

    type: Literal["refusal"]
    refusal: str


class InputMessage(Shape):
    """A message of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[InputText | InputRefusal]


class InputCall(Shape):
    """A call the model made earlier."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class InputCallOutput(Shape):
    """What a call returned."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | list[InputText]


class InputReasoning(Shape):
    """Reasoning of an earlier answer; the model does not see it again."""

    type: Literal["reasoning"]


class InputLogs(Shape):
    """What a cell printed."""

    type: Literal["logs"]
    logs: str


class InputImage(Shape):
    """A figure a cell drew; the model sees that there was one."""

    type: Literal["image"]
    url: str


class InputInterpreterCall(Shape):
    """A cell of an earlier answer, with what it gave."""

    type: Literal["code_interpreter_call"]
    code: str | None = None
    container_id: str
    outputs: list[InputLogs | InputImage] | None = None


InputItem = InputMessage | InputCall | InputCallOutput | InputReasoning | InputInterpreterCall


class ResponseTool(Shape):
    """A function the model may call."""

    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class NetworkPolicy(Shape):
    """Whether a container reaches others."""

    type: Literal["disabled", "allowlist"]


MemoryLimit = Literal["1g", "4g", "16g", "64g"]


class AutoContainer(Shape):
    """The container of the response that is continued, or a new one."""

    type: Literal["auto"]
    file_ids: list[str] | None = None
    memory_limit: MemoryLimit | None = None
    network_policy: NetworkPolicy | None = None


class InterpreterTool(Shape):
    """Python in a sandbox of the server, which runs the model's cells itself."""

    type: Literal["code_interpreter"]
    container: Name | AutoContainer


class ResponseChosenInterpreter(Shape):
    """The model must begin by running code."""

    type: Literal["code_interpreter"]


class ResponseChosenTool(Shape):
    """A function the model must call."""

    type: Literal["function"]
    name: Name


class ResponseSchemaFormat(Shape):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    name: str = "answer"
    schema_: JsonObject = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class ResponseText(Shape):
    """How the text of the answer must look."""

    format: Annotated[TextFormat | JsonObjectFormat | ResponseSchemaFormat, Field(discriminator="type")] | None = None
    verbosity: str | None = None


AnyTool = Annotated[ResponseTool | InterpreterTool, Field(discriminator="type")]


class ResponseRequest(Sampling):
    """Body of ``POST /v1/responses``."""

    input: str | Annotated[list[InputItem], Field(min_length=1)]
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    max_output_tokens: Count | None = None
    tools: Annotated[list[AnyTool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponseChosenTool | ResponseChosenInterpreter | None = None
    max_tool_calls: Count | None = Field(None, description="Most cells the code interpreter may run.")
    parallel_tool_calls: bool | None = None
    text: ResponseText | None = None
    top_logprobs: LogprobCount | None = None
    include: list[str] | None = None
    metadata: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class InputTokensDetails(Shape):
    """Where input tokens came from."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(Shape):
    """What output tokens were."""

    reasoning_tokens: int


class ResponseUsage(Shape):
    """Token counts, from ids."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(Shape):
    """Why an answer is incomplete."""

    reason: str


class ResponseBody(Shape):
    """A response. ``output`` holds messages, function calls and reasoning in order."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["completed", "incomplete", "in_progress", "failed"]
    model: str
    output: list[JsonObject]
    error: JsonObject | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    metadata: dict[str, Any] | None
    parallel_tool_calls: bool
    temperature: float | None
    top_p: float | None
    tool_choice: str | JsonObject
    tools: list[JsonObject]
    max_output_tokens: int | None
    max_tool_calls: int | None = None
    previous_response_id: str | None
    store: bool
    text: JsonObject
    usage: ResponseUsage | None


class Deleted(Shape):
    """A stored object is gone."""

    id: str
    object: str
    deleted: bool
