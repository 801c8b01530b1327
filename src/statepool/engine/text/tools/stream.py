"""The frame all tool-call formats share: text in, content and whole calls out, at any cut of the text.

A format says how a call begins (``markers`` anywhere, ``starts`` only before any other text) and
reads the region behind such a beginning. What cannot be read stays content, character by character.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call the model asks for; ``arguments`` is a JSON object as text."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Parsed:
    """New content and the calls completed with it."""

    content: str = ""
    calls: tuple[ToolCall, ...] = ()


Region = tuple[int, list[ToolCall]]
"""Length of the text that was decided, and its calls; without calls that text is content."""


class ToolParser(ABC):
    """One format, on a stream. All ``push`` results and ``finish`` add up to the same, however the text is cut.

    White space around a call is layout and dropped; all other text that is not a call is content.
    """

    markers: ClassVar[tuple[str, ...]] = ()
    starts: ClassVar[tuple[str, ...]] = ()
    separators: ClassVar[str] = " \n\r\t"
    special: ClassVar[tuple[str, ...]] = ()
    """Marks of the format that tokenizers hold as special tokens: the text must be decoded with them."""

    def __init__(self, tools: Sequence[Mapping[str, Any]] | None = None) -> None:
        """``tools`` are the request's tools, for formats that write values without types."""
        self._tools = tuple(tools or ())
        self._buffer = ""
        self._space = ""
        self._after_call = False
        self._at_start = True

    @abstractmethod
    def region(self, text: str, final: bool) -> Region | None:
        """Read the region at the start of ``text``; None to wait for more, never if ``final``.

        The decision must not depend on text behind the region.
        """

    def push(self, text: str) -> Parsed:
        """What ``text`` completes."""
        self._buffer += text
        return self._drain(final=False)

    def finish(self) -> Parsed:
        """What was held back, now that the text is over."""
        return self._drain(final=True)

    @classmethod
    def parse(cls, text: str, tools: Sequence[Mapping[str, Any]] | None = None) -> tuple[str, list[ToolCall]]:
        """Content and calls of a whole text."""
        parser = cls(tools)
        first, last = parser.push(text), parser.finish()
        return first.content + last.content, [*first.calls, *last.calls]

    def _drain(self, final: bool) -> Parsed:
        content: list[str] = []
        calls: list[ToolCall] = []
        while True:
            at = self._beginning()
            if at is None:
                cut = len(self._buffer) - (0 if final else self._undecided())
                content.append(self._text(self._buffer[:cut]))
                self._buffer = self._buffer[cut:]
                break
            content.append(self._text(self._buffer[:at]))
            self._buffer = self._buffer[at:]
            found = self.region(self._buffer, final)
            if found is None:
                break
            length, new = found
            if new:
                calls += new
                self._space, self._after_call = "", True
            else:
                content.append(self._text(self._buffer[:length]))
            self._buffer = self._buffer[length:]
        if final:
            content.append("" if self._after_call else self._space)
            self._space = ""
        return Parsed("".join(content), tuple(calls))

    def _text(self, text: str) -> str:
        """``text`` as content, its white space held until it is known not to stand beside a call."""
        if self._after_call:
            text = text.lstrip(self.separators)
            self._after_call = not text
        text = self._space + text
        kept = text.rstrip(" \n\r\t")
        self._space = text[len(kept) :]
        self._at_start = self._at_start and not kept.strip(self.separators)
        return kept

    def _beginning(self) -> int | None:
        places = [at for marker in self.markers if (at := self._buffer.find(marker)) >= 0]
        if self._at_start:
            rest = self._buffer.lstrip(self.separators)
            if rest.startswith(self.starts):
                places.append(len(self._buffer) - len(rest))
        return min(places, default=None)

    def _undecided(self) -> int:
        """Length of the longest end of the buffer that may grow into a beginning."""
        longest = 0
        for marker in self.markers:
            for length in range(min(len(marker) - 1, len(self._buffer)), longest, -1):
                if self._buffer.endswith(marker[:length]):
                    longest = length
                    break
        if self._at_start:
            rest = self._buffer.lstrip(self.separators)
            if any(start.startswith(rest) for start in self.starts):
                longest = len(self._buffer)
        return longest


_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)


def inside_string(text: str) -> bool:
    """Whether JSON ``text`` stops within a string."""
    return '"' in _STRING.sub("", text)


def read_call(value: Any, arguments: Sequence[str] = ("arguments", "parameters")) -> ToolCall | None:
    """A call written as an object with a name and arguments, or None."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return None
    found: Any = next((value[key] for key in arguments if key in value), {})
    if isinstance(found, str):
        found = read_json(found)
    return write_call(value["name"], found)


def write_call(name: str, arguments: Any) -> ToolCall | None:
    """A call, or None if ``arguments`` is not an object that JSON can hold."""
    if not isinstance(arguments, dict):
        return None
    try:
        return ToolCall(name, json.dumps(arguments, ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        return None


def read_json(text: str) -> Any:
    """The JSON value ``text`` holds, or None if it holds none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def read_json_start(text: str) -> tuple[Any, int] | None:
    """The JSON value that ``text`` begins with and where it ends, or None."""
    try:
        return json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
