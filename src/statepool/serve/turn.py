"""One answer while it is being written: everything the dialects report about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from statepool.engine.request import FinishReason, Output, TokenLogprob, Usage
from statepool.serve.reading import CallArguments, CallStart, Content, Piece, Reader, Reasoning


@dataclass(slots=True)
class Call:
    """A tool call so far."""

    id: str
    name: str
    arguments: str = ""

    def chat_form(self) -> dict[str, Any]:
        """The call as chat messages hold it."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(slots=True)
class Turn:
    """Accumulates the outputs of one sequence. ``push`` is the only way in."""

    reader: Reader
    content: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    sampled_logprobs: list[float] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    finish: FinishReason | None = None
    stop_reason: int | str | None = None
    usage: Usage = field(default_factory=lambda: Usage(0, 0, 0))

    def push(self, output: Output) -> list[Piece]:
        """Take one output; returns what it adds, in order."""
        self.tokens += output.tokens
        self.logprobs += output.logprobs
        self.sampled_logprobs += output.sampled_logprobs
        if output.prompt_logprobs is not None:
            self.prompt_logprobs = output.prompt_logprobs
        pieces = self.reader.push(output.text)
        if output.finish_reason is not None:
            pieces = [*pieces, *self.reader.finish()]
            self.finish, self.stop_reason = output.finish_reason, output.stop_reason
        if output.usage is not None:
            self.usage = output.usage
        for piece in pieces:
            self._add(piece)
        return pieces

    @property
    def called(self) -> bool:
        """Whether the answer ends in tool calls: it made some and was not cut short."""
        return bool(self.calls) and self.finish == "stop"

    def _add(self, piece: Piece) -> None:
        match piece:
            case Content(text=text):
                self.content += text
            case Reasoning(text=text):
                self.reasoning += text
            case CallStart(id=name, name=function):
                self.calls.append(Call(name, function))
            case CallArguments(index=index, text=text):
                self.calls[index].arguments += text


def total(usages: list[Usage]) -> Usage:
    """Sum over the sequences of one call that share nothing."""
    return Usage(
        sum(u.prompt_tokens for u in usages),
        sum(u.completion_tokens for u in usages),
        sum(u.cached_tokens for u in usages),
        sum(u.draft_tokens for u in usages),
        sum(u.accepted_tokens for u in usages),
    )
