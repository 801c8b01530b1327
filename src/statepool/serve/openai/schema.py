"""Shapes that several OpenAI endpoints share, and the rules all shapes follow.

Types are checked strictly (``"1"`` is no number), numbers must be finite, unknown fields are
ignored as the clients expect.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from statepool.engine.request import MAX_LOGPROBS, MAX_STOP_CHARS, MAX_STOP_STRINGS

Count = Annotated[int, Field(ge=0, le=(1 << 31) - 1)]
TokenId = Annotated[int, Field(ge=0, le=(1 << 31) - 1)]
StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Name = Annotated[str, Field(min_length=1, max_length=256)]
JsonObject = dict[str, Any]

MAX_CHOICES = 128


class Shape(BaseModel):
    """Base of every request and response body."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())


class ErrorDetail(Shape):
    """What went wrong and where."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Shape):
    """Body of every failure outside ``/v1/messages``."""

    error: ErrorDetail


class StreamOptions(Shape):
    """Options of a stream."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class Placement(Shape):
    """This server's own fields, in every dialect: whose KV a request may use, and when it runs."""

    cache_salt: Annotated[str, Field(max_length=256)] | None = Field(
        None, description="KV blocks are shared only between requests with equal salt."
    )
    session: Name | None = Field(None, description="Keep the KV of this conversation under a name.")
    priority: Annotated[int, Field(ge=-(1 << 31), le=(1 << 31) - 1)] | None = Field(
        None, description="Lower runs first."
    )
    attention: Annotated[str, Field(max_length=256)] | None = Field(
        None, description="full, for an exact answer of a server that runs wave attention."
    )


class Sampling(Placement):
    """How to choose tokens, common to all OpenAI endpoints that generate."""

    model: Name | None = Field(None, description="A name from /v1/models; without it, the served model answers.")
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=(1 << 31) - 1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.001, le=100)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=MAX_STOP_STRINGS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=1024)] | None = None
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = Field(True, description="False writes special tokens into the text.")
    ignore_eos: bool = False
    min_tokens: Count | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, description="Token id, written as a string, to what is added to its logit."
    )
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    user: str | None = None


class PromptTokensDetails(Shape):
    """Where prompt tokens came from."""

    cached_tokens: int = 0


class CompletionTokensDetails(Shape):
    """What became of drafted tokens, and how many tokens were reasoning."""

    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0
    reasoning_tokens: int = 0


class Usage(Shape):
    """Token counts, from ids."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class TopLogprob(Shape):
    """One candidate token."""

    token: str
    logprob: float
    bytes: list[int] | None


class ContentLogprob(TopLogprob):
    """A chosen token and its best alternatives."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(Shape):
    """Log-probabilities of one chat choice."""

    content: list[ContentLogprob] | None
    refusal: list[ContentLogprob] | None = None


class ModelCard(Shape):
    """One served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    max_model_len: int
    quant: str
    attention: str
    parameters: int


class ModelList(Shape):
    """All served models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


LogprobCount = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]
