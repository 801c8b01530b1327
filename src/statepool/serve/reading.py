"""Readers turn the model's text, as it comes, into what it means: content, reasoning, tool calls."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol
from uuid import uuid4

from statepool.engine.text.router import Routed, Router


@dataclass(frozen=True, slots=True)
class Content:
    """Text for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Text the model wrote for itself."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A tool call begins."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the JSON arguments of call ``index``."""

    index: int
    text: str


Piece = Content | Reasoning | CallStart | CallArguments


class Reader(Protocol):
    """Reads one answer. Pieces depend only on the whole text, never on how it was cut."""

    def push(self, text: str) -> list[Piece]:
        """What ``text``, after all before it, makes certain."""
        ...

    def finish(self) -> list[Piece]:
        """What was held back."""
        ...


def new_call_id() -> str:
    """A fresh id for a tool call."""
    return f"call_{uuid4().hex[:24]}"


class PlainReader:
    """Everything is content."""

    def push(self, text: str) -> list[Piece]:
        """The text itself."""
        return [Content(text)] if text else []

    def finish(self) -> list[Piece]:
        """Nothing is ever held back."""
        return []


class RoutedReader:
    """What the model's own markup says: reasoning, content, tool calls."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._calls = 0

    def push(self, text: str) -> list[Piece]:
        """What ``text`` completes."""
        return self._pieces(self._router.push(text)) if text else []

    def finish(self) -> list[Piece]:
        """What the router held back."""
        return self._pieces(self._router.finish())

    def _pieces(self, routed: Routed) -> list[Piece]:
        pieces: list[Piece] = []
        if routed.reasoning:
            pieces.append(Reasoning(routed.reasoning))
        if routed.content:
            pieces.append(Content(routed.content))
        for call in routed.calls:
            pieces += [CallStart(self._calls, new_call_id(), call.name), CallArguments(self._calls, call.arguments)]
            self._calls += 1
        return pieces


class NamedCallReader:
    """The whole text is the arguments of one call whose name is known."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._started = False

    def push(self, text: str) -> list[Piece]:
        """The text as arguments, after the start of the call."""
        start: list[Piece] = [] if self._started else [CallStart(0, new_call_id(), self._name)]
        self._started = True
        return [*start, CallArguments(0, text)] if text else start

    def finish(self) -> list[Piece]:
        """Nothing is ever held back."""
        return []


_CALL_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"\\]*)"\s*,\s*"arguments"\s*:\s*(?=\S)')


class AnyCallReader:
    """The whole text is ``{"name": ..., "arguments": ...}``; the closing brace is held back and dropped."""

    def __init__(self) -> None:
        self._head = ""
        self._tail = ""
        self._open = False

    def push(self, text: str) -> list[Piece]:
        """The start of the call once its name is complete, then its arguments."""
        if self._open:
            return self._arguments(text)
        self._head += text
        match = _CALL_HEAD.match(self._head)
        if match is None:
            return []
        self._open = True
        return [CallStart(0, new_call_id(), match[1]), *self._arguments(self._head[match.end() :])]

    def finish(self) -> list[Piece]:
        """The head as content if no call ever began (the answer was cut short); else nothing."""
        return [Content(self._head)] if self._head and not self._open else []

    def _arguments(self, text: str) -> list[Piece]:
        text = self._tail + text
        # Only the very last brace of the answer closes the call; keep everything from the last one on.
        cut = text.rfind("}")
        safe, self._tail = (text, "") if cut < 0 else (text[:cut], text[cut:])
        return [CallArguments(0, safe)] if safe else []
