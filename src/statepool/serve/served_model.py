"""What the gateway knows of the model: names, limits, tokenizer, chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from statepool.core.errors import ContextLengthExceeded, InvalidConfig, InvalidRequest, NotFound
from statepool.engine.config import ModelInfo
from statepool.engine.text.template import ChatTemplate
from statepool.engine.text.tokenizer import Tokenizer
from statepool.engine.text.tools import PARSERS, ToolParser, pick

_MOST_CHARS_PER_TOKEN = 256
"""No tokenizer in use has longer tokens; a text with more characters than this per position cannot fit."""

_THINK = "<think>"
_THINK_TOKENS = 12


@dataclass(frozen=True)
class ServedModel:
    """The served model as the translations see it. Immutable; shared by all requests."""

    info: ModelInfo
    tokenizer: Tokenizer
    template: ChatTemplate
    created: int
    """Unix time of loading."""
    tool_format: str | None = None
    """Name of the tool-call format, when it is not to be taken from the template."""
    attention: str = "full"
    """The kind its engines run, with its settings."""

    @property
    def id(self) -> str:
        """The name clients use."""
        return self.info.id

    @property
    def reasons(self) -> bool:
        """Whether the model writes ``<think>`` blocks."""
        return _THINK in (self.template.source or "")

    def opens_thinking(self, prompt: Sequence[int]) -> bool:
        """Whether ``prompt`` ends inside an opened ``<think>`` block."""
        if not self.reasons:
            return False
        end = self.tokenizer.decode(list(prompt[-_THINK_TOKENS:]), skip_special=False)
        return end.rstrip().endswith(_THINK)

    def tool_parser(self, tools: Sequence[Mapping[str, Any]]) -> ToolParser:
        """A fresh parser of the model's tool-call format.

        Raises:
            InvalidConfig: the server was told a format that does not exist.
        """
        name = self.tool_format or pick(self.template.source)
        if name not in PARSERS:
            raise InvalidConfig(f"tool_format must be one of {', '.join(PARSERS)}, got {name!r}", param="tool_format")
        return PARSERS[name](tools)

    def check_name(self, name: str | None) -> None:
        """Refuse a model name that is not served.

        Raises:
            NotFound: with ``param="model"``.
        """
        if name is not None and name != self.id:
            raise NotFound(f"model {name!r} does not exist here; this server has {self.id!r}", param="model")

    def check_length(self, text: str, param: str) -> None:
        """Refuse a text that cannot fit, without tokenizing it.

        Raises:
            ContextLengthExceeded: more characters than the longest tokens could hold.
        """
        if len(text) > self.info.max_model_len * _MOST_CHARS_PER_TOKEN:
            raise ContextLengthExceeded(
                f"{param} has {len(text)} characters and cannot fit the context of {self.info.max_model_len} tokens",
                param=param,
            )

    def encode(self, text: str, *, add_special: bool = False, param: str = "prompt") -> list[int]:
        """Ids of plain text.

        Raises:
            InvalidRequest: the text is no valid Unicode.
            ContextLengthExceeded: it cannot fit.
        """
        self.check_length(text, param)
        return self.tokenizer.encode(text, add_special=add_special)

    def encode_messages(
        self,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]] | None,
        add_generation_prompt: bool = True,
        **template_values: Any,
    ) -> list[int]:
        """Ids of a conversation in the model's own prompt form.

        Raises:
            InvalidRequest: the template refuses the messages.
            ContextLengthExceeded: they cannot fit.
        """
        for message in messages:
            if isinstance(message.get("content"), str):
                self.check_length(message["content"], "messages")
        return self.template.encode(self.tokenizer, messages, tools or None, add_generation_prompt, **template_values)

    def check_ids(self, ids: Sequence[int], param: str) -> None:
        """Refuse ids outside the vocabulary.

        Raises:
            InvalidRequest: naming ``param``.
        """
        largest = max(ids, default=0)
        if largest >= self.tokenizer.vocab_size:
            raise InvalidRequest(
                f"{param}: token id {largest} is not below the vocabulary size {self.tokenizer.vocab_size}", param=param
            )

    def room(self, prompt: Sequence[int], wanted: int | None, param: str) -> int:
        """How many tokens may follow ``prompt``: ``wanted``, but never past the end of the context.

        Raises:
            InvalidRequest: the prompt is empty.
            ContextLengthExceeded: the prompt leaves no room for one token.
        """
        limit = self.info.max_model_len
        if not prompt:
            raise InvalidRequest(f"{param} must hold at least one token", param=param)
        if len(prompt) > limit or (len(prompt) == limit and wanted != 0):
            raise ContextLengthExceeded(
                f"{param} has {len(prompt)} tokens; the context of {self.id} is {limit} tokens, answer included",
                param=param,
            )
        left = limit - len(prompt)
        return left if wanted is None else min(wanted, left)
