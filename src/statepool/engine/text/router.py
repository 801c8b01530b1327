"""A stream of generated text, split into reasoning, content and tool calls as it comes."""

from __future__ import annotations

from dataclasses import dataclass

from statepool.engine.text.tools.stream import Parsed, ToolCall, ToolParser

THINKING = ("<think>", "</think>")
_OPEN, _CLOSE = THINKING
_SPACE = " \n\r\t"


@dataclass(frozen=True, slots=True)
class Routed:
    """What one piece of text completed, by where it goes."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()


class Router:
    """Routes text: first ``<think>...</think>`` if there is one, then content and calls.

    Tags that may be half written are held back. White space next to the thinking tags is dropped;
    tool calls inside reasoning are reasoning. Results add up to the same, however the text is cut.
    """

    def __init__(self, tools: ToolParser | None = None, reasoning: bool = True, thinking: bool = False) -> None:
        """``reasoning=False`` leaves tags in the content; ``thinking``: the prompt already opened the tag."""
        self._tools = tools
        self._state = "content" if not reasoning else "thinking" if thinking else "start"
        self._buffer = ""
        self._space = ""
        self._fresh = True

    def push(self, text: str) -> Routed:
        """What ``text`` completes."""
        self._buffer += text
        return self._drain(final=False)

    def finish(self) -> Routed:
        """What was held back, now that the text is over. Thinking that was not closed is reasoning."""
        return self._drain(final=True)

    def _drain(self, final: bool) -> Routed:
        reasoning = ""
        if self._state == "start":
            rest = self._buffer.lstrip(_SPACE)
            if rest.startswith(_OPEN):
                self._buffer, self._state = rest[len(_OPEN) :], "thinking"
            elif final or not _OPEN.startswith(rest):
                self._state = "content"
        if self._state == "thinking":
            reasoning = self._think(final)
        if self._state == "after":
            self._buffer = self._buffer.lstrip(_SPACE)
            if self._buffer:
                self._state = "content"
        if self._state != "content":
            return Routed(reasoning=reasoning)
        text, self._buffer = self._buffer, ""
        parsed = self._parse(text, final)
        return Routed(parsed.content, reasoning, parsed.calls)

    def _think(self, final: bool) -> str:
        end = self._buffer.find(_CLOSE)
        if end >= 0:
            text, self._buffer, self._state = self._buffer[:end], self._buffer[end + len(_CLOSE) :], "after"
            return self._trimmed(text).rstrip(_SPACE)
        held = 0 if final else _partial(self._buffer, _CLOSE)
        cut = len(self._buffer) - held
        text, self._buffer = self._trimmed(self._buffer[:cut]), self._buffer[cut:]
        kept = text.rstrip(_SPACE)
        self._space = text[len(kept) :]
        return kept

    def _trimmed(self, text: str) -> str:
        """``text`` behind the space held before it, without the space that follows the opening tag."""
        text = self._space + text
        self._space = ""
        if self._fresh:
            text = text.lstrip(_SPACE)
            self._fresh = not text
        return text

    def _parse(self, text: str, final: bool) -> Parsed:
        if self._tools is None:
            return Parsed(text)
        pushed = self._tools.push(text) if text else Parsed()
        if not final:
            return pushed
        last = self._tools.finish()
        return Parsed(pushed.content + last.content, pushed.calls + last.calls)


def route(text: str, tools: ToolParser | None = None, reasoning: bool = True, thinking: bool = False) -> Routed:
    """A whole text at once; ``tools`` must be fresh."""
    router = Router(tools, reasoning, thinking)
    first, last = router.push(text), router.finish()
    return Routed(first.content + last.content, first.reasoning + last.reasoning, first.calls + last.calls)


def _partial(text: str, tag: str) -> int:
    """Length of the longest end of ``text`` that begins ``tag``."""
    for length in range(min(len(tag) - 1, len(text)), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0
