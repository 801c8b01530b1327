"""What a cell or a command gives back, and the loop that collects it while it runs."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["CommandResult", "ErrorInfo", "Execution", "Logs", "Output", "Result", "Show"]

_CHUNK = 1 << 16
Show = Callable[[str], None]


@dataclass(slots=True)
class Logs:
    """What was printed."""

    stdout: str = ""
    stderr: str = ""


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """An exception of a cell: its class, its text, and the lines a terminal would show."""

    name: str
    value: str
    traceback: str


@dataclass(frozen=True, slots=True)
class Result:
    """One shown value: its forms by name (``text``, ``html``, ``png`` as base64, …); ``main`` is the cell's last
    expression.
    """

    forms: dict[str, Any]
    main: bool = False

    @property
    def text(self) -> str | None:
        """The plain form."""
        return self.forms.get("text")


@dataclass(slots=True)
class Execution:
    """The outcome of one cell."""

    results: list[Result] = field(default_factory=list)
    logs: Logs = field(default_factory=Logs)
    error: ErrorInfo | None = None
    execution_count: int = 0
    seconds: float = 0.0
    timed_out: bool = False
    """Whether its time ended it; a ``TimeoutError`` alone may be the code's own."""

    @property
    def text(self) -> str | None:
        """The plain form of the cell's last expression."""
        return next((result.text for result in self.results if result.main), None)


@dataclass(frozen=True, slots=True)
class CommandResult:
    """The outcome of a command; a negative ``exit_code`` is the signal that ended it."""

    exit_code: int
    stdout: str
    stderr: str
    timed_out: bool = False


class Output:
    """Reads two pipes while something runs: keeps at most ``most`` bytes, drops and counts the rest, so that nobody
    blocks.
    """

    def __init__(
        self, out: int, err: int, most: int, on_stdout: Show | None = None, on_stderr: Show | None = None
    ) -> None:
        """The last two are called with each piece of text as soon as it is there."""
        for fd in (out, err):
            os.set_blocking(fd, False)
        self._names = {out: "stdout", err: "stderr"}
        self._parts: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
        self._rest = {"stdout": b"", "stderr": b""}
        self._left, self._dropped = most, 0
        self._show = {"stdout": on_stdout, "stderr": on_stderr}

    def wait(self, other: Any, deadline: float | None) -> bool:
        """Read until ``other`` has something (True) or the time is over (False). Without ``other``: until both
        pipes end.
        """
        poll = select.poll()
        open_pipes = set(self._names)
        for fd in open_pipes:
            poll.register(fd, select.POLLIN)
        if other is not None:
            poll.register(other.fileno(), select.POLLIN)
        while open_pipes or other is not None:
            left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            events = poll.poll(left)
            if not events:
                return False
            for fd, _ in events:
                if fd in self._names and not self._read(fd):
                    poll.unregister(fd)
                    open_pipes.discard(fd)
            if other is not None and any(fd == other.fileno() for fd, _ in events):
                return True
        return True

    def drain(self) -> None:
        """Read what is there already."""
        for fd in self._names:
            for _ in range(1024):  # a tenant that never stops printing must not hold its caller
                if not self._read(fd):
                    break

    def text(self) -> tuple[str, str]:
        """What both pipes gave, with a note where something was dropped."""
        made = [b"".join(self._parts[name]).decode(errors="replace") for name in ("stdout", "stderr")]
        if self._dropped:
            made[1] += f"\n[{self._dropped} bytes of output were dropped]\n"
        return made[0], made[1]

    def _read(self, fd: int) -> bool:
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return False
        if not data:
            return False
        name = self._names[fd]
        kept = data[: self._left]
        self._left -= len(kept)
        self._dropped += len(data) - len(kept)
        if kept:
            self._parts[name].append(kept)
            if (show := self._show[name]) is not None:
                text, self._rest[name] = _whole_characters(self._rest[name] + kept)
                if text:
                    show(text)
        return True


def _whole_characters(data: bytes) -> tuple[str, bytes]:
    """Text of ``data``, and the bytes of a character that is not finished yet."""
    for cut in range(min(3, len(data)) + 1):
        head, tail = data[: len(data) - cut], data[len(data) - cut :]
        try:
            return head.decode(), tail
        except UnicodeDecodeError:
            continue
    return data.decode(errors="replace"), b""
