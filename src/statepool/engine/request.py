"""What goes into the engine and what comes out: plain data, no behaviour, no heavy imports."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from statepool.core.errors import InvalidRequest

FinishReason = Literal["stop", "length", "abort", "error"]

MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 4096


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """A constraint on the output. ``kind`` says how ``body`` is read.

    ``json_schema`` takes a JSON schema as text, ``json_object`` nothing, ``regex`` a pattern,
    ``lark`` a grammar in llguidance's Lark dialect.
    """

    kind: Literal["json_schema", "json_object", "regex", "lark"]
    body: str = ""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens. Names and defaults follow the OpenAI and vLLM APIs.

    ``temperature == 0`` is greedy. ``top_k == 0`` and ``top_p == 1`` are off. ``seed`` ``None``
    means: the engine draws one and reports it. ``logprobs`` is the number of alternatives
    returned per token (0 = only the chosen token), ``None`` returns none. All logprobs are
    natural logarithms of the raw model distribution; ``Output.sampled_logprobs`` are those of the
    distribution actually sampled from (after bias, penalties, temperature and truncation).

    Raises:
        InvalidRequest: a value out of range, with ``param`` naming the field.
    """

    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    """Keep the matched stop string in the text."""
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: GrammarSpec | None = None
    show_special: tuple[str, ...] | None = ()
    """Special tokens that appear in the text, by their spelling; ``None`` shows all."""

    def __post_init__(self) -> None:
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, int | float) or isinstance(value, bool) or math.isnan(value):
                raise InvalidRequest(f"{name} must be a number, got {value!r}", param=name)
            if not low <= value <= high:
                raise InvalidRequest(f"{name} must be between {low} and {high}, got {value}", param=name)
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidRequest(f"stop holds {len(self.stop)} strings; at most {MAX_STOP_STRINGS}", param="stop")
        for text in self.stop:
            if not text or len(text) > MAX_STOP_CHARS:
                raise InvalidRequest(f"each stop string must have 1 to {MAX_STOP_CHARS} characters", param="stop")
        for bias in self.logit_bias.values():
            if not -100 <= bias <= 100:
                raise InvalidRequest("logit_bias values must be between -100 and 100", param="logit_bias")


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("max_tokens", 0, 1 << 31),
    ("min_tokens", 0, 1 << 31),
    ("temperature", 0.0, 100.0),
    ("top_p", 1e-9, 1.0),
    ("top_k", 0, 1 << 31),
    ("min_p", 0.0, 1.0),
    ("seed", -(1 << 63), (1 << 64) - 1),
    ("presence_penalty", -2.0, 2.0),
    ("frequency_penalty", -2.0, 2.0),
    ("repetition_penalty", 1e-3, 100.0),
    ("logprobs", 0, MAX_LOGPROBS),
    ("prompt_logprobs", 0, MAX_LOGPROBS),
)


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to extend.

    ``salt`` separates tenants: blocks are shared only between requests with equal salt.
    ``index`` numbers the siblings of one ``n > 1`` call; noise is keyed by (seed, index, position).
    ``session`` keeps the KV of the finished request under that name (see ``engine.session``).
    ``embed`` asks for ``Output.embedding`` instead of tokens; ``max_tokens`` must be 0.
    ``exact`` counts leading tokens whose attention reads every key even where the engine's attention is sparse; by
    default the prompt. A number beyond the last token makes the whole request exact.
    ``attention`` is ``full``, which does the same, or what the engine runs anyway (``EngineConfig.attention``).

    Raises:
        InvalidRequest: ``embed`` with tokens to choose or a session to keep; ``exact`` below 0.
    """

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams = SamplingParams()
    salt: str = ""
    priority: int = 0
    """Lower runs first; equal priorities run in arrival order."""
    index: int = 0
    session: str | None = None
    embed: bool = False
    exact: int | None = None
    attention: str | None = None

    def __post_init__(self) -> None:
        if self.exact is not None and self.exact < 0:
            raise InvalidRequest(f"exact must not be negative, got {self.exact}", param="exact")
        if self.embed and (self.params.max_tokens != 0 or self.session is not None):
            raise InvalidRequest("embed needs max_tokens 0 and no session", param="embed")


class TokenLogprob(msgspec.Struct, frozen=True, gc=False):
    """The raw model log-probability of one token, and of the best alternatives, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request, from ids and never from text."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    """Prompt tokens whose KV was found in the pool and not computed."""
    draft_tokens: int = 0
    accepted_tokens: int = 0


class Output(msgspec.Struct, frozen=True):
    """What one step added to one request. The last one has ``finish_reason`` and ``usage``.

    ``text`` is the newly decoded text (held back while a code point or a stop string is
    incomplete); ``tokens`` are the new ids. ``prompt_logprobs`` comes once, with the first output; its
    first entry is ``None`` since nothing predicts the first token.
    """

    id: str
    tokens: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    sampled_logprobs: tuple[float, ...] = ()
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    """The stop string or stop token id that ended the text, if one did."""
    error: str | None = None
    usage: Usage | None = None
    seed: int | None = None
    embedding: tuple[float, ...] | None = None
    """Mean of the final hidden states, of length 1, float32; comes with the last output."""
