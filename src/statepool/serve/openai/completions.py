"""``/v1/completions``: text or token-id prompts, echo, and log-probabilities of the prompt."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter, ValidationError

from statepool.core.errors import InvalidRequest, StatepoolError
from statepool.engine.request import GrammarSpec, Output, TokenLogprob
from statepool.serve.errors import code_of, of_validation, openai_body
from statepool.serve.job import Event
from statepool.serve.openai.chat import answer_grammar, finish_reason
from statepool.serve.openai.chat_schema import ResponseFormat
from statepool.serve.openai.completion_schema import CompletionRequest
from statepool.serve.openai.reports import finite, usage_counts
from statepool.serve.reading import PlainReader
from statepool.serve.sampling import engine_request, sampling_params
from statepool.serve.served_model import ServedModel
from statepool.serve.turn import Turn, total

_DEFAULT_MAX_TOKENS = 16
_FORMAT: TypeAdapter[ResponseFormat] = TypeAdapter(ResponseFormat)


def prompts_of(prompt: str | list[Any], model: ServedModel, *, add_special: bool, param: str) -> list[tuple[int, ...]]:
    """Token ids of every prompt: a text, texts, ids, or lists of ids.

    Raises:
        InvalidRequest: an id is no token.
    """
    if isinstance(prompt, str):
        return [tuple(model.encode(prompt, add_special=add_special, param=param))]
    if prompt and isinstance(prompt[0], int):
        model.check_ids(prompt, param)
        return [tuple(prompt)]
    found: list[tuple[int, ...]] = []
    for entry in prompt:
        found += prompts_of(entry, model, add_special=add_special, param=param)
    return found


class CompletionJob:
    """One call with ``len(prompts) * n`` choices."""

    def __init__(self, body: CompletionRequest, model: ServedModel, call_id: str, created: int) -> None:
        """Translate ``body``.

        Raises:
            InvalidRequest: a field cannot be honoured.
            NotFound: the model is not served here.
        """
        model.check_name(body.model)
        n = body.n or 1
        if body.best_of is not None and body.best_of != n:
            raise InvalidRequest("best_of must equal n", param="best_of")
        self._body = body
        self._model = model
        self._id = call_id
        self._created = created
        self._echo = bool(body.echo)
        self._prompts = prompts_of(body.prompt, model, add_special=body.add_special_tokens, param="prompt")
        wanted = _DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
        grammar = _grammar(body)
        self.requests = []
        for position, prompt in enumerate(self._prompts):
            params = sampling_params(
                body,
                model,
                max_tokens=model.room(prompt, wanted, "prompt"),
                logprobs=body.logprobs,
                prompt_logprobs=body.logprobs if self._echo else None,
                grammar=grammar,
            )
            for sibling in range(n):
                index = position * n + sibling
                name = f"{call_id}-{index}"
                self.requests.append(engine_request(body, name, prompt, params, sibling, first=index == 0))
        self._place = {request.id: index for index, request in enumerate(self.requests)}
        self._turns = [Turn(PlainReader()) for _ in self.requests]
        self._offsets = [0] * len(self.requests)
        self._opened = [False] * len(self.requests)
        self._usage_asked = body.stream_options is not None and body.stream_options.include_usage

    def opening(self) -> list[Event]:
        """Nothing: an echoed prompt comes with the first output, which has its log-probabilities."""
        return []

    def push(self, output: Output) -> list[Event]:
        """One chunk with what ``output`` adds."""
        index = self._place[output.id]
        turn = self._turns[index]
        text = "".join(getattr(piece, "text", "") for piece in turn.push(output))
        logprobs = self._logprobs(index, output.logprobs)
        if not self._opened[index]:
            self._opened[index] = True
            if self._echo:
                text = self._prompt_text(index) + text
                self._offsets[index] = 0
                logprobs = self._logprobs(index, _joined(output.prompt_logprobs, output.logprobs))
        finish = None if turn.finish is None else finish_reason(turn)
        choice = self._choice(index, text, logprobs, finish, turn.stop_reason, list(output.tokens))
        chunk = {**self._head(), "choices": [choice]}
        if self._usage_asked:
            chunk["usage"] = None
        return [Event(chunk)]

    def closing(self) -> list[Event]:
        """Usage, if asked for, and the end mark."""
        events = []
        if self._usage_asked:
            events.append(Event({**self._head(), "choices": [], "usage": self._usage()}))
        return [*events, Event("[DONE]")]

    def failed(self, error: StatepoolError) -> list[Event]:
        """An error object in place of a chunk."""
        return [Event(openai_body(error.status, error.message, error.param, code_of(error))), Event("[DONE]")]

    def answer(self) -> dict[str, Any]:
        """A ``text_completion``."""
        choices = []
        for index, turn in enumerate(self._turns):
            self._offsets[index] = 0
            entries: tuple[TokenLogprob | None, ...] = tuple(turn.logprobs)
            text = turn.content
            if self._echo:
                text = self._prompt_text(index) + text
                entries = _joined(turn.prompt_logprobs, turn.logprobs)
            logprobs = self._logprobs(index, entries)
            choice = self._choice(index, text, logprobs, finish_reason(turn), turn.stop_reason, turn.tokens)
            if self._body.return_token_ids and turn.sampled_logprobs:
                choice["sampled_logprobs"] = turn.sampled_logprobs
            choices.append(choice)
        return {**self._head(), "choices": choices, "usage": self._usage()}

    def _choice(
        self,
        index: int,
        text: str,
        logprobs: dict[str, Any] | None,
        finish: str | None,
        stop_reason: int | str | None,
        tokens: list[int],
    ) -> dict[str, Any]:
        choice = {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": finish,
            "stop_reason": stop_reason,
        }
        if self._body.return_token_ids:
            choice["token_ids"] = tokens
            choice["prompt_token_ids"] = list(self.requests[index].prompt)
        return choice

    def _prompt_text(self, index: int) -> str:
        return self._model.tokenizer.decode(self.requests[index].prompt, skip_special=False)

    def _logprobs(
        self, index: int, entries: tuple[TokenLogprob | None, ...] | tuple[TokenLogprob, ...]
    ) -> dict[str, Any] | None:
        """The four parallel lists; ``text_offset`` goes on where the last call for ``index`` ended."""
        if self._body.logprobs is None:
            return None
        first = self.requests[index].prompt[0]
        texts = [self._label(first if entry is None else entry.token) for entry in entries]
        offsets = []
        for text in texts:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [None if entry is None else finite(entry.logprob) for entry in entries],
            "top_logprobs": [None if entry is None else self._top(entry) for entry in entries],
            "text_offset": offsets,
        }

    def _top(self, entry: TokenLogprob) -> dict[str, float]:
        """The best alternatives by text, with the chosen token among them."""
        top = {self._label(token): finite(logprob) for token, logprob in reversed(entry.top)}
        return {**top, self._label(entry.token): finite(entry.logprob)}

    def _label(self, token: int) -> str:
        """Text of a token; one that is part of a code point is written ``bytes:\\xe2`` so that labels differ."""
        data = self._model.tokenizer.token_bytes(token)
        try:
            return data.decode() if data else f"token_id:{token}"
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def _usage(self) -> dict[str, Any]:
        n = self._body.n or 1
        firsts = [turn.usage.cached_tokens for turn in self._turns[::n]]
        prompt_tokens = sum(len(prompt) for prompt in self._prompts)
        return usage_counts(prompt_tokens, total([turn.usage for turn in self._turns]), sum(firsts))

    def _head(self) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model.id,
            "system_fingerprint": self._model.info.fingerprint,
        }


def _joined(
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None, logprobs: tuple[TokenLogprob, ...] | list[TokenLogprob]
) -> tuple[TokenLogprob | None, ...]:
    return (*(prompt_logprobs or ()), *logprobs)


def _grammar(body: CompletionRequest) -> GrammarSpec | None:
    if body.response_format is None:
        return None
    try:
        return answer_grammar(_FORMAT.validate_python(body.response_format))
    except ValidationError as error:
        message, _, _ = of_validation(error.errors())
        raise InvalidRequest(f"response_format: {message}", param="response_format") from error
