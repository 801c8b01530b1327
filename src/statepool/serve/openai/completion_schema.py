"""Shapes of ``/v1/completions``, ``/v1/embeddings`` and the tokenizer endpoints."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from statepool.serve.openai.chat_schema import Message, Tool
from statepool.serve.openai.schema import Count, LogprobCount, Name, Sampling, Shape, TokenId, Usage

MAX_PROMPTS = 2048

Prompt = Annotated[
    str
    | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
    | Annotated[list[TokenId], Field(min_length=1)]
    | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=MAX_PROMPTS)],
    Field(description="A text, several texts, token ids, or several lists of token ids."),
]


class CompletionRequest(Sampling):
    """Body of ``POST /v1/completions``."""

    prompt: Prompt
    max_tokens: Count | None = Field(None, description="16 unless given; 0 only scores the prompt.")
    echo: bool | None = None
    logprobs: LogprobCount | None = None
    best_of: Annotated[int, Field(ge=1, le=128)] | None = Field(None, description="Only equal to n.")
    suffix: Annotated[str, Field(max_length=0)] | None = Field(None, description="Not supported: leave it empty.")
    add_special_tokens: bool = True
    response_format: dict[str, Any] | None = Field(None, description="As in /v1/chat/completions.")


class CompletionLogprobs(Shape):
    """Log-probabilities of one text choice, position by position."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Shape):
    """One continuation."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    sampled_logprobs: list[float] | None = None


class Completion(Shape):
    """Answer of ``POST /v1/completions``."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    system_fingerprint: str


class EmbeddingRequest(Shape):
    """Body of ``POST /v1/embeddings``."""

    model: Name | None = None
    input: Prompt
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = Field(None, description="Only the model's own number is accepted.")
    user: str | None = None


class Embedding(Shape):
    """One vector: floats, or base64 of little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Shape):
    """Token counts of an embedding call."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Shape):
    """Answer of ``POST /v1/embeddings``."""

    object: Literal["list"] = "list"
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage


class TokenizeRequest(Shape):
    """Body of ``POST /tokenize``: a text, or messages to render with the chat template."""

    model: Name | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    tools: list[Tool] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool = False


class TokenizeAnswer(Shape):
    """Answer of ``POST /tokenize``."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(Shape):
    """Body of ``POST /detokenize``."""

    model: Name | None = None
    tokens: list[TokenId]
    skip_special_tokens: bool = False


class DetokenizeAnswer(Shape):
    """Answer of ``POST /detokenize``."""

    prompt: str


class TokenizerInfo(Shape):
    """Answer of ``GET /tokenizer_info``."""

    model_max_length: int
    chat_template: str | None
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
