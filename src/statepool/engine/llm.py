"""``LLM``: the engine for scripts. Prompts in, completions out; sessions that keep their KV."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from statepool.engine.config import EngineConfig, Quant
from statepool.engine.engine import Engine
from statepool.engine.request import FinishReason, Output, Request, SamplingParams, TokenLogprob, Usage

Prompt = str | Sequence[int]


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished generation."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    seed: int
    logprobs: tuple[TokenLogprob, ...] = ()
    sampled_logprobs: tuple[float, ...] = ()
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    stop_reason: int | str | None = None

    @classmethod
    def of(cls, outputs: Sequence[Output]) -> Completion:
        """Join the outputs of one request."""
        last = outputs[-1]
        assert last.finish_reason is not None
        assert last.usage is not None
        assert last.seed is not None
        return cls(
            text="".join(o.text for o in outputs),
            tokens=tuple(t for o in outputs for t in o.tokens),
            finish_reason=last.finish_reason,
            usage=last.usage,
            seed=last.seed,
            logprobs=tuple(p for o in outputs for p in o.logprobs),
            sampled_logprobs=tuple(p for o in outputs for p in o.sampled_logprobs),
            prompt_logprobs=outputs[0].prompt_logprobs,
            stop_reason=last.stop_reason,
        )


class LLM:
    """A model in this process.

    >>> llm = LLM("tiny")                                                       # doctest: +SKIP
    >>> llm.generate(["12 + 30 ="], SamplingParams(max_tokens=8, temperature=0))[0].text  # doctest: +SKIP

    Args:
        model: checkpoint directory, hub id, or ``"tiny"``.
        quant: ``int8`` (default), ``int4``, ``bf16`` or ``fp32``.
        settings: any other field of ``EngineConfig``.

    Raises:
        InvalidConfig, InvalidCheckpoint: see ``Engine``.
    """

    def __init__(self, model: str = "tiny", *, quant: Quant = "int8", **settings: Any) -> None:
        self.engine = Engine(EngineConfig(model=model, quant=quant, **settings))

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | None = None,
        *,
        progress: Callable[[Completion], None] | None = None,
    ) -> list[Completion]:
        """Complete prompts (texts or lists of token ids), batched; results in the order of the prompts.

        ``progress`` is called with each completion as it ends.
        """
        chosen = params or SamplingParams()
        group = secrets.token_hex(4)
        requests = [Request(f"{group}-{i}", self.tokens(prompt), chosen) for i, prompt in enumerate(_many(prompts))]
        outputs = self.engine.generate(requests)
        completions = [Completion.of(outputs[request.id]) for request in requests]
        if progress is not None:
            for completion in completions:
                progress(completion)
        return completions

    def tokens(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of a prompt; control tokens written in the text are read as such, as in a template."""
        if isinstance(prompt, str):
            return tuple(self.engine.tokenizer.encode(prompt, add_special=True, allow_special=True))
        return tuple(prompt)

    def score(self, prompt: Prompt) -> npt.NDArray[np.float32]:
        """Log-probability of every token but the first: float32 ``[len - 1]``, the bits of generation."""
        return self.engine.score(self.tokens(prompt))

    def embed(self, prompt: Prompt) -> npt.NDArray[np.float32]:
        """Mean final hidden state, L2-normalised: float32 ``[hidden]``."""
        return self.engine.embed(self.tokens(prompt))

    def session(self, name: str | None = None) -> LLMSession:
        """A conversation whose KV stays in the engine."""
        return LLMSession(self, name or secrets.token_hex(8))


class LLMSession:
    """Text that grows: ``append`` what others say, ``generate`` what the model says.

    Nothing computed once is computed again, also after ``park``.
    """

    def __init__(self, llm: LLM, name: str, tokens: Sequence[int] = ()) -> None:
        self._llm = llm
        self.name = name
        self.tokens: list[int] = list(tokens)

    def append(self, prompt: Prompt) -> None:
        """Add text or token ids; computed with the next ``generate``."""
        self.tokens += self._llm.tokens(prompt)

    def generate(self, params: SamplingParams | None = None) -> Completion:
        """Let the model continue; its tokens become part of the session."""
        request = Request(secrets.token_hex(8), tuple(self.tokens), params or SamplingParams(), session=self.name)
        completion = Completion.of(self._llm.engine.generate([request])[request.id])
        self.tokens += completion.tokens
        return completion

    def fork(self, name: str | None = None) -> LLMSession:
        """A second session with the same past; their blocks are shared."""
        child = LLMSession(self._llm, name or secrets.token_hex(8), self.tokens)
        self._llm.engine.sessions.fork("", self.name, child.name)
        return child

    def park(self) -> None:
        """Move the KV out of the pool; the next ``generate`` brings it back."""
        self._llm.engine.sessions.park("", self.name)

    def drop(self) -> None:
        """Free the KV. The session must not be used afterwards."""
        self._llm.engine.sessions.drop("", self.name)


def _many(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    if all(isinstance(token, int) for token in prompts):
        return [prompts] if prompts else []  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]
