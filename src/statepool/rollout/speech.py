"""Between text and tokens of a conversation: nothing that was said is ever decoded and encoded again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from statepool.core.errors import InvalidConfig

__all__ = ["Speech"]


class Speech:
    """How a model's tokens read to the world, and the world's words to the model.

    Args:
        tokenizer: the model's (``engine.text.tokenizer.Tokenizer``).
        template: the model's (``engine.text.template.ChatTemplate``).
        eos: token ids that end a turn.

    Attributes:
        call_end: the token that ends a tool call, which a turn stops at; None if the model has none.
    """

    def __init__(self, tokenizer: Any, template: Any, eos: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._eos = frozenset(eos)
        self.call_end: int | None = tokenizer.control_id("</tool_call>")
        if self.call_end is None:
            ids = tokenizer.encode("</tool_call>", allow_special=True)
            self.call_end = ids[0] if len(ids) == 1 else None

    @classmethod
    def load(cls, info: Any, tokenizer: Any) -> Speech:
        """Of the model that ``info`` (``engine.config.ModelInfo``) describes."""
        from statepool.engine.text.template import ChatTemplate

        return cls(tokenizer, ChatTemplate.load(info.path), info.eos_ids)

    def asked(self, messages: Sequence[Any], tools: Sequence[Any] = ()) -> list[int]:
        """Token ids of a prompt, up to where the model speaks."""
        ids: list[int] = self._template.encode(self._tokenizer, list(messages), tools=list(tools) or None)
        return ids

    def ended(self, tokens: Sequence[int]) -> bool:
        """Whether the model closed its turn itself."""
        return bool(tokens) and tokens[-1] in self._eos

    def heard(self, tokens: Sequence[int]) -> str:
        """What a turn of the model says, its closing token left out."""
        text: str = self._tokenizer.decode(tokens[:-1] if self.ended(tokens) else tokens, skip_special=False)
        return text

    def said(self, content: str, role: str, ended: bool) -> list[int]:
        """Token ids of what the world says, up to where the model speaks again.

        ``ended`` says that the model closed its turn itself. Control tokens spelled in ``content`` stay plain text.

        Raises:
            InvalidConfig: the template does not close a turn with an end-of-sequence token.
        """
        before = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}]
        told: list[int] = self._template.encode(self._tokenizer, [*before, {"role": role, "content": content}])
        head = self._template.encode(self._tokenizer, before, add_generation_prompt=False)
        places = [i for i, token in enumerate(head) if token in self._eos]
        if not places or told[: places[-1]] != head[: places[-1]]:
            raise InvalidConfig("the chat template does not end a turn with the model's end token", param="model")
        return told[places[-1] + ended :]
